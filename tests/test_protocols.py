from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from tiny import tiny_config

from sciJEPA.archive import open_archive
from sciJEPA.cli import main
from sciJEPA.errors import UserError
from sciJEPA.hub import load
from sciJEPA.judging.baselines import Persistence
from sciJEPA.judging.parameters import grouped_r2, trajectory_parameters
from sciJEPA.judging.protocol_ett import ett, ett_table
from sciJEPA.judging.protocols import (
    issued_at,
    protocol,
    vrmse_of,
    weatherbench,
    well,
    well_leads,
)
from sciJEPA.judging.series_windows import Series, linear_errors
from sciJEPA.panel import opened_problem
from sciJEPA.pretrain import pretrain
from sciJEPA.synthetic import travelling_waves

ROWS = (300, 100, 100)


def table(rows: int = 520, seed: int = 0) -> xr.Dataset:
    """Two hourly series: a day's cycle with noise, and a random walk."""
    rng = np.random.default_rng(seed)
    time = pd.date_range("2001-01-01", periods=rows, freq="1h")
    cycle = np.sin(2 * np.pi * np.arange(rows) / 24) + 0.1 * rng.normal(size=rows)
    return xr.Dataset({"a": ("time", cycle), "b": ("time", rng.normal(size=rows).cumsum())}, {"time": time})


# --- ETT


def test_windows_of_the_test_rows_are_all_there() -> None:
    series = Series.of(open_archive(table()), ROWS)
    # 100 rows hold 100 - 24 + 1 windows that are 24 rows ahead; the look-back lies before them
    assert series.issues(2, 48, 24).tolist() == list(range(400, 477))
    assert series.issues(1, 48, 24)[[0, -1]].tolist() == [300, 376]
    # in the training rows the look-back must lie inside
    assert series.issues(0, 48, 24)[[0, -1]].tolist() == [48, 276]


