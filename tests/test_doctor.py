import builtins
import json
import sys
from typing import Any

import pytest

from sciJEPA.doctor import doctor, format_doctor

module = sys.modules["sciJEPA.doctor"]  # sciJEPA.doctor is the function


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return doctor()


def test_report_is_plain_json(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_report_names_what_results_depend_on(report: dict[str, Any]) -> None:
    import torch
    import xarray as xr

    assert report["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["packages"]["torch"]["version"] == torch.__version__
    assert report["packages"]["xarray"]["version"] == xr.__version__
    assert report["devices"][-1]["name"] == "cpu"
    assert report["precision"] in ("float32", "bfloat16")
    assert report["cores"] >= 1


def test_the_build_of_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.__version__", "2.13.0+cu130")
    assert doctor()["packages"]["torch"]["version"] == "2.13.0+cu130"


def test_every_dependency_is_there_and_none_is_forgotten(report: dict[str, Any]) -> None:
    assert {"numpy", "zarr", "pytorch-lightning", "netcdf4"} <= set(report["packages"])
    assert [name for name, package in report["packages"].items() if not package["ok"]] == []
    assert {"plot", "dev"} <= set(report["extras"])
    assert report["engines"]["Zarr 2 and 3"]
    assert report["verdict"].startswith("Fine")


def test_text_has_a_line_for_everything(report: dict[str, Any]) -> None:
    text = format_doctor(report)
    for name in (*report["packages"], *report["engines"], *report["extras"], "cpu"):
        assert f"  {name} " in text
    assert text.splitlines()[-1] == f"verdict: {report['verdict']}"


def test_missing_and_compromised_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"pytorch-lightning": "2.6.2", "matplotlib": None}
    actual = module._version
    monkeypatch.setattr(module, "_version", lambda name: versions.get(name, actual(name)))
    report = doctor()
    assert not report["packages"]["pytorch-lightning"]["ok"]
    assert report["extras"]["plot"] == {"installed": False, "missing": ["matplotlib"]}
    assert "pytorch-lightning is 2.6.2" in report["verdict"]
    assert '"pytorch-lightning>=2.6' in report["verdict"]
    assert 'pip install "scijepa[plot]"' in format_doctor(report)


def test_a_broken_torch_does_not_break_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    actual = builtins.__import__

    def without_torch(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch":
            raise OSError("libtorch.so: cannot open shared object file")
        return actual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    report = doctor()
    assert [device["name"] for device in report["devices"]] == ["cpu"]
    assert "libtorch.so" in report["verdict"]
    assert "libtorch.so" in format_doctor(report)


def test_an_installed_package_reads_its_metadata(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    lines = [
        "numpy>=1.26",
        'matplotlib>=3.8; extra == "plot"',
        "sciJEPA[plot]; extra == 'all'",
        "x!=2,>=1 ; extra == 'y'",
    ]
    monkeypatch.setattr(module, "__file__", str(tmp_path / "site-packages" / "sciJEPA" / "doctor.py"))
    monkeypatch.setattr(module.importlib.metadata, "requires", lambda name: lines)
    assert module._requirements() == ({"numpy": ">=1.26"}, {"plot": ["matplotlib"], "y": ["x"]})
