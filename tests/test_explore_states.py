import doctest

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.explore import on_map, pool
from sciJEPA.explore import states as home
from sciJEPA.hub import Model
from sciJEPA.latents import embed
from sciJEPA.synthetic import travelling_waves


def labelled(values: np.ndarray, **coords: object) -> xr.DataArray:
    time = pd.date_range("2001-01-01", periods=len(values))
    return xr.DataArray(values, {"time": time, **coords}, ("time", "token", "latent"))


def test_the_mean_is_weighted_by_area() -> None:
    pooled = pool(labelled(np.array([[[0.0], [4.0]]]), token_area=("token", [0.25, 0.75])))
    assert pooled["latents"].values.tolist() == [[3.0]]  # 0.25 * 0 + 0.75 * 4


def test_what_was_not_observed_does_not_count() -> None:
    latents = labelled(np.array([[[1.0], [5.0]], [[1.0], [5.0]]])).to_dataset(name="latents")
    latents["observed"] = (("time", "token"), [[1.0, 0.25], [0.0, 0.0]])
    pooled = pool(latents)["latents"]
    assert pooled.values[0].tolist() == [1.8]  # (1 * 1 + 0.25 * 5) / 1.25
    assert np.isnan(pooled.values[1]).all()  # nothing was observed


def test_tokens_without_a_latent_do_not_count() -> None:
    assert pool(labelled(np.array([[[1.0], [np.nan]]])))["latents"].values.tolist() == [[1.0]]


def test_the_latents_of_a_model_are_pooled_over_the_issue_time(model: Model) -> None:
    latents = embed(model, travelling_waves(20), progress=False)
    pooled = pool(latents)
    assert dict(pooled.sizes) == {"time": 19, "latent": 32}
    assert pooled.attrs == latents.attrs
    # 2 token times of 8 tokens: the last 8 are those of the issue time, and their areas sum to one
    area = latents["token_area"].values[8:, None]
    np.testing.assert_allclose(pooled["latents"], (latents["latents"].values[:, 8:] * area).sum(axis=1), rtol=1e-5)


def test_missing_values_of_an_archive_weigh_in_the_pool(model: Model) -> None:
    ds = travelling_waves(20).load()
    ds["z"][{"time": slice(5, 7), "longitude": slice(0, 4)}] = np.nan  # the first token of each row
    latents = embed(model, ds, progress=False)
    observed = latents["observed"].isel(time=5).values  # issue time 6: both steps of the window lack it
    np.testing.assert_array_equal(observed, np.tile([0.0, 1, 1, 1], 4))
    kept = latents.isel(token=np.flatnonzero(observed))
    expected = pool(kept)["latents"].isel(time=5)
    np.testing.assert_allclose(pool(latents)["latents"].isel(time=5), expected, rtol=1e-5)


def test_the_pool_of_lazy_latents_is_lazy(model: Model) -> None:
    latents = embed(model, travelling_waves(20), progress=False)
    lazy = pool(latents.chunk(time=5))
    assert lazy["latents"].chunks is not None
    xr.testing.assert_allclose(lazy.compute(), pool(latents))


def test_tokens_lie_on_the_map_where_the_archive_has_them(model: Model) -> None:
    latents = embed(model, travelling_waves(20), progress=False)
    latitude, longitude = latents["token_latitude"], latents["token_longitude"]
    field = on_map(latitude * 1000 + longitude)
    assert field.dims == ("offset", "latitude", "longitude")
    assert field["latitude"].values.tolist() == [37.5, 52.5]
    assert field["latitude"].attrs["units"] == "degrees_north"
    expected = field["latitude"].values[:, None] * 1000 + field["longitude"].values
    np.testing.assert_array_equal(field.values, np.stack([expected, expected]))  # two token times


def test_a_map_keeps_the_order_of_the_archive_and_other_dimensions() -> None:
    places = {"token_latitude": ("token", [50.0, 50.0, 40.0, 40.0]), "token_longitude": ("token", [350.0, 0, 350, 0])}
    values = xr.DataArray(np.arange(8).reshape(2, 4), dims=("time", "token"), coords={"time": [5, 6], **places})
    field = on_map(values)
    assert field.dims == ("time", "latitude", "longitude")
    assert field["latitude"].values.tolist() == [50, 40]
    assert field["longitude"].values.tolist() == [350, 0]
    assert field.sel(time=6, latitude=40, longitude=350).item() == 6


