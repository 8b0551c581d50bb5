"""The README's commands and code are run as they stand, on a small archive and for a few steps."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sciJEPA.synthetic import travelling_waves

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    # Four years from 2001: the README's probe is trained until 2003 and tested in 2004.
    travelling_waves(1461, nlat=8, nlon=16).to_zarr(folder / "my.zarr", consolidated=False)
    return folder


def run(words: list[str], folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{words} failed:\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def printed(folder: Path) -> dict[str, str]:
    """What each command of the README prints, by its verb; the Python block needs the run that they leave."""
    (block,) = blocks("bash")
    printed = {}
    for line in block.strip().splitlines():
        program, *words = shlex.split(line)
        assert program == "scijepa"
        # The promise is that the line runs; how long it trains is not at stake.
        short = ["--training.steps", "4", "--training.batch_size", "8"] if words[0] == "pretrain" else []
        printed[words[0]] = run([sys.executable, "-m", "sciJEPA.cli", *words, *short], folder)
    return printed


def test_the_commands_run_as_written(folder: Path, printed: dict[str, str]) -> None:
    assert "JEPA target" in printed["probe"] and "persistence" in printed["probe"]
    assert (folder / "runs/mine/probe/scores.csv").is_file()


@pytest.mark.usefixtures("printed")
def test_the_python_runs_as_written(folder: Path) -> None:
    (block,) = blocks("python")
    table = run([sys.executable, "-c", block], folder)
    assert "climatology" in table and "rmse" in table


def test_every_module_that_the_readme_names_exists() -> None:
    for name in re.findall(r"`(\w+\.py)`", TEXT):
        assert (ROOT / "sciJEPA" / name).is_file(), f"the README names {name}"


def test_the_tables_are_those_of_the_committed_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "analysis")
    tables = importlib.import_module("readme_tables")
    assert tables.demo_table().strip() in TEXT
    learned = (ROOT / "docs/learned.md").read_text()
    for make in (tables.sea_level_pressure_in_short, tables.few_labels_in_short):
        assert make().strip() in TEXT
    for make in (
        tables.sea_level_pressure_table,
        tables.sea_level_pressure_differences,
        tables.sea_level_pressure_linear_differences,
        tables.speedy_table,
    ):
        assert make().strip() in learned
    assert all(make().startswith(("|", "**")) for make in tables.TABLES.values())  # each can be made
