"""What this installation can do: versions, devices, storage engines and extras, with a sentence on what is amiss.

Arrives: nothing. Leaves: a dictionary of plain values (`scijepa doctor --json`), and the same as text to paste into an
issue. We decided against a list of packages of our own: the metadata of the installed distribution, or pyproject.toml
in a checkout, say what is needed. A broken package must not break the doctor, so whatever it asks may fail.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

# What opens which storage; the first three come with sciJEPA.
ENGINES = {
    "Zarr 2 and 3": "zarr",
    "NetCDF": "netCDF4",
    "folders of NetCDF": "dask",
    "HDF5 through h5netcdf": "h5netcdf",
    "s3://": "s3fs",
    "gs://": "gcsfs",
    "https://": "aiohttp",
}


def doctor() -> dict[str, Any]:
    """Describe the installation.

    Returns
    -------
    dict with scijepa, python, platform, location, cores, memory_gb, devices, precision (which training would choose),
    packages, engines, extras, data, problems (sentences) and verdict; serialisable as JSON.

    Examples
    --------
    >>> sorted(doctor()["engines"])[:2]
    ['HDF5 through h5netcdf', 'NetCDF']
    """
    core, extras = _requirements()
    packages = {name: _package(name, needs) for name, needs in core.items()}
    missing = {extra: [name for name in names if _version(name) is None] for extra, names in extras.items()}
    devices, precision, problems = _devices()
    if torch := sys.modules.get("torch"):
        packages["torch"]["version"] = str(torch.__version__)  # with its build, which some wheels' metadata leave out
    for name, found in packages.items():
        if not found["ok"]:
            has = f"is {found['version']}" if found["version"] else "is not installed"
            problems.append(f'{name} {has}, but sciJEPA needs it as in: pip install "{name}{found["needs"]}".')
    return {
        "scijepa": _version("sciJEPA"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "location": str(Path(__file__).resolve().parent),
        "cores": _cores(),
        "memory_gb": _memory_gb(),
        "devices": devices,
        "precision": precision,
        "packages": packages,
        "engines": {what: importlib.util.find_spec(module) is not None for what, module in ENGINES.items()},
        "extras": {extra: {"installed": not names, "missing": names} for extra, names in missing.items()},
        "data": _data(problems),
        "problems": problems,
        "verdict": " ".join(problems) or "Fine: everything that sciJEPA needs is here.",
    }


def format_doctor(report: dict[str, Any]) -> str:
    """The report as aligned text."""
    lines = [f"sciJEPA {report['scijepa'] or '(not installed)'} in {report['location']}"]
    lines += [f"Python {report['python']}, {report['platform']}"]
    memory = f", {report['memory_gb']:g} GB of memory" if report["memory_gb"] else ""
    lines += [f"{report['cores']} cores{memory}", "", "devices"]
    lines += [f"  {device['name']:<8} {device['title']}" for device in report["devices"]]
    lines += [f"  training computes in {report['precision']}"] if report["precision"] else []
    width = max(map(len, report["packages"]), default=0)
    lines += ["", "packages"]
    for name, found in report["packages"].items():
        trouble = "" if found["ok"] else f"  needs {found['needs']}"
        lines.append(f"  {name:<{width}}  {found['version'] or 'missing'}{trouble}")
    lines += ["", "engines"]
    lines += [f"  {what:<22} {'yes' if there else 'no'}" for what, there in report["engines"].items()]
    lines += ["", "extras"]
    for extra, state in report["extras"].items():
        hint = f'pip install "scijepa[{extra}]" (missing: {", ".join(state["missing"])})'
        lines.append(f"  {extra:<22} {'yes' if state['installed'] else hint}")
    return "\n".join([*lines, "", f"verdict: {report['verdict']}"])


def _requirements() -> tuple[dict[str, str], dict[str, list[str]]]:
    """What sciJEPA needs: name -> versions, and extra -> names."""
    # A checkout knows better than what was installed from it some time ago.
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    core: dict[str, str] = {}
    extras: dict[str, list[str]] = {}
    if project.is_file():
        described = tomllib.loads(project.read_text())["project"]
        lines = [(line, "") for line in described["dependencies"]]
        lines += [(line, extra) for extra, part in described["optional-dependencies"].items() for line in part]
    else:
        found = importlib.metadata.requires("sciJEPA") or []
        lines = [(line, match[1] if (match := re.search(r"extra == ['\"](.+?)['\"]", line)) else "") for line in found]
    for line, extra in lines:
        match = re.match(r"([\w.-]+)(?:\[.*?\])?\s*([^;]*)", line)
        if match is None or match[1].lower() == "scijepa":  # an extra that contains another one
            continue
        if extra:
            extras.setdefault(extra, []).append(match[1])
        else:
            core[match[1]] = match[2].strip()
    return core, extras


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, needs: str) -> dict[str, Any]:
    from packaging.specifiers import SpecifierSet  # comes with xarray

    version = _version(name)
    return {
        "version": version,
        "needs": needs,
        "ok": version is not None and SpecifierSet(needs).contains(version, prereleases=True),
    }


def _devices() -> tuple[list[dict[str, str]], str | None, list[str]]:
    """The GPUs that torch sees and the processor, the precision that training would choose, and problems."""
    processor = platform.processor() or platform.machine()
    try:
        import torch

        from sciJEPA.config import RunConfig
        from sciJEPA.plan import precision

        gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        devices = [
            {"name": f"cuda:{number}", "title": f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB"}
            for number, gpu in enumerate(gpus)
        ]
        if torch.backends.mps.is_available():
            devices.append({"name": "mps", "title": "Apple GPU"})
        threads = torch.get_num_threads()
        devices.append({"name": "cpu", "title": f"{processor}, {threads} thread{'' if threads == 1 else 's'}"})
        return devices, precision(RunConfig()), []
    except Exception as error:  # a broken torch raises whatever it likes
        reason = f"torch cannot be used: {type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        return [{"name": "cpu", "title": processor}], None, [f"{reason}; install it again."]


def _data(problems: list[str]) -> dict[str, str | None]:
    """Where presets and dataset cards lie; None and a problem where they do not."""
    from sciJEPA.resources import configs_folder, datasets_folder

    found: dict[str, str | None] = {}
    for name, folder in (("configs", configs_folder), ("datasets", datasets_folder)):
        try:
            found[name] = str(folder())
        except FileNotFoundError as error:
            found[name] = None
            problems.append(str(error))
    return found


def _cores() -> int:
    """Cores that this process may use, which in a container or a batch job are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):  # Windows
        return None
