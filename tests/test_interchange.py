"""Latents in other people's tools."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import sciJEPA
from sciJEPA.errors import UserError
from sciJEPA.explore import pool
from sciJEPA.hub import Model
from sciJEPA.interchange import LatentTransformer, to_table
from sciJEPA.synthetic import travelling_waves


@pytest.fixture(scope="module")
def latents(model: Model, waves: Path) -> xr.Dataset:
    return model.embed(waves, progress=False)


def test_an_archive_becomes_one_row_for_each_issue_time(model: Model, waves: Path, latents: xr.Dataset) -> None:
    step = LatentTransformer(model).fit(waves)
    rows = step.transform(waves)
    assert rows.shape == (latents.sizes["time"], latents.sizes["latent"])
    np.testing.assert_allclose(rows, pool(latents)["latents"])
    pd.testing.assert_index_equal(step.sample_times(waves), latents.indexes["time"], check_names=False)
    assert len(step.get_feature_names_out()) == rows.shape[1]


def test_tokens_may_lie_side_by_side(model: Model, waves: Path, latents: xr.Dataset) -> None:
    step = LatentTransformer(model, pool="flatten")
    rows, names = step.transform(waves), step.get_feature_names_out()
    last = np.flatnonzero(latents["token_offset"] == 0)
    width = latents.sizes["latent"]
    assert rows.shape[1] == len(names) == len(last) * width
    assert names[width] == "token_1_latent_0"
    np.testing.assert_array_equal(rows[:, width], latents["latents"].isel(token=last[1], latent=0))


def test_it_is_a_step_of_a_pipeline(model: Model, waves: Path) -> None:
    pipeline, linear = pytest.importorskip("sklearn.pipeline"), pytest.importorskip("sklearn.linear_model")
    base = pytest.importorskip("sklearn.base")
    step = LatentTransformer(model)
    times = step.sample_times(waves)
    index = xr.open_zarr(waves, consolidated=False)["z"].isel(latitude=4, longitude=0).sel(time=times).values
    fitted = pipeline.make_pipeline(step, linear.LinearRegression()).fit(waves, index)
    rows = step.transform(waves)
    by_hand = linear.LinearRegression().fit(rows, index).predict(rows)
    np.testing.assert_allclose(fitted.predict(waves), by_hand, atol=1e-5)
    # A clone is what cross-validation works on; it must not copy the weights.
    assert base.clone(step).model is model and base.clone(step) is not step


def test_parameters_are_checked(model: Model) -> None:
    with pytest.raises(UserError, match="pool must be area or flatten, got 'max'"):
        LatentTransformer(model, pool="max")
    with pytest.raises(UserError, match="no parameter 'pol'"):
        LatentTransformer(model).set_params(pol="area")
    assert LatentTransformer(model).set_params(pool="flatten").get_params()["pool"] == "flatten"


def test_an_archive_that_does_not_fit_is_refused(model: Model) -> None:
    with pytest.raises(UserError, match="does not fit"):
        LatentTransformer(model).fit(travelling_waves(20, nlat=6, nlon=12))


def test_a_table_has_a_row_for_each_time_and_token(latents: xr.Dataset) -> None:
    table = to_table(latents)
    assert len(table) == latents.sizes["time"] * latents.sizes["token"]
    # Time-major, as the dims are: the second row is the second token of the first time.
    row = table.iloc[1]
    assert row["token"] == 1 and row["time"] == latents["time"].values[0]
    assert row["token_longitude"] == latents["token_longitude"].values[1] and row["observed"] == 1
    assert row["latent_3"] == latents["latents"].values[0, 1, 3]
    assert table.attrs["model_id"] == latents.attrs["model_id"]
    pooled = to_table(pool(latents))
    assert len(pooled) == latents.sizes["time"] and "token" not in pooled


def test_parquet_gives_the_table_back(latents: xr.Dataset, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    table = to_table(latents)
    table.to_parquet(tmp_path / "latents.parquet")
    read = pd.read_parquet(tmp_path / "latents.parquet")
    pd.testing.assert_frame_equal(read, table)
    assert read.attrs == table.attrs


def test_dates_of_other_calendars_become_text(latents: xr.Dataset) -> None:
    days = xr.date_range("2001-02-29", periods=latents.sizes["time"], calendar="360_day", use_cftime=True)
    assert to_table(pool(latents).assign_coords(time=days))["time"].iloc[0] == "2001-02-29 00:00:00"


def test_xeofs_takes_latents_as_they_are(latents: xr.Dataset) -> None:
    xeofs = pytest.importorskip("xeofs")
    found = xeofs.single.EOF(n_modes=2).fit(latents["latents"], dim="time")
    centred = (latents["latents"] - latents["latents"].mean("time")).values.reshape(latents.sizes["time"], -1)
    singular = np.linalg.svd(centred, compute_uv=False)[:2]
    expected = singular**2 / (len(centred) - 1)  # explained variance of the plain decomposition
    np.testing.assert_allclose(found.explained_variance(), expected, rtol=1e-3)
    components = found.components()
    assert set(components.dims) == {"mode", "token", "latent"}
    # back in latent space, at the places of the tokens
    np.testing.assert_array_equal(components["token_latitude"].isel(latent=0), latents["token_latitude"])
    assert found.scores().sizes == {"mode": 2, "time": latents.sizes["time"]}


@pytest.mark.parametrize("names", [{}, {"latitude": "lat", "longitude": "lon"}], ids=["long", "short"])
def test_weatherbench_x_reads_a_forecast_and_finds_the_same_error(
    names: dict[str, str], model: Model, waves: Path, tmp_path: Path
) -> None:
    loaders = pytest.importorskip("weatherbenchX.data_loaders.xarray_loaders")
    aggregation, weighting = (pytest.importorskip(f"weatherbenchX.{name}") for name in ("aggregation", "weighting"))
    metrics, statistics = (pytest.importorskip(f"weatherbenchX.metrics.{name}") for name in ("deterministic", "base"))
    truth, out = tmp_path / "truth.zarr", tmp_path / "forecast.zarr"
    xr.open_zarr(waves, consolidated=False).rename(names).to_zarr(truth, consolidated=False)
    sciJEPA.forecast(model, truth, lead=["1D", "3D"], out=out, progress=False)
    rows = sciJEPA.score(out, truth).query("metric == 'rmse' and method == 'jepa_target'")

    leads = np.array([1, 3], "m8[D]").astype("m8[ns]")
    issued = xr.open_zarr(out, consolidated=False)["time"].values[
        :-3
    ]  # the last three have no outcome after three days
    forecast = loaders.PredictionsFromXarray(path=str(out), variables=["z"]).load_chunk(issued, leads)
    outcome = loaders.TargetsFromXarray(path=str(truth), variables=["z"]).load_chunk(issued, leads)
    wanted = {"rmse": metrics.RMSE()}
    found = statistics.compute_unique_statistics_for_all_metrics(wanted, forecast, outcome)
    over, weights = ["init_time", "latitude", "longitude"], [weighting.GridAreaWeighting()]
    values = (
        aggregation.Aggregator(reduce_dims=over, weigh_by=weights).aggregate_statistics(found).metric_values(wanted)
    )
    np.testing.assert_allclose(values["rmse.z"], rows["value"], rtol=1e-5)


def test_what_weatherbench_x_asks_of_a_forecast(model: Model, waves: Path, tmp_path: Path) -> None:
    # Its loader renames time to init_time and prediction_timedelta to lead_time, and selects by dates and durations.
    sciJEPA.forecast(model, waves, lead=["1D", "3D"], out=tmp_path / "forecast.zarr", progress=False)
    ds = xr.open_zarr(tmp_path / "forecast.zarr", consolidated=False)
    assert ds["z"].dims == ("time", "prediction_timedelta", "latitude", "longitude")
    assert (ds["time"].dtype.kind, ds["prediction_timedelta"].dtype.kind) == ("M", "m")
    assert not {"init_time", "lead_time", "valid_time"} & set(ds.variables)  # names that the loader gives
    chosen = ds.sel(prediction_timedelta=np.array([3], "m8[D]").astype("m8[ns]"))
    np.testing.assert_array_equal(chosen["z"][:, 0], ds["z"][:, 1])
