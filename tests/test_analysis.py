"""The scripts in analysis/ run, on a small archive."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sciJEPA.synthetic import travelling_waves

ANALYSIS = Path(__file__).parents[1] / "analysis"


@pytest.mark.slow
def test_sea_level_pressure(tmp_path: Path) -> None:
    travelling_waves(200).to_netcdf(tmp_path / "waves.nc")
    small = "tokenizer: {patch_time: 4}\ntraining: {steps: 3}\nencoder: {width: 16, depth: 1, heads: 2}\n"
    (tmp_path / "small.yaml").write_text(small)
    words = ["waves.nc", "--config", "small.yaml", "--out", "out", "--seeds", "0", "1"]
    script = str(ANALYSIS / "sea_level_pressure.py")
    done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = pd.read_csv(tmp_path / "out/scores.csv")
    assert sorted(scores["seed"].unique()) == [0, 1]
    assert "| JEPA, target encoder + ridge |" in done.stdout
    # Controls without weights do not depend on the seed, so their cells have no range.
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("| ridge on the raw window")]
    assert "to" not in line


@pytest.mark.slow
def test_joint(tmp_path: Path) -> None:
    travelling_waves(250, nlat=6, nlon=12).to_netcdf(tmp_path / "waves.nc")
    noise = np.random.default_rng(0).normal(size=(12, 16, 16, 16)).astype(np.float32)
    flow = xr.Dataset({"u": (("trajectory", "time", "x", "y"), noise)}, {"time": np.arange(16)})
    flow.to_netcdf(tmp_path / "flow.nc")
    hours = pd.date_range("2001", periods=3000, freq="h")
    pd.DataFrame({"date": hours, "load": np.sin(np.arange(3000) / 4)}).to_csv(tmp_path / "load.csv", index=False)
    words = ["--archive", "waves=waves.nc", "--archive", "flow=flow.nc", "--archive", "load=load.csv"]
    words += ["--out", "out", "--seeds", "0", "--steps", "2", "--batch-size", "4"]
    script = str(ANALYSIS / "joint.py")
    done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = pd.read_csv(tmp_path / "out/scores.csv")
    assert set(scores["domain"]) == {"waves", "flow", "load"} and set(scores["training"]) == {"alone", "joint"}
    assert len([line for line in done.stdout.splitlines() if line.startswith("| waves |")]) == 4  # one a lead
