"""Pictures on the map: what is drawn, labelled and refused. How they look was checked by eye."""

import doctest

import numpy as np
import pandas as pd
import pytest
import xarray as xr

pytest.importorskip("matplotlib")

from sciJEPA import plots
from sciJEPA.errors import UserError
from sciJEPA.plots import looks as plot_looks
from sciJEPA.plots import maps as plots_maps


def field(panels: int = 5) -> xr.DataArray:
    values = np.random.default_rng(0).normal(size=(panels, 4, 8))
    coords = {"regime": np.arange(1, panels + 1), "latitude": [67.5, 22.5, -22.5, -67.5]}
    coords["longitude"] = np.arange(0, 360, 45.0)
    return xr.DataArray(values, coords, ("regime", "latitude", "longitude"), name="z", attrs={"units": "m"})


def test_the_examples_in_the_docstrings_run() -> None:
    result = doctest.testmod(plots_maps)
    assert result.attempted > 0
    assert result.failed == 0


def test_maps_share_their_scale_and_go_around_without_a_gap(tmp_path) -> None:
    figure = plots.plot_maps(field(), tmp_path / "maps.png")
    shown = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in shown] == [f"regime {number}" for number in range(1, 6)]
    meshes = [axes.collections[0] for axes in shown]
    assert len({mesh.norm for mesh in meshes}) == 1
    assert meshes[0].norm.vmin == -meshes[0].norm.vmax  # signed values: zero in the middle
    x = meshes[0].get_coordinates()[0, :, 0]
    assert x[-1] - x[0] == 360  # the seam is closed
    assert figure.axes[-1].get_ylabel() == "z (m)"


def test_latitudes_end_at_the_poles() -> None:
    edges = plot_looks.cell_edges(xr.DataArray([0, 0, 0], {"latitude": [90.0, 0.0, -90.0]}, ("latitude",)), "latitude")
    assert edges.tolist() == [90, 45, -45, -90]


def test_a_map_may_cross_the_meridian_where_longitudes_begin_anew() -> None:
    longitude = xr.DataArray([350.0, 355.0, 0.0, 5.0], dims="longitude")
    across = xr.DataArray(np.zeros((2, 4)), {"longitude": longitude, "latitude": [0.0, 5.0]}, ("latitude", "longitude"))
    assert plot_looks.cell_edges(across, "longitude").tolist() == [347.5, 352.5, 357.5, 362.5, 367.5]
    axes = plots.plot_maps(across, coast=False).axes[0]
    assert axes.get_xlim() == (347.5, 367.5)
    assert [axes.xaxis.get_major_formatter()(degrees, None) for degrees in (350, 360, 365)] == ["350", "0", "5"]


def test_x_lies_to_the_right() -> None:
    box = xr.DataArray(np.zeros((2, 3)), {"x": [0.0, 1.0], "y": [0.0, 1.0, 2.0]}, ("x", "y"))
    axes = plots.plot_maps(box).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x", "y")


def test_a_map_is_as_high_as_on_the_ground() -> None:
    # 60 degrees of latitude around 60 north and 100 of longitude, which are half as long there: 60 / 50
    degrees = xr.DataArray(
        np.zeros((6, 10)), {"lat": np.arange(35.0, 90, 10), "lon": np.arange(0.0, 100, 10)}, ("lat", "lon")
    )
    assert plot_looks.map_height(degrees) == pytest.approx(1.2)
    box = xr.DataArray(np.zeros((4, 8)), {"y": np.arange(4.0), "x": np.arange(8.0)}, ("y", "x"))
    assert plot_looks.map_height(box) == pytest.approx(0.5)
    assert plot_looks.map_height(box.drop_vars(["x", "y"])) == pytest.approx(0.5)


def test_a_field_of_one_value_and_a_missing_value_are_drawn() -> None:
    constant = xr.full_like(field(1)[0], 3.0)
    constant[0, 0] = np.nan
    assert plots.plot_maps(constant).axes[0].get_title() == ""
    with pytest.raises(UserError, match="plot_maps needs dims"):
        plots.plot_maps(constant[0])


@pytest.mark.parametrize(
    ("dim", "values", "titles"),
    [
        ("lead_time", pd.to_timedelta([6, 24, 72], unit="h"), ["after 6 hours", "after 1 day", "after 3 days"]),
        ("offset", [6.0, 24.0, 48.0], ["after 6 hours", "after 1 day", "after 2 days"]),
        ("time", pd.date_range("2001-01-01", periods=3), ["2001-01-01 00:00", "2001-01-02 00:00", "2001-01-03 00:00"]),
        ("lead_time", [1, 2, 3], ["after 1 step", "after 2 steps", "after 3 steps"]),
    ],
)
def test_panels_are_named_after_their_entry(dim: str, values: object, titles: list[str]) -> None:
    panels = field(3).rename(regime=dim).assign_coords({dim: values})
    assert [plots_maps.panel_title(panels, number) for number in range(3)] == titles


def test_peaks_of_surprise_get_their_dates_and_stand_apart() -> None:
    values = np.ones(100)
    values[[40, 41, 90]] = 5, 6, 4  # 40 is beside a higher peak
    series = xr.DataArray(values, {"time": pd.date_range("2001-01-01", periods=100)}, ("time",))
    found = xr.Dataset(
        {"in_time": series, "on_map": field(2).rename(regime="offset").assign_coords(offset=[24.0, 48.0])}
    )
    axes = plots.plot_surprise(found, named=2).axes[0]
    assert [text.get_text() for text in axes.texts] == ["2001-02-11", "2001-04-01"]  # days 41 and 90


def test_surprise_of_stations_is_a_series_alone() -> None:
    series = xr.DataArray(np.arange(9.0), {"time": np.arange(9)}, ("time",))
    stations = xr.DataArray(np.zeros((2, 3)), {"offset": [24.0, 48.0]}, ("offset", "station"))
    assert len(plots.plot_surprise(xr.Dataset({"in_time": series, "on_map": stations})).axes) == 1
