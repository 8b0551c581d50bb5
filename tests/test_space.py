"""Where the values of an archive lie."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sciJEPA.archive import open_archive
from sciJEPA.errors import UserError
from sciJEPA.samples import DataConfig, split_steps, window_starts
from sciJEPA.storage.chunks import ChunkReader

STEPS = 6


def field(sizes: dict[str, int], **coords: object) -> xr.Dataset:
    """A dataset of one variable whose values count up, on these dimensions."""
    values = np.arange(np.prod(list(sizes.values())), dtype=np.float32).reshape(tuple(sizes.values()))
    return xr.Dataset({"u": (tuple(sizes), values)}, coords=coords)


def test_two_dimensions_without_latitude_are_a_box() -> None:
    archive = open_archive(field({"time": STEPS, "x": 4, "y": 3}))
    assert archive.space.kind == "box" and archive.space.dims == ("x", "y") and archive.shape == (4, 3)
    assert archive.space.sides == (("open", "open"), ("open", "open")) and not archive.periodic
    np.testing.assert_array_equal(archive.read(1, 3)[:, 0], archive.ds.u.values[1:3])


@pytest.mark.parametrize("dims", [("x",), ("x", "y"), ("z", "y", "x")])
def test_boxes_of_one_to_three_dimensions(dims: tuple[str, ...]) -> None:
    ds = field({"time": STEPS, **dict.fromkeys(dims, 4)})
    archive = open_archive(ds)
    assert archive.space.dims == dims and archive.read(0, 2).shape == (2, 1, *[4] * len(dims))
    assert list(archive.axes) == ["time", *dims]


def test_sides_come_from_the_boundary_conditions() -> None:
    ds = field({"time": STEPS, "x": 4, "y": 3})
    ds.attrs["boundary_conditions"] = json.dumps({"x": ["PERIODIC", "PERIODIC"], "y": ["wall", "open"]})
    space = open_archive(ds).space
    assert space.periodic == (True, False) and space.sides[1] == ("wall", "open")
    for wrong in ('{"x": ["periodic", "wall"]}', "periodic", '{"x": ["slippery", "wall"]}'):
        with pytest.raises(UserError, match="boundary_conditions of <memory> must be JSON like"):
            open_archive(ds.assign_attrs(boundary_conditions=wrong))


def test_uneven_coordinates_weight_by_width() -> None:
    archive = open_archive(field({"time": STEPS, "x": 4}, x=[0.0, 1.0, 3.0, 5.0]))
    # Widths: 1 at the left end, (3 - 0) / 2, (5 - 1) / 2 and 2, of mean 1.625.
    np.testing.assert_allclose(archive.space.weights * 1.625, [1.0, 1.5, 2.0, 2.0], rtol=0.2)


def test_four_dimensions_of_space_are_refused() -> None:
    with pytest.raises(UserError, match=r"4 dimensions beside time: a \(2\), b \(2\), c \(2\), d \(2\)"):
        open_archive(field({"time": STEPS, "a": 2, "b": 2, "c": 2, "d": 2}))


def test_stations_by_name_by_labels_and_by_places() -> None:
    by_name = open_archive(field({"time": STEPS, "station": 3}))
    by_labels = open_archive(field({"time": STEPS, "airport": 3}, airport=["EWR", "JFK", "LGA"]))
    placed = field({"time": STEPS, "cell": 3}, lat=("cell", [10.0, 20.0, 30.0]), lon=("cell", [0.0, 1.0, 2.0]))
    placed.lat.attrs["standard_name"], placed.lon.attrs["standard_name"] = "latitude", "longitude"
    by_places = open_archive(placed)
    for archive in (by_name, by_labels, by_places):
        assert archive.space.kind == "stations" and archive.shape == (3,)
        np.testing.assert_array_equal(archive.space.weights, [1, 1, 1])
    assert by_labels.space.names == ("EWR", "JFK", "LGA") and by_name.space.names == ("0", "1", "2")
    assert by_places.latitude.tolist() == [10, 20, 30] and not by_name.latitude.size


def test_series_without_a_place() -> None:
    archive = open_archive(field({"time": STEPS}))
    assert archive.shape == () and archive.read(2, 5).tolist() == [[2], [3], [4]]
    assert "1 channels on one place" in repr(archive)


def test_curvilinear_grid_that_closes_the_circle() -> None:
    longitude, latitude = np.meshgrid(np.arange(0, 360, 30.0), [-30.0, 0.0, 30.0])
    ds = field({"time": STEPS, "j": 3, "i": 12}, lat=(("j", "i"), latitude), lon=(("j", "i"), longitude))
    archive = open_archive(ds)
    assert archive.space.kind == "grid" and archive.periodic and archive.space.curvilinear
    assert not open_archive(ds.isel(i=slice(0, 9))).periodic


def test_pressure_levels_in_pascal_are_named_in_hectopascal() -> None:
    ds = field({"time": STEPS, "plev": 2, "lat": 3, "lon": 4}, lat=[0.0, 1, 2], lon=[0.0, 1, 2, 3])
    ds = ds.assign_coords(plev=("plev", [50000.0, 85000.0], {"units": "Pa"}))
    assert [channel.name for channel in open_archive(ds).channels] == ["u@500", "u@850"]
    assert open_archive(ds).ds.plev.values.tolist() == [50000, 85000]


def test_static_fields_are_known_and_no_channels() -> None:
    ds = field({"time": STEPS, "x": 4, "y": 3}).assign(height=(("y", "x"), np.arange(12.0).reshape(3, 4)))
    archive = open_archive(ds)
    assert archive.static == ("height",) and [channel.name for channel in archive.channels] == ["u"]
    np.testing.assert_array_equal(archive.read_static()[0], ds.height.values.T)


@pytest.mark.parametrize("order", [("member", "time", "x"), ("time", "member", "x"), ("time", "x", "member")])
def test_members_follow_each_other(order: tuple[str, ...]) -> None:
    ds = field({"member": 3, "time": STEPS, "x": 4}, time=pd.date_range("2000", periods=STEPS))
    archive = open_archive(ds.transpose(*order))
    assert len(archive) == 3 * STEPS and archive.steps_per_series == STEPS and archive.axes["member"] == "member"
    np.testing.assert_array_equal(archive.read(0, 3 * STEPS)[:, 0], ds.u.values.reshape(-1, 4))
    np.testing.assert_array_equal(archive.read(4, 9)[:, 0], ds.u.values.reshape(-1, 4)[4:9])  # across members
    # A window of 4 has 3 starts in each member and crosses none.
    assert window_starts(archive, ((0, len(archive)),), 4).tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14]


@pytest.mark.parametrize("version", [2, 3])
def test_members_decode_directly(version: int, tmp_path: object) -> None:
    ds = field({"member": 5, "time": 9, "x": 8})
    encoding = {"u": {"chunks": (2, 4, 8)}}
    ds.to_zarr(f"{tmp_path}/a.zarr", zarr_format=version, encoding=encoding, consolidated=False)
    archive = open_archive(f"{tmp_path}/a.zarr")
    reader = ChunkReader(archive)
    assert reader.direct == ("u",)
    for start, stop in [(0, 45), (7, 30), (9, 18), (44, 45)]:
        np.testing.assert_array_equal(reader.read(start, stop), archive.read(start, stop))


def test_members_share_the_dates_of_a_split_and_trajectories_do_not() -> None:
    time = pd.date_range("2000", periods=20)
    members = open_archive(field({"member": 2, "time": 20, "x": 4}, time=time))
    splits = split_steps(members, DataConfig(window=2, context=1))
    assert splits.train == ((0, 14), (20, 34)) and splits.test == ((16, 20), (36, 40))
    trajectories = open_archive(field({"trajectory": 10, "time": 20, "x": 4}))
    splits = split_steps(trajectories, DataConfig(window=2, context=1))
    parts = [splits.train, splits.validation, splits.test]
    assert [len(part) for part in parts] == [7, 1, 2]
    assert sorted(bounds for part in parts for bounds in part) == [(20 * k, 20 * (k + 1)) for k in range(10)]


def test_trajectories_with_equal_parameters_stay_together() -> None:
    viscosity = np.repeat([0.1, 0.2, 0.3, 0.4, 0.5], 4)
    ds = field({"trajectory": 20, "time": 6, "x": 4}, viscosity=("trajectory", viscosity))
    splits = split_steps(open_archive(ds), DataConfig(window=2, context=1, split=(0.6, 0.2, 0.2)))
    found = [{viscosity[start // 6] for start, _ in part} for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in found] == [3, 1, 1] and len(set.union(*found)) == 5


def test_an_archive_may_state_its_own_split() -> None:
    names = ["train", "test", "valid", "train", "test"]
    ds = field({"trajectory": 5, "time": 6, "x": 4}, split=("trajectory", names))
    splits = split_steps(open_archive(ds), DataConfig(window=2, context=1))
    assert (
        splits.train == ((0, 6), (18, 24)) and splits.validation == ((12, 18),) and splits.test == ((6, 12), (24, 30))
    )


@pytest.mark.parametrize(
    ("words", "periodic"),
    [
        ("periodic", (True, True)),
        ("periodic in x and y", (True, True)),
        ("Periodic in y", (False, True)),
        ("non-periodic", (False, False)),
        ("walls", (False, False)),
    ],
)
def test_sides_in_words(words: str, periodic: tuple[bool, bool]) -> None:
    ds = field({"time": STEPS, "x": 4, "y": 3}).assign_attrs(boundary=words)
    assert open_archive(ds).space.periodic == periodic
