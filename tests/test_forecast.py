from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from tiny import tiny_config

import sciJEPA
from sciJEPA.archive import open_archive
from sciJEPA.errors import UserError
from sciJEPA.forecast import ForecastProbe, issue_steps, latest_tokens, lead_label, lead_steps, skill, to_dataset
from sciJEPA.hub import Model
from sciJEPA.latents import embed
from sciJEPA.loader import WindowReader
from sciJEPA.normalize import fit_normalizer
from sciJEPA.pretrain import pretrain
from sciJEPA.scores import latitude_weights
from sciJEPA.synthetic import travelling_waves

TRAIN, TEST = slice(None, "2001-05-20"), slice("2001-05-27", None)


@pytest.fixture(scope="module")
def latents(model: Model, waves: Path) -> xr.Dataset:
    return embed(model, waves, progress=False)


@pytest.fixture(scope="module")
def probe(latents: xr.Dataset, waves: Path) -> ForecastProbe:
    return ForecastProbe(lead=["1D", "3D"]).fit(latents.sel(time=TRAIN), waves)


@pytest.fixture(scope="module")
def forecast(probe: ForecastProbe, latents: xr.Dataset) -> xr.Dataset:
    return probe.predict(latents.sel(time=TEST))


def fitted(ds: xr.Dataset, folder: Path, lead: str | Sequence[str] = ("1D", "3D")) -> tuple[xr.Dataset, xr.Dataset]:
    """Latents of an archive and the forecasts of a probe on the last quarter, from a model of two steps."""
    ds.to_zarr(folder / "archive.zarr", consolidated=False)
    model = pretrain(tiny_config(folder / "archive.zarr", training__steps=2), folder / "run", progress=False)
    latents = embed(model, ds, progress=False)
    cut = 3 * latents.sizes["time"] // 4
    probe = ForecastProbe(lead=lead).fit(latents.isel(time=slice(0, cut)), ds)
    return latents, probe.predict(latents.isel(time=slice(cut + 3, None)))


# --- the probe


def test_the_lines_of_the_manual_run(model: Model, waves: Path) -> None:
    archive = sciJEPA.open_archive(waves)
    latents = sciJEPA.embed(model, archive, progress=False)
    probe = sciJEPA.ForecastProbe(lead="3D").fit(latents.sel(time=TRAIN), archive)
    forecast = probe.predict(latents.sel(time=TEST))
    table = sciJEPA.skill(forecast, truth=archive, against=["persistence", "climatology"])
    assert table["method"].tolist() == ["forecast", "persistence", "climatology"]


def test_forecasts_are_labelled_like_the_archive(forecast: xr.Dataset, model: Model) -> None:
    # 27 May to 16 July, three days before the last one: 51 issue times
    assert dict(forecast.sizes) == {"init_time": 51, "lead_time": 2, "latitude": 8, "longitude": 16}
    assert forecast["z"].attrs["units"] == "m"
    assert list(forecast.data_vars) == ["z"]
    ds = travelling_waves(200)
    np.testing.assert_array_equal(forecast["latitude"], ds["latitude"])
    np.testing.assert_array_equal(forecast["longitude"], ds["longitude"])
    assert forecast["latitude"].attrs == ds["latitude"].attrs
    np.testing.assert_array_equal(forecast["lead_time"], np.array([1, 3], "timedelta64[D]"))
    assert (forecast["valid_time"] == forecast["init_time"] + forecast["lead_time"]).all()
    assert forecast.attrs["model_id"] == model.id
    assert forecast.attrs["trained_from"] == "2001-01-01 00:00:00"


def test_forecasts_beat_persistence_by_far(forecast: xr.Dataset, waves: Path) -> None:
    # noise of 0.1 is all that a perfect forecast misses; persistence misses 0.4 after a day and 1.1 after three
    table = skill(forecast, waves, against=["persistence", "climatology", "damped_persistence"])
    assert (table[table["method"] != "forecast"]["skill"] > 0.5).all()
    assert (table[table["method"] == "forecast"]["rmse"] < 0.13).all()


