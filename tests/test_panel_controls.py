import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from tiny import tiny_config

from sciJEPA.archive import open_archive
from sciJEPA.errors import UserError
from sciJEPA.forecasting.issuing import forecast
from sciJEPA.hub import Model, load
from sciJEPA.judging.baselines import SeasonalNaive, cycle_steps, fields, patch_components, windows
from sciJEPA.judging.controls import (
    CONTROLS,
    JUDGED,
    QUICK,
    Methods,
    chosen_controls,
    judged_methods,
    run_configuration,
)
from sciJEPA.judging.panel_cache import fingerprint, open_cache
from sciJEPA.loader import WindowReader
from sciJEPA.normalize import fit_normalizer
from sciJEPA.panel import opened_problem, probe
from sciJEPA.pretrain import pretrain
from sciJEPA.scoring.score_table import format_table
from sciJEPA.synthetic import travelling_waves

LEADS = ["1D", "3D"]


@pytest.fixture(scope="module")
def run(waves: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose folder the panel may write in."""
    out = tmp_path_factory.mktemp("controls") / "run"
    pretrain(tiny_config(waves), out, progress=False)
    return out


@pytest.fixture(scope="module")
def everything(run: Path, waves: Path) -> pd.DataFrame:
    """All controls, and two kinds of probes."""
    return probe(run, waves, lead=LEADS, probes=["ridge", "knn"], progress=False)


def rmse(rows: pd.DataFrame) -> pd.Series:
    return rows[rows["metric"] == "rmse"].set_index(["method", "probe", "lead"])["value"].sort_index()


def test_all_controls_run_by_default(everything: pd.DataFrame) -> None:
    # a seasonal naive forecast is for stations
    wanted = {*CONTROLS, "supervised", *JUDGED} - {"seasonal_naive"}
    assert set(rmse(everything).index.get_level_values("method")) == wanted
    assert np.isfinite(rmse(everything)).all()


def test_every_kind_of_probe_is_on_every_kind_of_latents(everything: pd.DataFrame) -> None:
    kinds = rmse(everything)[:, :, "1D"].reset_index().groupby("method")["probe"].agg(set)
    for method in ("random_init", "mae", "jepa_online", "jepa_target"):
        assert kinds[method] == {"ridge", "knn"}
    assert kinds["pca"] == kinds["raw_ridge"] == kinds["latent_rollout"] == {"ridge"}
    assert kinds["supervised"] == kinds["persistence"] == {"none"}


def test_the_ceiling_is_never_the_best_control(everything: pd.DataFrame) -> None:
    rows = everything[everything["metric"] == "difference_to_best_control"]
    reference = rows[(rows["value"] == 0) & (rows["low"] == 0) & (rows["high"] == 0)]["method"]
    assert "supervised" not in set(reference)
    assert len(reference) >= 2


def test_p_values_are_adjusted_for_the_cells_of_the_table(everything: pd.DataFrame) -> None:
    plain, adjusted = (everything[everything["metric"] == name] for name in ("p_value", "p_value_adjusted"))
    # two leads; two probes on each encoder, what is foreseen, and the rollout
    assert len(plain) == len(adjusted) == 2 * 6
    assert set(plain["method"]) == set(JUDGED)
    assert (adjusted["value"].to_numpy() >= plain["value"].to_numpy()).all()
    assert adjusted["value"].min() >= 12 * plain["value"].min() - 1e-12


def test_the_rank_of_the_rollout_is_in_the_table(everything: pd.DataFrame) -> None:
    ranks = everything[everything["metric"] == "rank"]
    assert ranks.groupby("method")["lead"].agg(list).to_dict() == {"latent_rollout": LEADS, "jepa_target": LEADS}
    assert ((ranks["value"] >= 1) & (ranks["value"] <= 16)).all()
    printed = format_table(everything)
    assert "effective rank of latents" in printed
    assert "supervised, end to end" in printed


def test_a_predictor_that_never_saw_the_future_foresees_nothing(waves: Path, tmp_path: Path) -> None:
    config = tiny_config(waves, masking={"forecast": 0, "blocks": 1}, training__steps=2)
    model = pretrain(config, tmp_path / "run", progress=False)
    problem = opened_problem(model, waves, None, LEADS)
    assert judged_methods(problem, model) == ("jepa_online", "jepa_target")
    assert "mae_predicted" not in chosen_controls("all", problem)
    with pytest.raises(UserError, match="a predictor that was trained on times to come"):
        forecast(model, waves, method="jepa_predicted", lead=LEADS)


def test_the_same_again_takes_no_fit(
    everything: pd.DataFrame, run: Path, waves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Methods, "make", None)
    again = probe(run, waves, lead=LEADS, probes=["ridge", "knn"], out=tmp_path / "probe", progress=False)
    pd.testing.assert_frame_equal(again, everything)
    forecast = xr.open_zarr(tmp_path / "probe/forecasts.zarr", consolidated=False)
    assert forecast.attrs["method"] == "jepa_target"


def test_a_killed_probe_goes_on_with_the_method_that_it_was_at(
    run: Path, waves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = Methods.make

    def make(self: Methods, name: str, kind: str = "ridge"):  # type: ignore[no-untyped-def]
        if len(made) == 3:
            made.append("killed")
            raise KeyboardInterrupt
        made.append(name)
        return real(self, name, kind)

    monkeypatch.setattr(Methods, "make", make)
    options = {"lead": ["2D"], "controls": ["damped_persistence", "raw_ridge"], "probes": "ridge"}
    options["cache"] = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        probe(run, waves, progress=False, **options)
    probe(run, waves, progress=False, **options)
    assert made == ["persistence", "climatology", "damped_persistence", "killed", "raw_ridge", *JUDGED]


def test_another_archive_is_not_taken_for_this_one(waves: Path, tmp_path: Path) -> None:
    copy = tmp_path / "waves.zarr"
    shutil.copytree(waves, copy)
    before = fingerprint(open_archive(copy))
    assert before == fingerprint(open_archive(copy))
    changed = travelling_waves(200).load()
    changed["z"][{"time": 137}] += 1
    shutil.rmtree(copy)
    changed.to_zarr(copy, consolidated=False)
    assert fingerprint(open_archive(copy)) != before
    assert fingerprint(open_archive(changed)) is None  # what is in memory may change at any time


def test_the_masked_autoencoder_is_the_run_but_for_its_target(everything: pd.DataFrame, run: Path) -> None:
    (folder,) = (run / "controls").glob("mae-*")
    trained, own = load(folder).config, load(run).config
    assert trained.objective.target == "mae"
    assert (trained.objective.variance, trained.objective.covariance) == (0, 0)
    assert (trained.encoder, trained.predictor, trained.masking) == (own.encoder, own.predictor, own.masking)
    assert (trained.training.steps, trained.seed) == (own.training.steps, own.seed)


def test_without_the_archive_of_the_run_no_masked_autoencoder(tmp_path: Path) -> None:
    travelling_waves(200).to_zarr(tmp_path / "waves.zarr", consolidated=False)
    pretrain(tiny_config(tmp_path / "waves.zarr", training__steps=2), tmp_path / "run", progress=False)
    (tmp_path / "waves.zarr").rename(tmp_path / "moved.zarr")
    with pytest.raises(UserError, match=r"masked autoencoder .* is not there; move it back, or leave mae out"):
        probe(tmp_path / "run", tmp_path / "moved.zarr", lead=["1D"], progress=False)


def test_fewer_labels_make_no_better_probe(run: Path, waves: Path) -> None:
    options = {"controls": ["raw_ridge"], "probes": "ridge", "labels": [0.1, 1.0]}
    rows = probe(run, waves, lead=["1D"], progress=False, **options)
    assert set(rows["labels"]) == {0.1, 1.0}
    errors = rows[rows["metric"] == "rmse"].set_index(["method", "labels"])["value"]
    for method in ("raw_ridge", "jepa_target"):
        assert errors[method, 0.1] > errors[method, 1.0]
    for method in ("persistence", "climatology"):
        assert errors[method, 0.1] == errors[method, 1.0]
    assert "10% of the labels" in format_table(rows)


# --- names


def test_sets_of_controls_have_names(model: Model) -> None:
    problem = opened_problem(model, travelling_waves(200), None, ["1D"])
    assert chosen_controls("quick", problem) == tuple(name for name in QUICK if name != "seasonal_naive")
    assert chosen_controls(["quick", "mae"], problem)[-1] == "mae"
    assert chosen_controls("persistence", problem) == ("persistence", "climatology")
    assert "supervised" in chosen_controls("all", problem)


def test_an_unknown_probe_is_refused(run: Path, waves: Path) -> None:
    with pytest.raises(UserError, match="no probe 'forest'; choose from ridge, knn, mlp, attentive"):
        probe(run, waves, probes=["forest"])


# --- the seasonal naive forecast


def hourly(days: int = 20, cadence: str = "1h") -> xr.Dataset:
    """A day's cycle that grows by 1 a day at two stations."""
    time = pd.date_range("2001-01-01", periods=days * 24, freq=cadence)
    values = np.sin(2 * np.pi * np.arange(len(time)) / 24)[:, None] + (np.arange(len(time)) // 24)[:, None] + [0.0, 5.0]
    return xr.Dataset({"load": (("time", "station"), values)}, {"time": time, "station": ["a", "b"]})


def test_the_cycle_is_the_calendars() -> None:
    assert cycle_steps(open_archive(hourly())) == 24
    assert cycle_steps(open_archive(hourly(cadence="6h"))) == 4
    assert cycle_steps(open_archive(hourly(cadence="1D"))) == 365
    assert cycle_steps(open_archive(hourly(cadence="MS"))) == 12
    assert cycle_steps(open_archive(hourly(cadence="YS").isel(time=slice(0, 20)))) is None
    assert cycle_steps(open_archive(hourly().assign_coords(time=np.arange(480.0)))) is None


def test_the_seasonal_naive_forecast_is_the_value_of_the_day_before() -> None:
    archive = open_archive(hourly())
    normalizer = fit_normalizer(archive, ((0, 240),))
    reader = WindowReader(archive, normalizer)
    steps, leads = np.array([30, 100]), [1, 24, 30]
    truth = hourly()["load"].values
    # at 30 h the value is that of 48 h earlier: 30 - 48 = -18 from the issue time
    for lead, back, found in zip(leads, (23, 0, 18), SeasonalNaive.of(reader, leads).predict(steps), strict=True):
        physical = normalizer.invert(found.reshape(2, 1, 2), archive.time[steps + lead])[:, 0]
        np.testing.assert_allclose(physical, truth[steps - back], atol=1e-4)


def test_before_the_series_begins_it_is_climatology() -> None:
    archive = open_archive(hourly())
    reader = WindowReader(archive, fit_normalizer(archive, ((0, 240),)))
    assert (SeasonalNaive.of(reader, [1]).predict(np.array([5]))[0] == 0).all()


# --- components of patches


def test_as_many_components_as_values_lose_nothing(model: Model) -> None:
    problem = opened_problem(model, travelling_waves(200), None, ["1D"])
    tokenizer = problem.domain.tokenizer
    # patches of 4 x 4 cells in 2 steps: 32 values a place, 8 places
    rows = patch_components(problem.reader, tokenizer, problem.context, problem.train, 32)
    assert rows.width == 8 * 32
    raw = windows(problem.reader, problem.context)
    squares = (raw.read(problem.test) - raw.read(problem.test).mean(axis=0)) ** 2
    own = rows.read(problem.test)
    np.testing.assert_allclose(((own - own.mean(axis=0)) ** 2).sum(), squares.sum(), rtol=1e-5)
    assert patch_components(problem.reader, tokenizer, problem.context, problem.train, 4).width == 8 * 4
    assert fields(problem.reader).width == 128


def test_a_cache_in_no_folder_leaves_nothing(model: Model, tmp_path: Path) -> None:
    archive, _ = model.open(travelling_waves(200))
    with open_cache(None, archive, tmp_path) as cache:
        assert not cache.lasting
        assert cache.folder.is_dir()
    assert list(tmp_path.iterdir()) == []
    assert run_configuration(None, model) == model.config


def test_at_stations_with_a_cycle_the_seasonal_naive_forecast_is_there(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ds = hourly(30)
    ds["load"] = ds["load"] * 0 + np.sin(2 * np.pi * ds["time"].dt.hour / 24) + 0.1 * rng.normal(size=ds["load"].shape)
    ds.to_netcdf(tmp_path / "stations.nc")
    data = {"archive": str(tmp_path / "stations.nc"), "window": 24, "context": 16}
    config = tiny_config(data=data, tokenizer={"kind": "sensors", "patch_time": 4}, training__steps=5)
    pretrain(config, tmp_path / "run", progress=False)
    rows = probe(tmp_path / "run", tmp_path / "stations.nc", lead=["1H", "12H"], progress=False)
    errors = rmse(rows)
    assert set(errors.index.get_level_values("method")) == {*CONTROLS, "supervised", *JUDGED}
    assert np.isfinite(errors).all()
    # noise of 0.1 at both ends; half a day later persistence is as wrong as can be
    assert errors["seasonal_naive", "none", "12H"] == pytest.approx(0.1 * 2**0.5, rel=0.1)
    assert errors["persistence", "none", "12H"] > 1
    assert errors["raw_ridge", "ridge", "12H"] < 0.13
