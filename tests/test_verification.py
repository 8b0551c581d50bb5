from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import sciJEPA
from sciJEPA.cli import main
from sciJEPA.errors import UserError
from sciJEPA.forecasting.issuing import forecast
from sciJEPA.forecasting.layout import from_weatherbench, read_forecast, to_weatherbench, write_forecasts
from sciJEPA.forecasting.verification import score
from sciJEPA.panel import probe
from sciJEPA.synthetic import travelling_waves


@pytest.fixture(scope="module")
def stored(run_folder: Path, model, waves: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[no-untyped-def]
    out = tmp_path_factory.mktemp("forecast") / "forecast.zarr"
    forecast(model, waves, lead=["1D", "3D"], out=out, progress=False)
    return out


def numbers(rows: pd.DataFrame) -> pd.Series:
    return rows.set_index(["method", "lead", "metric"])["value"]


def test_the_layout_is_weatherbenchs(stored: Path) -> None:
    ds = xr.open_zarr(stored, consolidated=False)
    # test split: steps 160 to 199
    assert dict(ds.sizes) == {"time": 40, "prediction_timedelta": 2, "latitude": 8, "longitude": 16}
    assert (
        ds["prediction_timedelta"].values.tolist()
        == np.array([24, 72], "m8[h]").astype(ds["prediction_timedelta"].dtype).tolist()
    )
    raw = xr.open_zarr(stored, consolidated=False, decode_times=False)
    assert raw["prediction_timedelta"].attrs["units"] == "hours"
    assert str(ds["time"].values[0])[:10] == "2001-06-10"
    assert ds["z"].attrs["units"] == "m"
    assert ds.attrs["method"] == "jepa_target"


def test_names_there_and_back() -> None:
    ours = xr.Dataset(
        {"z": (("init_time", "lead_time", "member"), np.zeros((2, 1, 3)))},
        {"init_time": np.array(["2001-01-01", "2001-01-02"], "M8[ns]"), "lead_time": np.array([1], "m8[D]")},
    )
    there = to_weatherbench(ours)
    assert set(there.dims) == {"time", "prediction_timedelta", "realization"}
    back = from_weatherbench(there)
    assert set(back.dims) == {"init_time", "lead_time", "member"}
    np.testing.assert_array_equal(back["valid_time"][:, 0], ours["init_time"] + np.timedelta64(1, "D"))
    with pytest.raises(UserError, match="needs the dimension prediction_timedelta"):
        from_weatherbench(there.isel(prediction_timedelta=0, drop=True))


def test_scores_are_those_of_the_panel(stored: Path, model, waves: Path) -> None:  # type: ignore[no-untyped-def]
    found = numbers(score(stored, waves))
    rows = probe(model, waves, lead=["1D", "3D"], controls="persistence", probes="ridge", progress=False)
    panel = numbers(rows[rows["metric"] != "rank"])
    for lead in ("1D", "3D"):
        # the panel's issue times are 36, with a whole window inside the test split; these are 37
        assert found["jepa_target", lead, "rmse"] == pytest.approx(panel["jepa_target", lead, "rmse"], rel=0.02)
        assert found["persistence", lead, "rmse"] == pytest.approx(panel["persistence", lead, "rmse"], rel=0.02)
        assert found["jepa_target", lead, "mae"] < found["jepa_target", lead, "rmse"]
        for scale in ("large", "medium"):  # the waves and some of the noise; of the rest a probe forecasts little
            metric = f"power_ratio@{scale}"
            assert found["jepa_target", lead, metric] == pytest.approx(panel["jepa_target", lead, metric], rel=0.05)


def test_regions_and_seasons_of_a_forecast() -> None:
    truth = travelling_waves(200, variables=("z", "t")).assign_coords(latitude=np.linspace(-70, 70, 8))
    issued = truth["time"].values[130:170]  # valid from 12 May (a day ahead) to 21 June
    ahead = np.array([1, 3], "m8[D]").astype("m8[ns]")
    fields = {
        name: (
            ("time", "prediction_timedelta", "latitude", "longitude"),
            np.stack([truth[name].sel(time=issued + lead).values for lead in ahead], axis=1) + error,
        )
        # wrong by 3 in the tropics of z, where the rows at 10 degrees lie, and by 2 everywhere in t
        for name, error in (("z", 3.0 * (abs(truth["latitude"].values) < 20)[:, None]), ("t", 2.0))
    }
    places = {"latitude": truth["latitude"], "longitude": truth["longitude"]}
    given = xr.Dataset(fields, {"time": issued, "prediction_timedelta": ahead, **places})
    rows = score(given, truth)
    found = rows[rows["method"] == "forecast"].set_index(["variable", "lead", "metric"]).sort_index()
    for lead in ("1D", "3D"):
        for variable, region, error in (("z", "tropics", 3), ("z", "northern_extratropics", 0), ("t", "tropics", 2)):
            assert found.loc[(variable, lead, f"rmse@{region}"), "value"] == pytest.approx(error, abs=1e-3)
        assert found.loc[("t", lead, "rmse@MAM"), "value"] == pytest.approx(2, abs=1e-3)
    # issued from 11 May on: 20 spring days a day ahead, 18 three days ahead, and the rest of the 40 in summer
    assert found.loc[("z", "1D", "rmse@MAM"), "n"] == 20
    assert found.loc[("z", "3D", "rmse@JJA"), "n"] == 22


def test_scores_by_hand(waves: Path) -> None:
    truth = travelling_waves(200)["z"]
    issued = truth["time"].values[160:180]
    ahead = np.array([1, 2], "m8[D]").astype("m8[ns]")
    # wrong by 1 after one day, and by 1 or -1 in turn after two
    errors = np.stack([np.ones(20), np.resize([1.0, -1.0], 20)], axis=1)
    fields = np.stack([truth.sel(time=issued + lead).values for lead in ahead], axis=1) + errors[..., None, None]
    given = xr.Dataset(
        {"z": (("time", "prediction_timedelta", "latitude", "longitude"), fields)},
        {"time": issued, "prediction_timedelta": ahead, "latitude": truth["latitude"], "longitude": truth["longitude"]},
    )
    found = numbers(score(given, waves))
    for lead, bias in (("1D", 1.0), ("2D", 0.0)):
        assert found["forecast", lead, "rmse"] == pytest.approx(1, rel=1e-4)
        assert found["forecast", lead, "mae"] == pytest.approx(1, rel=1e-4)
        assert found["forecast", lead, "bias"] == pytest.approx(bias, abs=1e-4)
    # climatology is the mean of all days before the first issue time
    flat = truth.values[:160].mean(axis=0)
    weights = sciJEPA.open_archive(waves).space.weights
    later = truth.values[161:181]
    by_hand = np.sqrt((((flat - later) ** 2) * weights).mean())
    assert found["climatology", "1D", "rmse"] == pytest.approx(by_hand, rel=1e-4)
    # upside down and in another order of dimensions it is the same forecast
    turned = given.isel(latitude=slice(None, None, -1)).transpose("longitude", "latitude", ...)
    pd.testing.assert_frame_equal(score(turned, waves), score(given, waves))


def test_an_ensemble_has_its_own_scores(stored: Path, waves: Path) -> None:
    mean = xr.open_zarr(stored, consolidated=False).load()
    rng = np.random.default_rng(0)
    members = [mean + 0.5 * rng.normal(size=mean["z"].shape) for _ in range(20)]
    ensemble = xr.concat(members, "realization").assign_attrs(mean.attrs)
    found = numbers(score(ensemble, waves))
    for lead in ("1D", "3D"):
        # members stray by 0.5 from a mean that is wrong by rmse
        ratio = 0.5 * np.sqrt(21 / 20) / found["jepa_target", lead, "rmse"]
        assert found["jepa_target", lead, "spread_skill"] == pytest.approx(ratio, rel=0.02)
        # a normal distribution around the truth scores 0.5 (sqrt(2) - 1) / sqrt(pi) = 0.117; an error adds to it
        assert 0.117 < found["jepa_target", lead, "crps"] < 0.14


def test_the_latest_issue_time_has_no_outcome_yet(model, waves: Path) -> None:  # type: ignore[no-untyped-def]
    latest = forecast(model, waves, init="latest", lead=["1D", "3D"], progress=False)
    assert latest["time"].values.astype("M8[D]").astype(str).tolist() == ["2001-07-19"]
    assert np.isfinite(latest["z"]).all()
    with pytest.raises(UserError, match="none of the 1 forecasts has its issue time and all its valid times"):
        score(latest, waves)


def test_issue_times_as_users_write_them(model, waves: Path) -> None:  # type: ignore[no-untyped-def]
    options = {"lead": "1D", "method": "persistence", "progress": False}
    for init, count in (("2001-06-11", 1), ("2001-06", 30), ("2001-06-11/2001-06-20", 10), (["latest", "2001-06"], 31)):
        assert forecast(model, waves, init=init, **options).sizes["time"] == count
    for init, message in (("1999", "no issue time '1999'"), ("tomorrow", "cannot read the issue time 'tomorrow'")):
        with pytest.raises(UserError, match=message):
            forecast(model, waves, init=init, **options)


def test_any_method_of_the_panel_forecasts(model, waves: Path) -> None:  # type: ignore[no-untyped-def]
    for method in ("persistence", "eof_ridge", "latent_rollout", "jepa_online"):
        found = forecast(model, waves, init="2001-07-01", lead=["1D"], method=method, progress=False)
        assert found.attrs["method"] == method
    with pytest.raises(UserError, match="no method 'oracle'"):
        forecast(model, waves, method="oracle")


# --- refusals


def test_forecasts_of_training_times_are_not_scored(model, waves: Path) -> None:  # type: ignore[no-untyped-def]
    early = forecast(model, waves, init="2001-05-01/2001-05-10", lead=["1D"], progress=False)
    with pytest.raises(UserError, match="skill there would be hindsight"):
        score(early, waves)


def test_other_units_are_refused(stored: Path, waves: Path) -> None:
    given = xr.open_zarr(stored, consolidated=False).load()
    given["z"].attrs["units"] = "km"
    with pytest.raises(UserError, match=r"z is forecast in 'km', but .* has it in 'm'"):
        score(given, waves)


def test_other_places_are_refused(stored: Path, waves: Path) -> None:
    given = xr.open_zarr(stored, consolidated=False).load()
    with pytest.raises(UserError, match="missing"):
        score(given.assign_coords(latitude=given["latitude"] + 1), waves)


def test_a_forecast_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no forecast at .* write one with 'scijepa forecast"):
        read_forecast(tmp_path / "forecast.zarr")


def test_blocks_are_invisible(stored: Path, waves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(stored, waves)
    monkeypatch.setattr("sciJEPA.forecasting.verification.BLOCK_VALUES", 7 * 256)
    pd.testing.assert_frame_equal(score(stored, waves), whole)
    parts = xr.open_zarr(stored, consolidated=False)
    write_forecasts((parts.isel(time=slice(n, n + 9)) for n in range(0, 40, 9)), tmp_path / "again.zarr")
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "again.zarr", consolidated=False), parts)


# --- verbs


def test_the_function_is_not_hidden_by_its_module() -> None:
    assert sciJEPA.ForecastProbe.__name__ == "ForecastProbe"
    assert callable(sciJEPA.forecast)
    assert callable(sciJEPA.score)


def test_the_verbs(run_folder: Path, waves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "forecast.zarr"
    assert main(["forecast", str(run_folder), str(waves), "--init", "2001-06-20/2001-07-10", "--lead", "1D,3D",
                 "--out", str(out), "--method", "persistence"]) == 0  # fmt: skip
    assert "time 21" in capsys.readouterr().out
    assert main(["score", str(out), "--truth", str(waves), "--out", str(tmp_path / "scores.csv")]) == 0
    printed = capsys.readouterr().out
    assert "forecast_persistence" in printed
    assert "climatology" in printed
    assert {"mae", "bias", "rmse"} <= set(pd.read_csv(tmp_path / "scores.csv")["metric"])
    assert main(["score", str(tmp_path / "nothing.zarr"), "--truth", str(waves)]) == 2