def test_rmse_is_that_of_the_forecast_and_skill_its_ratio(forecast: xr.Dataset, waves: Path) -> None:
    table = skill(forecast, waves).set_index(["method", "lead_time"])
    truth = travelling_waves(200)["z"]
    weights = latitude_weights(truth["latitude"])
    for number, lead in enumerate(forecast["lead_time"].values):
        valid = truth.sel(time=forecast["valid_time"].values[:, number]).values
        now = truth.sel(time=forecast["init_time"].values).values
        predicted = forecast["z"].values[:, number]
        rmse, reference = (
            np.sqrt((((field - valid) ** 2).mean(-1) * weights.values).mean()) for field in (predicted, now)
        )
        assert table.loc[("forecast", lead), "rmse"] == pytest.approx(rmse, rel=1e-4)
        assert table.loc[("persistence", lead), "rmse"] == pytest.approx(reference, rel=1e-4)
        assert table.loc[("persistence", lead), "skill"] == pytest.approx(1 - rmse / reference, rel=1e-3)
        assert table.loc[("forecast", lead), "skill"] == 0


def test_parameters_as_in_scikit_learn() -> None:
    probe = ForecastProbe(lead="3D", strengths=(1.0, 2.0))
    assert probe.get_params() == {"lead": "3D", "strengths": (1.0, 2.0)}
    assert probe.set_params(lead=["1D"]) is probe
    assert probe.lead == ["1D"]
    assert ForecastProbe(**probe.get_params()).get_params() == probe.get_params()
    with pytest.raises(UserError, match=r"no parameter 'alpha'; it has lead, strengths"):
        probe.set_params(alpha=1)


def test_a_probe_that_is_not_fitted_says_so(latents: xr.Dataset) -> None:
    with pytest.raises(UserError, match="not fitted"):
        ForecastProbe().predict(latents)


def test_one_lead_alone_is_forecast_as_among_others(latents: xr.Dataset, waves: Path, forecast: xr.Dataset) -> None:
    # the same training and validation times: lead 3 sets them in both
    alone = ForecastProbe(lead="3D").fit(latents.sel(time=TRAIN), waves).predict(latents.sel(time=TEST))
    np.testing.assert_allclose(alone["z"].values[:, 0], forecast["z"].values[:, 1], atol=1e-5)


def test_an_archive_is_a_path_a_dataset_or_opened(latents: xr.Dataset, waves: Path, forecast: xr.Dataset) -> None:
    for archive in (travelling_waves(200), open_archive(waves)):
        probe = ForecastProbe(lead=["1D", "3D"]).fit(latents.sel(time=TRAIN), archive)
        xr.testing.assert_allclose(probe.predict(latents.sel(time=TEST)), forecast)


def test_latents_on_disk_are_as_good(
    model: Model, waves: Path, latents: xr.Dataset, forecast: xr.Dataset, tmp_path: Path
) -> None:
    stored = embed(model, waves, out=tmp_path / "latents.zarr", progress=False)
    probe = ForecastProbe(lead=["1D", "3D"]).fit(stored.sel(time=TRAIN), waves)
    xr.testing.assert_allclose(probe.predict(stored.sel(time=TEST)), forecast)


# --- no leakage


def test_the_test_times_change_nothing_of_the_fit(latents: xr.Dataset, waves: Path, forecast: xr.Dataset) -> None:
    ds = travelling_waves(200).load()
    ds["z"][{"time": slice(140, None)}] = 1e6
    probe = ForecastProbe(lead=["1D", "3D"]).fit(latents.sel(time=TRAIN), ds)
    xr.testing.assert_equal(probe.predict(latents.sel(time=TEST)), forecast)


def test_validation_times_change_the_strength_alone(latents: xr.Dataset) -> None:
    ds = travelling_waves(200).load()
    changed = ds.copy(deep=True)
    changed["z"][{"time": slice(100, 140)}] = 1e6
    times = {"train": slice(None, "2001-04-10"), "validation": slice("2001-04-11", "2001-05-20")}  # 100th day: 10 April
    fits = [
        ForecastProbe("1D", strengths=(0.01,)).fit(
            latents.sel(time=times["train"]), archive, validation=latents.sel(time=times["validation"])
        )
        for archive in (ds, changed)
    ]
    xr.testing.assert_equal(fits[0].predict(latents.sel(time=TEST)), fits[1].predict(latents.sel(time=TEST)))


