"""The scripts in analysis/ run, on a small archive."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from sciJEPA.synthetic import travelling_waves
from sciJEPA.tokenizers.base import Batch

ANALYSIS = Path(__file__).parents[1] / "analysis"


@pytest.mark.slow
def test_climate_panels(tmp_path: Path) -> None:
    travelling_waves(400).assign_coords(latitude=np.linspace(-70, 70, 8)).to_netcdf(tmp_path / "waves.nc")
    small = "tokenizer: {patch_time: 4}\ntraining: {steps: 3}\nencoder: {width: 16, depth: 1, heads: 2}\n"
    (tmp_path / "small.yaml").write_text(small)
    words = ["waves.nc", "--config", "small.yaml", "--set", "training.batch_size=8", "--out", "out"]
    words += ["--seeds", "0", "1", "--lead", "1D,3D", "--labels", "0.1"]
    command = [sys.executable, str(ANALYSIS / "climate_panels.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores, parts, labels = (pd.read_csv(tmp_path / f"out/{name}.csv") for name in ("scores", "parts", "labels"))
    assert sorted(scores["seed"].unique()) == [0, 1]
    assert {"mae", "supervised", "pca", "latent_rollout"} <= set(scores["method"])
    assert {"rmse_over_climatology@tropics", "power_ratio@small"} <= set(parts["metric"])
    assert set(labels["labels"]) == {0.1, 1.0}
    lines = done.stdout.splitlines()
    for begin in ("| ", "| 10% | ", "| 100% | "):
        assert len([line for line in lines if line.startswith(f"{begin}JEPA, target encoder + ridge |")]) == 1
    # Controls without weights do not depend on the seed, so their cells have no range.
    (line,) = [line for line in lines if line.startswith("| ridge on the raw window")]
    assert "to" not in line
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.stdout == done.stdout


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
    rows = [line.split(" | ")[2:4] for line in done.stdout.splitlines() if line.startswith("| waves |")]
    read = ["latents + ridge", "latents and what the predictor foresees + local"]
    assert rows == [[what, lead] for what in read for lead in ("24H", "48H", "72H", "120H")]
    again = [*words, "--archive", "other=load.csv", "--variables", "other=load"][4:]
    done = subprocess.run([sys.executable, script, *again], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # two archives, one of which is new; numbers of the others stay
    assert set(pd.read_csv(tmp_path / "out/scores.csv")["domain"]) == {"waves", "flow", "load", "other"}


@pytest.mark.slow
def test_sensor_gaps(tmp_path: Path) -> None:
    steps = np.arange(3000)
    noise = np.random.default_rng(0).normal(size=(2, 3000))
    series = {"load": np.sin(steps / 4) + 0.1 * noise[0], "oil": np.cos(steps / 7) + 0.1 * noise[1]}
    pd.DataFrame({"date": pd.date_range("2001", periods=3000, freq="h"), **series}).to_csv(
        tmp_path / "load.csv", index=False
    )
    words = ["load.csv", "--out", "out", "--seeds", "0", "--steps", "2", "--batch-size", "4"]
    script = str(ANALYSIS / "sensor_gaps.py")
    done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = pd.read_csv(tmp_path / "out/scores.csv")
    # Two encoders, two leads, three shares with three ways and three draws each and one share, none missing, with one.
    assert len(scores) == 2 * 2 * (3 * 3 * 3 + 1) and scores["value"].between(0, 2).all()
    by_way = (
        scores.query("encoder == 'hidden points' and lead_hours == 6 and missing == 0.5").groupby("way")["value"].mean()
    )
    gain = f"{by_way['masked'] - by_way['interpolated']:+.3f}"
    assert "| 6 h | hidden points | masked less interpolated |  | " in done.stdout
    line = next(line for line in done.stdout.splitlines() if "6 h | hidden points | masked less" in line)
    assert line.split(" | ")[5].startswith(gain)
    masked = scores.query("way == 'masked' and lead_hours == 6").groupby("missing")["value"].mean()
    assert masked[0.75] > masked[0.0]


def test_a_gap_is_filled_by_nothing_from_after_the_issue_time() -> None:
    sys.path.insert(0, str(ANALYSIS))
    from sensor_gaps import given

    # Observed are 1 at step 1 and 3 at step 3 of an issue window of five steps.
    batch = Batch(torch.arange(5.0).reshape(1, 1, 5), None, torch.zeros(1, 5, 4), torch.zeros(1, dtype=torch.long))
    observed = torch.tensor([False, True, False, True, False]).reshape(1, 1, 5)
    assert given(batch, observed, "interpolated").values.flatten().tolist() == [1, 1, 2, 3, 3]
    assert given(batch, observed, "last value").values.flatten().tolist() == [1, 1, 1, 3, 3]
    assert given(batch, observed, "masked").values.flatten().tolist() == [0, 1, 0, 3, 0]
    assert given(batch, observed, "masked").observed is observed


@pytest.mark.slow
def test_ett(tmp_path: Path) -> None:
    hours = pd.date_range("2016-07-01", periods=14400, freq="h")
    noise = np.random.default_rng(0).normal(size=(2, 14400))
    cycle = np.sin(2 * np.pi * np.arange(14400) / 24)
    pd.DataFrame({"date": hours, "a": cycle + noise[0], "b": cycle - noise[1]}).to_csv(tmp_path / "t.csv", index=False)
    data = "data: {window: 72, context: 48, validation_start: '2017-06-26', test_start: '2017-10-24'}\n"
    small = (
        "tokenizer: {kind: sensors, patch_time: 24}\ntraining: {steps: 2}\nencoder: {width: 8, depth: 1, heads: 2}\n"
    )
    (tmp_path / "small.yaml").write_text(data + small)
    words = ["t.csv", "--config", "small.yaml", "--out", "out", "--seeds", "0", "1", "--horizons", "24"]
    script = str(ANALYSIS / "ett.py")
    done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = pd.read_csv(tmp_path / "out/scores.csv")
    # three methods without a seed, and eight with two of them, have three errors each
    assert len(scores) == 3 * (3 + 8 * 2)
    found = scores[scores["metric"] == "mse"].groupby("method")["value"].mean()
    # Half of each series' variance is a cycle that a ridge knows, the other half noise that nothing knows.
    assert found["raw_ridge"] < 0.75 < found["seasonal_naive"]
    assert found["jepa_target_window"] < 0.75
    assert "| PatchTST, self-supervised, linear probe (published) | 0.322 |" in done.stdout


@pytest.mark.slow
def test_ablation(tmp_path: Path) -> None:
    travelling_waves(250, nlat=6, nlon=12).to_netcdf(tmp_path / "waves.nc")
    words = ["--archive", "waves=waves.nc", "--out", "out", "--seeds", "0", "1", "--steps", "4", "--batch-size", "4"]
    words += ["--only", "default", "untrained", "salt", "masks: twice as far ahead"]
    script = str(ANALYSIS / "ablation.py")
    done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = pd.read_csv(tmp_path / "out/scores.csv", keep_default_na=False)
    cells = scores.groupby(["variant", "seed"])["metric"].count()
    assert cells["untrained"].tolist() == [10, 10]  # four leads of validation and test, rank and width of the latents
    assert cells.drop("untrained").tolist() == [13] * 6  # and three numbers of metrics.csv
    assert len([line for line in done.stdout.splitlines() if line.startswith("| waves |")]) == 4
    again = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert again.stdout == done.stdout  # from what is kept


def test_a_difference_of_the_ablation_is_worked_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ANALYSIS)
    ablation = importlib.import_module("ablation")
    # One lead, one variable, constant errors: roots of 4 / 16 and of the seeds' mean (1 + 3.5) / 2 = 9 / 4 over 16.
    cells = {}
    for variant, seeds in {"default": (1.0, 3.5), "other": (4.0, 4.0)}.items():
        cells[variant] = [ablation.Cell("a", "", variant, seed, tmp_path / f"{variant}{seed}") for seed in range(2)]
        for cell, error in zip(cells[variant], seeds, strict=True):
            cell.folder.mkdir()
            test = np.full((1, 1, 40), error)
            np.savez(cell.errors, series=1, test=test, test_climatology=np.full((1, 1, 40), 16.0))
    found = ablation.difference(cells["other"], cells["default"])
    np.testing.assert_allclose(found, 2 / 4 - 1.5 / 4)


@pytest.mark.slow
def test_physics(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(30, 40, 16, 16)).astype(np.float32)
    size = np.linspace(1, 2, 30)
    flow = xr.Dataset(
        {"u": (("trajectory", "time", "x", "y"), noise * size[:, None, None, None].astype(np.float32))},
        {"time": np.arange(40), "amplitude": ("trajectory", size)},
        {"boundary": "periodic in x and y"},
    )
    flow.to_netcdf(tmp_path / "flow.nc")
    words = ["--archive", "flow=flow.nc", "--out", "out", "--seeds", "0", "--steps", "2"]
    script = str(ANALYSIS / "physics.py")
    done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = pd.read_csv(tmp_path / "out/scores.csv")
    told = scores.query("metric == 'r2' and split == 'test'")
    assert set(told["probe"]) == {"ridge", "attentive", "knn", "mlp"}
    # noise of another amplitude for each trajectory: the standard deviation of a field tells it all
    found = told.set_index(["method", "probe"])["value"]
    assert found["moments_and_spectrum", "ridge"] > 0.9
    # the mean of a field scores 1 by definition, and persistence of noise is off by sqrt(2)
    vrmse = scores.query("metric == 'vrmse' and lead == '1'").set_index("method")["value"]
    assert vrmse["climatology"] == pytest.approx(1, abs=0.01)
    assert vrmse["persistence"] == pytest.approx(2**0.5, abs=0.05)
    assert "| flow | u | persistence |" in done.stdout


@pytest.mark.slow
def test_positions(tmp_path: Path) -> None:
    travelling_waves(250, nlat=6, nlon=12).to_netcdf(tmp_path / "waves.nc")
    words = ["--archive", "waves=waves.nc", "--out", "out", "--seeds", "0", "--steps", "4", "--batch-size", "4"]
    script = str(ANALYSIS / "positions.py")
    done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = pd.read_csv(tmp_path / "out/scores.csv", keep_default_na=False)
    errors = scores[scores["metric"] == "test_rmse_over_climatology"].groupby("variant")["value"].mean()
    assert set(errors.index) == {"default", "rotary and fourier", "rotary"}
    assert errors.nunique() == 3


def test_turned_attention_knows_differences_of_places_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ANALYSIS)
    positions = importlib.import_module("positions")
    torch.manual_seed(0)
    attention, tokens = positions.RotaryAttention(8, 2), torch.randn(1, 5, 8)
    place, frequencies = torch.randn(1, 5, 3), torch.randn(3, 2, 2)

    def attended(where: torch.Tensor) -> torch.Tensor:
        angles = torch.einsum("bnc,chp->bnhp", where, frequencies)
        attention.turn = angles.cos(), angles.sin()
        return attention(tokens, tokens)

    torch.testing.assert_close(attended(place + torch.tensor([1.0, -2.0, 0.5])), attended(place))
    assert not torch.allclose(attended(2 * place), attended(place), atol=1e-3)