def test_stations_and_boxes_have_places_of_their_own() -> None:
    stations = {
        "token_station": ("token", ["b", "a"]),
        "token_latitude": ("token", [1.0, 2.0]),
        "token_longitude": ("token", [3.0, 4.0]),
    }
    assert on_map(xr.DataArray([1, 2], dims="token", coords=stations)).sel(station="a").item() == 2
    box = {"token_x": ("token", [0.0, 0.0, 1.0, 1.0]), "token_y": ("token", [0.0, 1.0, 0.0, 1.0])}
    assert on_map(xr.DataArray([1, 2, 3, 4], dims="token", coords=box)).sel(x=1, y=0).item() == 3


def test_places_that_are_no_product_are_refused() -> None:
    oblique = {"token_latitude": ("token", [1.0, 2.0]), "token_longitude": ("token", [3.0, 4.0])}
    with pytest.raises(UserError, match="make no map"):
        on_map(xr.DataArray([1, 2], dims="token", coords=oblique))
    with pytest.raises(UserError, match="no coordinates such as token_latitude"):
        on_map(xr.DataArray([1, 2], dims="token"))
    with pytest.raises(UserError, match="needs the dimension 'token'"):
        on_map(xr.DataArray([1, 2], dims="time"))


def test_distances_of_rows_are_area_weighted() -> None:
    latents = labelled(np.array([[[1.0], [2.0]], [[3.0], [6.0]]]), token_area=("token", [0.25, 0.75]))
    first, second = home.state_rows(latents).read(np.arange(2))
    assert ((first - second) ** 2).sum() == pytest.approx(0.25 * 2**2 + 0.75 * 4**2)


def test_a_time_is_found_once_or_refused() -> None:
    days = pd.date_range("2001-01-01", periods=3, freq="12h")
    assert home.step_at(days, "2001-01-01 12:00") == 1
    with pytest.raises(UserError, match="2001-01-01 is 2 of the 3 issue times"):
        home.step_at(days, "2001-01-01")
    with pytest.raises(UserError, match="is none of the 3 issue times"):
        home.step_at(days, "2002-01-01")
    with pytest.raises(UserError, match="is 2 of the 2 issue times"):  # two members
        home.step_at(days[[0, 0]], days[0])


@pytest.mark.parametrize(
    ("text", "index", "length"),
    [
        ("10D", pd.date_range("2001", periods=3), 240),
        ("2", pd.date_range("2001", periods=3, freq="6h"), 12),  # steps
        ("2", pd.Index([0.0, 0.5, 1.0]), 1),
        ("1D", xr.date_range("2001", periods=3, calendar="360_day", use_cftime=True), 24),
    ],
)
def test_lengths_are_read_in_hours_or_steps(text: str, index: pd.Index, length: float) -> None:
    assert home.length_of(text, index) == length


def test_days_mean_nothing_where_times_are_numbers() -> None:
    with pytest.raises(UserError, match="plain numbers"):
        home.length_of("10D", pd.Index([0.0, 1.0]))


@pytest.mark.parametrize(
    "name", ["states", "components", "analogs", "fields", "regimes", "relations", "dimension", "surprise"]
)
def test_the_examples_in_the_docstrings_run(name: str) -> None:
    import importlib

    result = doctest.testmod(importlib.import_module(f"sciJEPA.explore.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_a_map_has_the_order_of_the_tokens_whatever_the_order_of_their_coordinates() -> None:
    latitude, longitude = [50.0, 50.0, 50.0, 40.0, 40.0, 40.0], [0.0, 9.0, 18.0] * 2
    values = np.arange(6.0)
    for names in (("latitude", "longitude"), ("longitude", "latitude")):
        places = {"latitude": latitude, "longitude": longitude}
        coords = {f"token_{name}": ("token", places[name]) for name in names}
        mapped = on_map(xr.DataArray(values, dims="token", coords=coords))
        assert mapped.dims == ("latitude", "longitude")
        np.testing.assert_array_equal(mapped, values.reshape(2, 3))