def test_validation_that_shares_times_with_training_is_refused(latents: xr.Dataset, waves: Path) -> None:
    with pytest.raises(UserError, match="shares times"):
        ForecastProbe().fit(latents.sel(time=TRAIN), waves, validation=latents.sel(time=slice("2001-05-20", None)))


def test_skill_in_training_or_validation_times_is_refused(
    probe: ForecastProbe, latents: xr.Dataset, waves: Path
) -> None:
    for first in ("2001-02-01", "2001-05-10"):  # the last eighth of the training times chose the strength
        with pytest.raises(UserError, match=rf"begin at {first} 00:00:00, within .* end at 2001-05-20 .*hindsight"):
            skill(probe.predict(latents.sel(time=slice(first, None))), waves)
    skill(probe.predict(latents.sel(time=slice("2001-05-21", None))), waves)


def test_skill_in_times_that_the_encoder_was_trained_on_is_refused(latents: xr.Dataset, waves: Path) -> None:
    # The model was trained until 20 May, the probe until 31 March only: April is new to the probe, not to the encoder.
    short = ForecastProbe("1D").fit(latents.sel(time=slice(None, "2001-03-31")), waves)
    april = short.predict(latents.sel(time=slice("2001-04-01", None)))
    with pytest.raises(UserError, match=r"begin at 2001-04-01 .* end at 2001-05-20 .*hindsight"):
        skill(april, waves)


# --- refusals


def test_a_lead_between_two_steps_is_refused(latents: xr.Dataset, waves: Path) -> None:
    with pytest.raises(UserError, match=r"a lead of 36H is 1.5 steps .* 24 hours; use a multiple such as 1D or 3D"):
        ForecastProbe(lead="36H").fit(latents, waves)


def test_latents_of_another_archive_are_refused(
    latents: xr.Dataset, probe: ForecastProbe, forecast: xr.Dataset, waves: Path
) -> None:
    later = latents.assign_coords(time=latents["time"] + np.timedelta64(3650, "D"))
    with pytest.raises(UserError, match="199 of 199 latent times are not times of"):
        ForecastProbe().fit(later, waves)
    with pytest.raises(UserError, match="latent times are not times of"):
        probe.predict(later)
    with pytest.raises(UserError, match="not times of"):
        skill(forecast, travelling_waves(100))
    with pytest.raises(UserError, match="is no time of"):
        skill(forecast, travelling_waves(200).isel(time=slice(10, None)))


def test_latents_of_another_model_are_refused(probe: ForecastProbe, latents: xr.Dataset) -> None:
    with pytest.raises(UserError, match="these are of model other"):
        probe.predict(latents.assign_attrs(model_id="other"))


def test_too_few_times_are_refused(latents: xr.Dataset, waves: Path, probe: ForecastProbe) -> None:
    with pytest.raises(UserError, match=r"no training time .* followed by 10 steps"):
        ForecastProbe(lead="10D").fit(latents.isel(time=slice(0, 20)), waves)
    with pytest.raises(UserError, match="no validation time"):
        ForecastProbe(lead="10D").fit(
            latents.isel(time=slice(0, 100)), waves, validation=latents.isel(time=slice(120, 125))
        )
    with pytest.raises(UserError, match="none of these latents is followed by 3 steps"):
        probe.predict(latents.isel(time=slice(-2, None)))


def test_an_unknown_control_is_refused(forecast: xr.Dataset, waves: Path) -> None:
    with pytest.raises(UserError, match="no control 'climate' here; choose from persistence, climatology"):
        skill(forecast, waves, against=["climate"])


# --- archives of all kinds


def test_forecasts_do_not_cross_a_gap(tmp_path: Path) -> None:
    ds = travelling_waves(200).isel(time=np.r_[0:170, 180:200])
    _, forecast = fitted(ds, tmp_path)
    assert (forecast["valid_time"] == forecast["init_time"] + forecast["lead_time"]).all()
    assert pd.Timestamp("2001-06-18") not in forecast["init_time"].values  # the 169th day: two days before the gap
    assert (skill(forecast, ds).query("method != 'forecast'")["skill"] > 0.3).all()