def test_units_are_those_of_the_training_rows() -> None:
    ds = table()
    series = Series.of(open_archive(ds), ROWS)
    np.testing.assert_allclose(series.values[:300].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(series.values[:300].std(axis=0), 1, atol=1e-6)
    by_hand = (ds["b"].values - ds["b"].values[:300].mean()) / ds["b"].values[:300].std()
    np.testing.assert_allclose(series.values[:, 1], by_hand[:500], atol=1e-5)


def test_repeating_the_last_value_by_hand() -> None:
    rows = ett(table(), horizons=[12], rows=ROWS, methods=["persistence"], progress=False)
    values = Series.of(open_archive(table()), ROWS).values
    errors = np.array([values[i : i + 12] - values[i - 1] for i in range(400, 489)])
    found = rows.set_index("metric")
    assert found["n"].tolist() == [89, 89, 89]
    assert found.loc["mse", "value"] == pytest.approx((errors**2).mean())
    assert found.loc["mae", "value"] == pytest.approx(np.abs(errors).mean())
    # a unit of MASE is the mean difference of training rows a day apart, of each series
    naive = np.abs(values[24:300] - values[:276]).mean(axis=0)
    assert found.loc["mase", "value"] == pytest.approx((np.abs(errors).mean(axis=(0, 1)) / naive).mean())


def test_a_cycle_is_repeated_and_a_ridge_learns_it() -> None:
    rows = ett(table()[["a"]], horizons=[24], look_back=48, rows=ROWS, progress=False)
    found = rows[rows["metric"] == "mse"].set_index("method")["value"]
    # noise of 0.1 in units of 0.71 or so: variance 0.02, twice that for a value that is repeated
    assert found["seasonal_naive"] == pytest.approx(0.04, rel=0.2)
    assert found["raw_ridge"] < 0.035
    assert found["persistence"] > 1


def test_one_map_serves_all_series() -> None:
    # Of two series with opposite slopes one map without an intercept knows both.
    time = pd.date_range("2001-01-01", periods=520, freq="1h")
    slope = np.arange(520.0)
    ds = xr.Dataset({"up": ("time", slope), "down": ("time", -2 * slope)}, {"time": time})
    series = Series.of(open_archive(ds), ROWS)

    def steps(issues: np.ndarray) -> list[np.ndarray]:
        return [np.diff(series.past(issues, 2), axis=2)]

    squares, _ = linear_errors(series, [6], steps, 2)[(0,)][6]
    assert squares.max() < 1e-6


def test_the_test_rows_change_no_forecast_of_the_validation_rows() -> None:
    ds = table()
    changed = ds.copy(deep=True)
    changed["a"][400:] = 1e3
    one, two = (Series.of(open_archive(each), ROWS) for each in (ds, changed))
    np.testing.assert_array_equal(one.values[:400], two.values[:400])


def test_a_choice_on_the_validation_rows_reads_no_test_row() -> None:
    ds = table()
    changed = ds.copy(deep=True)
    changed["a"][400:] = 1e3
    options = {"horizons": [12, 24], "look_back": 48, "rows": ROWS, "split": "validation", "progress": False}
    one, two = (ett(each, **options) for each in (ds, changed))
    pd.testing.assert_frame_equal(one, two)
    assert one["n"].unique().tolist() == [89, 77]  # of 100 rows
    values = Series.of(open_archive(ds), ROWS).values
    by_hand = np.mean([(values[i : i + 12] - values[i - 1]) ** 2 for i in range(300, 389)])
    assert one.query("method == 'persistence' and lead == '12' and metric == 'mse'")["value"].item() == (
        pytest.approx(by_hand)
    )
    with pytest.raises(UserError, match="split must be validation or test, got 'train'"):
        ett(ds, **{**options, "split": "train"})


def test_a_table_as_the_literature_prints_it() -> None:
    text = ett_table(ett(table(), horizons=[12, 24], rows=ROWS, methods=["seasonal_naive", "persistence"]))
    head, *lines = text.splitlines()
    assert head.split()[-2:] == ["12", "24"]  # in the order that was asked for
    assert [line.split()[0] for line in lines] == ["seasonal_naive", "persistence"]


def test_the_command_prints_that_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(14400).to_netcdf(tmp_path / "table.nc")
    words = ["protocol", "ett", str(tmp_path / "table.nc"), "--horizon", "24", "--method", "seasonal_naive,persistence"]
    assert main([*words, "--out", str(tmp_path / "scores.csv")]) == 0
    rows = pd.read_csv(tmp_path / "scores.csv", dtype={"lead": str})
    assert capsys.readouterr().out.rstrip() == ett_table(rows).rstrip()


def test_latents_of_a_run_are_judged_beside_the_window(tmp_path: Path) -> None:
    table()[["a"]].to_netcdf(tmp_path / "table.nc")
    data = {
        "archive": str(tmp_path / "table.nc"),
        "window": 48,
        "context": 32,
        "split": [300 / 520, 100 / 520, 120 / 520],
    }
    model = pretrain(tiny_config(data=data, tokenizer={"kind": "sensors", "patch_time": 8}, training__steps=5),
                     tmp_path / "run", progress=False)  # fmt: skip
    rows = ett(tmp_path / "table.nc", tmp_path / "run", horizons=[12], look_back=48, rows=ROWS, progress=False)
    found = rows[rows["metric"] == "mse"].set_index("method")["value"]
    encoders = ("random_init", "mae", "jepa_online", "jepa_target")
    assert set(found.index) >= {"raw_ridge", *encoders, *(f"{name}_window" for name in encoders)}
    assert found["jepa_target"] < found["persistence"]
    (trained,) = (tmp_path / "run" / "controls").glob("mae-*")  # once, and kept
    assert load(trained).config.objective.target == "mae"
    assert (rows["n"] == 89).all()
    with pytest.raises(UserError, match="statistics must come from training times only"):
        ett(table()[["a"]], model, horizons=[12], rows=(200, 100, 100), methods=["jepa_target"], progress=False)


def test_etth1(shared_data: Path) -> None:
    path = shared_data / "sensors" / "ETTh1.csv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = ett(path, horizons=[96], methods=["persistence"], progress=False).set_index("metric")
    assert rows["n"].tolist() == [2785, 2785, 2785]
    assert rows["value"].round(3).tolist()[:2] == [1.294, 0.713]


@pytest.mark.slow
def test_ridge_on_the_raw_window_of_etth1(shared_data: Path) -> None:
    path = shared_data / "sensors" / "ETTh1.csv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = ett(path, horizons=[96, 720], methods=["raw_ridge"], progress=False)
    found = rows[rows["metric"] == "mse"].set_index("lead")["value"]
    assert found["96"] == pytest.approx(0.363, abs=0.003)
    assert found["720"] == pytest.approx(0.424, abs=0.006)


def test_what_the_protocol_cannot_score_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs 14400 rows of one series of times, .* has 520"):
        ett(table())
    holed = table()
    holed["a"][5] = np.nan
    with pytest.raises(UserError, match=r"1 of 1000 values of .* are missing"):
        ett(holed, rows=ROWS)
    with pytest.raises(UserError, match="no method 'jepa_target' here"):
        ett(table(), rows=ROWS, methods=["jepa_target"])
    with pytest.raises(UserError, match="hold no window of 290 rows and 24 ahead"):
        ett(table(), rows=ROWS, horizons=[24], look_back=290)


# --- WeatherBench


def test_weatherbench_scores_the_headline_fields_of_the_year(tmp_path: Path) -> None:
    ds = travelling_waves(100, variables=("z", "t"), levels=(500, 850), cadence="6h")
    ds = ds.assign_coords(time=pd.date_range("2019-10-20", periods=400, freq="6h"))
    ds.to_zarr(tmp_path / "era5.zarr", consolidated=False)
    data = {"archive": str(tmp_path / "era5.zarr"), "window": 4, "context": 2, "validation_start": "2019-12-10",
            "test_start": "2020-01-01"}  # fmt: skip
    model = pretrain(tiny_config(data=data, training__steps=5), tmp_path / "run", progress=False)
    rows = weatherbench(tmp_path / "era5.zarr", model, progress=False)
    assert set(rows["variable"]) == {"z@500", "t@850"}
    assert set(rows["lead"]) == {"3D", "5D"}
    # 292 steps come before 2020; from 1 January 0 UTC to 27 January 18 UTC there are 27 days and 54 issue times, of
    # which those until 22 January 18 UTC are followed by five days: 22 days, 44 issue times
    assert set(rows[rows["metric"] == "rmse"]["n"]) == {44}
    problem = opened_problem(model, ds, None, ["5D"])
    assert set(problem.archive.time[issued_at(problem, "2020")].hour) == {0, 12}
    with pytest.raises(UserError, match="no issue time '2031'"):
        issued_at(problem, "2031")


# --- The Well


def simulations(count: int = 12, steps: int = 20) -> xr.Dataset:
    """Waves in a periodic box whose speed is a parameter; two trajectories share each."""
    speed = np.repeat(np.linspace(0.2, 1.2, count // 2), 2)
    phase = np.random.default_rng(0).uniform(0, 2 * np.pi, count)
    x, time = np.arange(8) * 2 * np.pi / 8, np.arange(steps)
    angle = x[:, None] - speed[:, None, None, None] * time[:, None, None] + phase[:, None, None, None]
    values = np.sin(angle) * np.ones(8)
    coords = {"time": time.astype(float), "x": x, "y": x, "speed": ("trajectory", speed)}
    ds = xr.Dataset({"u": (("trajectory", "time", "x", "y"), values)}, coords)
    ds.attrs["boundary_conditions"] = '{"x": ["periodic", "periodic"], "y": ["periodic", "periodic"]}'
    return ds


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on simulations, beside its archive."""
    folder = tmp_path_factory.mktemp("well")
    simulations().to_zarr(folder / "waves.zarr", consolidated=False)
    data = {"archive": str(folder / "waves.zarr"), "window": 4, "context": 2}
    tokenizer = {"kind": "simulation", "patch": 4, "stem": "linear"}
    pretrain(tiny_config(data=data, tokenizer=tokenizer, training__steps=20), folder / "run", progress=False)
    return folder


def test_one_step_and_rollout_and_parameters(simulated: Path) -> None:
    rows = well(simulated / "waves.zarr", simulated / "run", methods=["persistence", "raw_ridge"], progress=False)
    vrmse = rows[rows["metric"] == "vrmse"].set_index(["method", "probe", "lead"])["value"]
    # the window is a circle for each speed: linear maps know nothing of speeds that differ, but more than persistence
    for kind in ("ridge", "local"):
        assert vrmse["raw_ridge", kind, "1"] < 0.5 * vrmse["persistence", "none", "1"]
    assert set(vrmse.index.get_level_values("lead")) == {"1", "6:12"}
    told = rows[rows["metric"] == "r2"]
    assert set(told["variable"]) == {"speed"}
    assert set(told["method"]) == {"random_init", "jepa_target", "moments_and_spectrum"}
    assert set(told["probe"]) == {"ridge", "attentive", "knn"}
    assert (told["value"] <= 1).all() and (told["low"] <= told["value"]).all()


def test_trajectories_of_training_are_not_judged_in_another_file(simulated: Path) -> None:
    seen = pretrain_of(simulated).normalizer.series
    assert len(seen) == 4 and seen[0].startswith("speed ")  # of six speeds 70 %
    methods = {"methods": ["persistence"], "progress": False}
    ds = simulations()
    for other in (ds.isel(trajectory=slice(None, None, -1)), ds.astype("f4")):  # the same speeds, the same groups
        assert len(well(other, simulated / "run", **methods))
    # Other trajectories: those of training are shuffled among them, and some of them are judged.
    more = simulations(18).assign_coords(speed=("trajectory", np.r_[ds.speed.values, ds.speed.values[:6] + 3]))
    with pytest.raises(
        UserError, match=r"trained on 1 of the 3 sets of parameters that are judged, the first speed 1\.2"
    ):
        well(more, simulated / "run", **methods)
    # Where the archive says what is what, it is taken at its word.
    part = np.where(more.speed > 2, "test", "train").astype("U5")
    part[[0, 1]] = "valid"
    assert len(well(more.assign_coords(split=("trajectory", part)), simulated / "run", **methods))


def test_vrmse_by_hand(simulated: Path) -> None:
    problem = opened_problem(pretrain_of(simulated), simulated / "waves.zarr", None, ["1", "3"])
    found = vrmse_of(problem, Persistence(problem.reader, problem.leads))
    assert found.shape == (2, 1, len(problem.test))
    values = problem.archive.read(0, len(problem.archive))[:, 0]
    step = int(problem.test[4])
    later = values[step + 3]
    by_hand = np.sqrt(((values[step] - later) ** 2).mean() / later.var())
    assert found[1, 0, 4] == pytest.approx(by_hand, rel=1e-3)


def pretrain_of(folder: Path):  # type: ignore[no-untyped-def]
    return load(folder / "run")


def test_leads_that_stand_for_a_span() -> None:
    assert well_leads(5) == [1]
    assert well_leads(31) == [1, 6, 9, 12, 13, 21, 30]


def test_parameters_are_numbers_that_differ() -> None:
    ds = simulations().assign_coords(width=("trajectory", np.ones(12)))
    assert trajectory_parameters(open_archive(ds)) == ["speed"]
    assert trajectory_parameters(open_archive(ds.reset_coords("speed"))) == ["speed"]  # a variable is as good


def test_an_interval_draws_whole_trajectories() -> None:
    # 40 windows each of 4 trajectories: were they drawn one by one, the interval would be three times narrower
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), 40)
    truth = np.array([0.0, 1.0, 2.0, 3.0])[groups]
    predicted = truth + rng.normal(size=4)[groups]
    value, low, high = grouped_r2(truth, predicted, groups)
    assert value == pytest.approx(1 - ((truth - predicted) ** 2).sum() / ((truth - 1.5) ** 2).sum())
    _, low_single, high_single = grouped_r2(truth, predicted, np.arange(160))
    assert low < low_single < value < high_single < high


def test_protocols_by_name() -> None:
    assert len(protocol("ett", table(), horizons=[6], rows=ROWS, methods=["persistence"])) == 3
    with pytest.raises(UserError, match="no protocol 'kaggle'; choose from ett, weatherbench, well"):
        protocol("kaggle", table())
    with pytest.raises(UserError, match="judges a run"):
        protocol("well", table())
