"""What is promised outside the Python modules: data folders, dependencies, pins, and the wheel."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import sciJEPA
from sciJEPA.synthetic import travelling_waves

ROOT = Path(__file__).resolve().parent.parent
DATASETS = sorted(ROOT.glob("datasets/*/"))
# conda-forge's names where they differ from PyPI's
CONDA_NAMES = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "build": "python-build",
}
COMPROMISED = ("2.6.2", "2.6.3")


def read_project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def all_requirements() -> list[Requirement]:
    project = read_project()
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    return [r for r in map(Requirement, lines) if canonicalize_name(r.name) != "scijepa"]


def conda_name(requirement: Requirement) -> str:
    return canonicalize_name(CONDA_NAMES.get(requirement.name, requirement.name))


def conda_specifiers() -> dict[str, str]:
    *lines, last = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = [Requirement(line) for line in last["pip"] if not line.startswith("-")]  # what conda-forge may not have
    pairs = [line.partition(" ") for line in lines]
    return {canonicalize_name(name): specifier.strip() for name, _, specifier in pairs} | {
        canonicalize_name(requirement.name): str(requirement.specifier) for requirement in pip
    }


def pins() -> dict[str, Version]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): Version(number) for name, number in pairs}


# --- data folders


def test_there_are_dataset_cards() -> None:
    assert {"qg-channel", "ncep-slp-north-atlantic", "ett"} <= {folder.name for folder in DATASETS}


@pytest.mark.parametrize("folder", DATASETS, ids=lambda folder: folder.name)
def test_dataset_card_is_complete(folder: Path) -> None:
    assert (folder / "card.md").read_text().startswith(f"# {folder.name}\n")
    card = yaml.safe_load((folder / "dataset.yaml").read_text())
    required = {"name", "title", "domain", "source", "licence", "citation", "variables", "dims", "cadence", "splits"}
    assert required | {"sha256"} <= set(card)
    assert card["name"] == folder.name
    assert card["domain"] in {"climate", "simulation", "sensors"}
    assert {"kind", "from", "redistributable"} <= set(card["source"])
    assert all(variable["units"] for variable in card["variables"].values())
    assert all({"authors", "year", "title", "doi"} <= set(work) for work in card["citation"])
    assert card["sha256"] is None or re.fullmatch("[0-9a-f]{64}", card["sha256"])


@pytest.mark.parametrize("folder", DATASETS, ids=lambda folder: folder.name)
def test_dataset_splits_are_chronological_and_apart(folder: Path) -> None:
    splits = yaml.safe_load((folder / "dataset.yaml").read_text())["splits"]
    assert splits["method"] in ("chronological", "source")
    if splits["method"] == "source":  # whole trajectories, as the source says itself
        assert set(splits) == {"method"}
    elif "validation_start" in splits:
        assert splits["validation_start"] < splits["test_start"]
    elif "rows" in splits:
        rows = splits["rows"]
        bounds = [*rows["train"], *rows["validation"], *rows["test"]]
        assert bounds == sorted(bounds)
    else:
        assert splits["train"] + splits["validation"] + splits["test"] == pytest.approx(1)


def test_nothing_but_text_lies_in_the_dataset_folders() -> None:
    # Cards say where data come from; data that may not be shared, such as ETT, must never slip in beside them.
    found = {path.name for path in ROOT.glob("datasets/**/*") if path.is_file()}
    assert found == {"card.md", "dataset.yaml"}


@pytest.mark.parametrize("folder", ["configs", "datasets"])
def test_data_folders_hold_no_python(folder: str) -> None:
    assert list((ROOT / folder).rglob("*.py")) == []


def test_presets_are_yaml_mappings() -> None:
    for path in ROOT.glob("configs/**/*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict), path


def test_installing_scijepa_makes_no_module_called_datasets(tmp_path: Path) -> None:
    # Only a library really called `datasets` may answer; ours would be found inside this checkout.
    code = "import importlib.util; print(importlib.util.find_spec('datasets'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert str(ROOT / "datasets") not in done.stdout


# --- one version


def test_version_has_one_source() -> None:
    assert sciJEPA.__version__ == read_project()["version"] == version("sciJEPA")


def test_version_is_the_one_in_the_citation_and_the_changelog() -> None:
    number = read_project()["version"]
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == number
    assert f"## [{number}]" in (ROOT / "CHANGELOG.md").read_text()


# --- dependencies and pins


@pytest.mark.parametrize("requirement", all_requirements(), ids=lambda requirement: requirement.name)
def test_dependency_is_in_environment_and_constraints(requirement: Requirement) -> None:
    specifier = conda_specifiers()[conda_name(requirement)]
    assert Requirement(f"{requirement.name}{specifier}").specifier == requirement.specifier
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


def test_compromised_lightning_releases_are_refused() -> None:
    (lightning,) = [r for r in all_requirements() if r.name == "pytorch-lightning"]
    conda = Requirement(f"x{conda_specifiers()['pytorch-lightning']}")
    for number in COMPROMISED:
        assert number not in lightning.specifier
        assert number not in conda.specifier
        assert pins()["pytorch-lightning"] != Version(number)


def test_pins_carry_no_local_version() -> None:
    # torch==2.13.0+cpu could only be installed from a particular index.
    assert [name for name, number in pins().items() if number.local] == []


def test_oldest_and_newest_python_agree_everywhere() -> None:
    requires = Requirement(f"python{read_project()['requires-python']}").specifier
    assert requires == Requirement(f"python{conda_specifiers()['python']}").specifier
    named = {line.rsplit(" ", 1)[1] for line in read_project()["classifiers"] if ":: 3." in line}
    assert named == {f"3.{minor}" for minor in range(30) if f"3.{minor}" in requires}


# --- the wheel


@pytest.mark.slow
def test_wheel_holds_the_package_and_its_data_and_nothing_else(built_wheel: Path) -> None:
    with zipfile.ZipFile(built_wheel) as wheel:
        names = set(wheel.namelist())
        (entry_points,) = [wheel.read(name).decode() for name in names if name.endswith("entry_points.txt")]
    number = read_project()["version"]
    assert {name.split("/")[0] for name in names} == {"sciJEPA", f"scijepa-{number}.dist-info"}
    data = {path.relative_to(ROOT) for folder in ("configs", "datasets") for path in (ROOT / folder).rglob("*.*")}
    assert {f"sciJEPA/_data/{path.as_posix()}" for path in data} <= names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sciJEPA").rglob("*.py")}
    assert modules | {"sciJEPA/py.typed"} <= names
    assert "scijepa = sciJEPA.cli:main" in entry_points


@pytest.mark.slow
def test_the_installed_wheel_runs_the_demonstration_from_another_folder(built_wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(built_wheel)]
    subprocess.run(command, check=True, capture_output=True)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    ours, theirs = (
        subprocess.run([executable, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
        for executable in (str(python), sys.executable)
    )
    # The dependencies of this environment, but not its sciJEPA: a path file is not read for further path files.
    (Path(ours) / "dependencies.pth").write_text(theirs + "\n")
    code = "import sciJEPA; print(sciJEPA.__file__)"
    found = subprocess.run([str(python), "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert found.strip().startswith(ours)
    travelling_waves(200).to_zarr(tmp_path / "waves.zarr", consolidated=False)
    small = "tokenizer: {patch_time: 4}\ntraining: {steps: 5}\nencoder: {width: 16, depth: 1, heads: 2}\n"
    (tmp_path / "small.yaml").write_text(small)
    command = [str(tmp_path / "venv/bin/scijepa"), "demo", "--archive", "waves.zarr", "--config", "small.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "JEPA target + ridge" in done.stdout
    for name in ("model/model.safetensors", "latents.zarr", "probe/scores.csv", "probe/skill.png", "mask.png"):
        assert (tmp_path / "runs/demo" / name).exists()
    presets = subprocess.run(
        [str(tmp_path / "venv/bin/scijepa"), "configs"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "climate-tiny" in presets.stdout