def test_levels_and_descending_latitudes_come_back(tmp_path: Path) -> None:
    ds = travelling_waves(200, variables=("z", "t"), levels=(500, 850)).isel(latitude=slice(None, None, -1))
    ds["t2m"] = ds["t"].isel(level=0, drop=True).assign_attrs(units="K", long_name="warm")
    _, forecast = fitted(ds, tmp_path)
    assert forecast["z"].dims == ("init_time", "lead_time", "level", "latitude", "longitude")
    assert forecast["t2m"].dims == ("init_time", "lead_time", "latitude", "longitude")
    assert list(forecast.data_vars) == ["z", "t", "t2m"]
    np.testing.assert_array_equal(forecast["level"], [500, 850])
    assert forecast["level"].attrs["units"] == "hPa"
    np.testing.assert_array_equal(forecast["latitude"], ds["latitude"])
    assert (forecast["t2m"].attrs["units"], forecast["t2m"].attrs["long_name"]) == ("K", "warm")
    table = skill(forecast, ds)
    assert set(table["variable"]) == {"z", "t", "t2m"}
    assert (table.query("method == 'persistence'")["skill"] > 0.4).all()  # every field back in its place


@pytest.mark.parametrize("layout", ["longitude first", "own names", "degrees beside the dimensions"])
def test_layouts_make_no_difference(layout: str, forecast: xr.Dataset, latents: xr.Dataset, tmp_path: Path) -> None:
    ds = travelling_waves(200)
    other = {
        "longitude first": lambda: ds.transpose("time", "longitude", "latitude"),
        "own names": lambda: ds.rename(latitude="lat", longitude="lon", time="valid", z="gh"),
        "degrees beside the dimensions": lambda: (
            ds.rename_dims(latitude="y", longitude="x")
            .reset_index(["latitude", "longitude"])
            .rename(latitude="lat", longitude="lon")
        ),
    }[layout]()
    probe = ForecastProbe(lead=["1D", "3D"]).fit(latents.sel(time=TRAIN), other)
    found = probe.predict(latents.sel(time=TEST))
    (name,) = found.data_vars
    np.testing.assert_allclose(found[name].values, forecast["z"].values, atol=1e-5)
    if layout == "degrees beside the dimensions":
        assert found[name].dims == ("init_time", "lead_time", "y", "x")
        np.testing.assert_array_equal(found["lat"], ds["latitude"])
    scores = [skill(*pair)["rmse"].values for pair in ((found, other), (forecast, ds))]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4)


@pytest.mark.parametrize("calendar", ["noleap", "360_day"])
def test_other_calendars(calendar: str, tmp_path: Path) -> None:
    ds = travelling_waves(200, calendar=calendar)
    _, forecast = fitted(ds, tmp_path)
    assert forecast["init_time"].values[0].calendar == calendar
    table = skill(forecast, ds, against=["persistence", "damped_persistence"])
    assert (table.query("method != 'forecast'")["skill"] > 0.4).all()
    # as it comes back from a store
    forecast.to_zarr(tmp_path / "forecast.zarr", consolidated=False)
    again = skill(xr.open_zarr(tmp_path / "forecast.zarr", consolidated=False), ds, against=["persistence"])
    assert again["rmse"].values == pytest.approx(table["rmse"].values[[0, 1, 2, 3]])


def test_standard_dates_that_xarray_was_told_to_keep_as_cftime(tmp_path: Path) -> None:
    ds = travelling_waves(120)
    ds = ds.assign_coords(time=xr.date_range("2001-01-01", periods=120, use_cftime=True))
    ds.to_zarr(tmp_path / "archive.zarr", consolidated=False)
    model = pretrain(tiny_config(tmp_path / "archive.zarr", training__steps=2), tmp_path / "run", progress=False)
    latents = embed(model, ds, out=tmp_path / "latents.zarr", progress=False)  # come back as datetime64
    probe = ForecastProbe().fit(latents.isel(time=slice(0, 80)), ds)
    table = skill(probe.predict(latents.isel(time=slice(85, None))), ds)
    assert np.isfinite(table["rmse"]).all()


def test_plain_numbers_as_times(tmp_path: Path) -> None:
    ds = travelling_waves(200).assign_coords(time=np.arange(200) * 10.0)
    _, forecast = fitted(ds, tmp_path, lead=["1", "3"])
    np.testing.assert_array_equal(forecast["lead_time"], [1, 3])
    np.testing.assert_array_equal(forecast["valid_time"], forecast["init_time"].values[:, None] + [10, 30])
    assert (skill(forecast, ds).query("method == 'persistence'")["skill"] > 0.4).all()


def test_missing_values_are_left_out_of_the_score(tmp_path: Path) -> None:
    ds = travelling_waves(200, missing=0.1)
    _, forecast = fitted(ds, tmp_path)
    assert np.isfinite(forecast["z"]).all()
    table = skill(forecast, ds, against=["persistence", "climatology", "damped_persistence"])
    assert np.isfinite(table["rmse"]).all()
    assert (table.query("method == 'climatology'")["skill"] > 0.3).all()


# --- parts


def test_leads_are_counted_in_the_archives_steps() -> None:
    daily, sixhourly = open_archive(travelling_waves(10)), open_archive(travelling_waves(10, cadence="6h"))
    assert [lead_steps(lead, daily) for lead in ("1D", "24H", "2W", "10")] == [1, 1, 14, 10]
    assert [lead_steps(lead, sixhourly) for lead in ("6H", "1D")] == [1, 4]
    assert [lead_label(steps, sixhourly) for steps in (1, 4, 6)] == ["6H", "1D", "36H"]
    for archive in (daily, sixhourly):
        assert all(lead_steps(lead_label(steps, archive), archive) == steps for steps in range(1, 30))
    for lead in ("0D", "1H", "-1D"):
        with pytest.raises(UserError):
            lead_steps(lead, daily)


def test_months_have_28_to_31_days() -> None:
    coords = {"time": pd.date_range("2001-01-01", periods=30, freq="MS"), "lat": [10.0, 20.0], "lon": [0.0, 10.0]}
    monthly = open_archive(xr.DataArray(np.zeros((30, 2, 2)), coords, ("time", "lat", "lon"), name="t"))
    assert [lead_steps(f"{months}M", monthly) for months in (1, 3, 12)] == [1, 3, 12]
    assert lead_label(3, monthly) == "3M"
    with pytest.raises(UserError):
        lead_steps("10D", monthly)


def test_issue_times_have_a_whole_window_before_and_a_whole_lead_after() -> None:
    archive = open_archive(travelling_waves(30).isel(time=np.r_[0:20, 22:30]))
    # windows of 3 and leads of 2 in steps 0 to 20: issue steps 2 to 17; after the gap, 20 to 28: 22 to 25
    assert issue_steps(archive, ((0, 28),), 3, 2).tolist() == [*range(2, 18), *range(22, 26)]
    assert issue_steps(archive, ((5, 12),), 3, 2).tolist() == [7, 8, 9]


def test_the_latest_tokens_end_at_the_issue_time(latents: xr.Dataset) -> None:
    np.testing.assert_array_equal(latest_tokens(latents), latents["latents"].values[:, 8:])


def test_anomalies_and_fields_are_a_round_trip() -> None:
    archive = open_archive(travelling_waves(50, variables=("z", "t"), levels=(500, 850)))
    normalizer = fit_normalizer(archive, ((0, 40),))
    reader = WindowReader(archive, normalizer)
    steps = np.array([10, 20, 45])
    predictions = [reader.read(steps + lead, 1).values.numpy().reshape(3, -1) for lead in (1, 4)]
    ds = to_dataset(predictions, archive, normalizer, steps, [1, 4])
    for number, lead in enumerate((1, 4)):
        for name in ("z", "t"):
            truth = archive.ds[name].isel(time=steps + lead).values
            np.testing.assert_allclose(ds[name].values[:, number], truth, atol=1e-5)
