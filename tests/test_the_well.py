"""Simulations in the layout of The Well: what a dataset holds, what is read, and what is refused."""

import builtins
import json
import multiprocessing
import pickle
import re
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.storage import hdf5_fields
from sciJEPA.storage.the_well import is_the_well, open_the_well

h5py = pytest.importorskip("h5py")

TRAJECTORIES, STEPS = 3, 5
SIZES = {"x": 4, "y": 6, "z": 2}
PERIODIC_BUT_WALL_BELOW = {
    "x_periodic": ("PERIODIC", ["x"], (0, -1)),
    "y_wall": ("WALL", ["y"], (0,)),
    "y_open": ("OPEN", ["y"], (-1,)),
}


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def put(group: Any, name: str, data: Any, **attrs: Any) -> None:
    chunks = attrs.pop("chunks", None)
    group.create_dataset(name, data=data, chunks=chunks, compression="gzip" if chunks else None)
    group[name].attrs.update(attrs)
    group.attrs["field_names"] = [*group.attrs.get("field_names", []), name]


def write(
    path: Path,
    *,
    space: tuple[str, ...] = ("x", "y"),
    trajectories: int = TRAJECTORIES,
    steps: int = STEPS,
    seed: int = 0,
    viscosity: float = 0.1,
    chunks: bool = False,
    boundaries: dict[str, tuple[str, list[str], tuple[int, ...]]] | None = None,
) -> dict[str, np.ndarray]:
    """A file as the format prescribes it, with density (t0), velocity (t1), D (t2) and one parameter."""
    grid = tuple(SIZES[dim] for dim in space)
    full = (trajectories, steps, *grid)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs.update(dataset_name="tiny", grid_type="cartesian", n_spatial_dims=len(grid))
        file.attrs.update(n_trajectories=trajectories, simulation_parameters=["viscosity"], viscosity=viscosity)
        dimensions = file.create_group("dimensions")
        put(dimensions, "time", 0.5 * np.arange(steps, dtype=np.float32), sample_varying=False)
        for dim in space:
            coordinates = np.linspace(0, 1, SIZES[dim], dtype=np.float32)
            put(dimensions, dim, coordinates, sample_varying=False, time_varying=False)
        dimensions.attrs["spatial_dims"] = list(space)
        conditions = file.create_group("boundary_conditions")
        for name, (kind, dims, sides) in (boundaries or {}).items():
            group = conditions.create_group(name)
            group.attrs.update(bc_type=kind, associated_dims=dims, associated_fields=[])
            group.attrs.update(sample_varying=False, time_varying=False)
            mask = np.zeros([SIZES[dim] for dim in dims], bool)
            for side in sides:
                mask[side] = True
            group["mask"] = mask
        put(file.create_group("scalars"), "viscosity", viscosity, sample_varying=False, time_varying=False)
        arrays = {}
        for rank, name in enumerate(("density", "velocity", "D")):
            flags = {"sample_varying": True, "time_varying": True, "dim_varying": [True] * len(grid)}
            if rank == 2:
                flags |= {"symmetric": True, "antisymmetric": False}
            arrays[name] = values((*full, *(len(grid),) * rank), seed + rank)
            group = file.create_group(f"t{rank}_fields")
            stored = (1, 2, *grid, *(len(grid),) * rank) if chunks else None
            put(group, name, arrays[name], chunks=stored, **flags)
    return arrays


def refused(source: Any, *phrases: str) -> None:
    """Opening must fail with a UserError that is one line and holds every phrase."""
    with pytest.raises(UserError) as caught:
        open_the_well(source)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    for phrase in phrases:
        assert phrase in message, message


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was read: the dataset and the number of its values, for each read that reached HDF5."""
    seen: list[tuple[str, int]] = []
    original = hdf5_fields.Files._read

    def remember(self: Any, number: int, dataset: str, key: tuple, shape: tuple[int, ...]) -> np.ndarray:
        result = original(self, number, dataset, key, shape)
        seen.append((dataset, result.size))
        return result

    monkeypatch.setattr(hdf5_fields.Files, "_read", remember)
    return seen


def test_a_scalar_field_keeps_its_name_and_values(tmp_path: Path) -> None:
    arrays = write(tmp_path / "a.hdf5")
    np.testing.assert_array_equal(open_the_well(tmp_path / "a.hdf5").density, arrays["density"])


def test_is_the_well(tmp_path: Path) -> None:
    path = tmp_path / "data" / "train" / "a.hdf5"
    write(path)
    xr.Dataset({"t0_fields": ("x", [1.0])}).to_netcdf(tmp_path / "other.h5")
    (tmp_path / "text.hdf5").write_text("no HDF5")
    assert is_the_well(path) and is_the_well(tmp_path / "data") and is_the_well(path.parent)
    for other in ("other.h5", "text.hdf5", "absent.hdf5"):
        assert not is_the_well(tmp_path / other)
    path.write_bytes(path.read_bytes()[:3000])
    assert not is_the_well(path)


@pytest.mark.parametrize("space", [("x",), ("x", "y"), ("x", "y", "z"), ("y", "x")])
@pytest.mark.parametrize("chunks", [False, True])
def test_vectors_and_tensors_are_taken_apart(tmp_path: Path, space: tuple[str, ...], chunks: bool) -> None:
    arrays = write(tmp_path / "a.hdf5", space=space, chunks=chunks)
    ds = open_the_well(tmp_path / "a.hdf5")
    assert ds.density.dims == ("trajectory", "time", *space)
    for i, first in enumerate(space):
        np.testing.assert_array_equal(ds[f"velocity_{first}"], arrays["velocity"][..., i])
        for j, second in enumerate(space):
            np.testing.assert_array_equal(ds[f"D_{first}{second}"], arrays["D"][..., i, j])
    count = len(space)
    assert len(ds.data_vars) == 1 + count + count**2
    last = space[-1]
    assert ds[f"velocity_{last}"].attrs == {"tensor": "velocity", "component": last, "rank": 1}
    flags = {"symmetric": True, "antisymmetric": False}
    assert ds[f"D_x{last}"].attrs == {"tensor": "D", "component": f"x{last}", "rank": 2, **flags}
    np.testing.assert_array_equal(ds.time, [0, 0.5, 1, 1.5, 2])
    np.testing.assert_array_equal(ds[last], np.linspace(0, 1, SIZES[last], dtype=np.float32))
    assert ds.attrs["grid_type"] == "cartesian" and ds.attrs["dataset_name"] == "tiny"
    if chunks:
        assert ds.D_xx.encoding["chunksizes"] == (1, 2, *(SIZES[dim] for dim in space))


def test_long_names_of_axes_stay_apart(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        for old, new in (("x", "theta"), ("y", "phi")):
            file["dimensions"].move(old, new)
        file["dimensions"].attrs["spatial_dims"] = ["theta", "phi"]
        file.attrs["grid_type"] = "spherical"
    ds = open_the_well(tmp_path / "a.hdf5")
    assert ds.attrs["grid_type"] == "spherical" and ds.density.dims[2:] == ("theta", "phi")
    assert {"velocity_theta", "D_theta_phi"} <= set(ds.data_vars)


SELECTIONS: list[dict[str, Any]] = [
    {"trajectory": 1, "time": slice(1, 4)},
    {"trajectory": [2, 0], "x": -1},
    {"time": slice(None, None, -1), "y": slice(1, None, 2)},
    {"x": [3, 0, 0], "y": [5, 1]},
    {"trajectory": slice(2, 1)},
    {"time": np.array([4, 1]), "trajectory": slice(None, None, 2)},
    {"time": xr.DataArray([0, 3], dims="point"), "y": xr.DataArray([2, 5], dims="point")},
    {"trajectory": [3, 0]},
    {"trajectory": -1, "time": [-1, 0]},
    {"trajectory": slice(None, None, -1), "x": slice(-2, None)},
    {"trajectory": np.array([True, False, True, True])},
]


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
@pytest.mark.parametrize("piece", [hdf5_fields.SLAB_BYTES, 100])
def test_any_selection_is_that_of_memory(
    tmp_path: Path, selection: dict[str, Any], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5_fields, "SLAB_BYTES", piece)
    for number, count in enumerate((3, 1)):
        write(tmp_path / f"{number}.hdf5", trajectories=count, seed=10 * number)
    ds = open_the_well(tmp_path)
    for name in ("density", "velocity_y", "D_yx"):
        xr.testing.assert_equal(ds[name].isel(selection), ds[name].compute().isel(selection))
    assert ds.density.transpose("x", ...).isel(time=2).shape == (4, 4, 6)


def test_only_what_is_indexed_is_read(tmp_path: Path, reads: list[tuple[str, int]]) -> None:
    write(tmp_path / "a.hdf5", steps=20)
    ds = open_the_well(tmp_path)
    assert reads == []
    part = ds["velocity_x"][2, 10:14]
    assert reads == []
    part.load()
    # 4 steps of 4 x 6 points with both components, which lie side by side in the file
    assert reads == [("t1_fields/velocity", 4 * 24 * 2)]
    ds["velocity_y"][2, 10:14].load()
    assert len(reads) == 1  # the other component of the same steps is there already
    ds["density"][0, 3].load()
    assert reads[1:] == [("t0_fields/density", 24)]


def test_a_file_that_is_not_selected_is_not_read(tmp_path: Path) -> None:
    first, second = tmp_path / "a.hdf5", tmp_path / "b.hdf5"
    arrays = write(first)
    write(second)
    ds = open_the_well([first, second])
    second.unlink()
    np.testing.assert_array_equal(ds.density[:TRAJECTORIES], arrays["density"])
    with pytest.raises(UserError, match=re.escape(f"cannot read t0_fields/density of {second}")):
        ds.density[TRAJECTORIES].load()


def test_memory_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_fields, "SLAB_BYTES", 400_000)
    write(tmp_path / "a.hdf5", steps=8000)  # D has 3 x 8000 x 24 x 4 values of 4 bytes: 9.2 MB
    tracemalloc.start()
    try:
        field = open_the_well(tmp_path).D_xy.load()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # What is delivered (2.3 MB), one slab of 0.4 MB, and at most 0.3 MB for all the rest.
    assert field.nbytes < peak < field.nbytes + 700_000


def test_fields_have_the_dimensions_that_they_vary_along(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5")
    expected = {
        "mask": (values((4, 6), 1), ("x", "y"), 0),
        "depth": (values((3, 6), 2), ("trajectory", "y"), 0),
        "forcing": (values((5, 4), 3), ("time", "x"), 0),
        "gravity": (values((2,), 4), (), 1),
    }
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        for name, (data, dims, rank) in expected.items():
            flags = {"sample_varying": "trajectory" in dims, "time_varying": "time" in dims}
            flags["dim_varying"] = [dim in dims for dim in ("x", "y")]
            put(file[f"t{rank}_fields"], name, data, units="m", **flags)
    ds = open_the_well(tmp_path / "a.hdf5")
    assert ds.mask.attrs == {"units": "m"}
    for name in ("mask", "depth", "forcing"):
        assert ds[name].dims == expected[name][1]
        np.testing.assert_array_equal(ds[name], expected[name][0])
    assert ds.gravity_x.dims == () and float(ds.gravity_y) == expected["gravity"][0][1]


@pytest.mark.parametrize("piece", [hdf5_fields.SLAB_BYTES, 30])
def test_static_fields_of_several_files(tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sciJEPA.storage.the_well.SLAB_BYTES", piece)
    same, other = values((4, 6), 1), [values((4, 6), 2), values((4, 6), 3)]
    for number in range(2):
        write(tmp_path / f"{number}.hdf5", trajectories=2)
        with h5py.File(tmp_path / f"{number}.hdf5", "a") as file:
            flags = {"sample_varying": False, "time_varying": False, "dim_varying": [True, True]}
            put(file["t0_fields"], "same", same, **flags)
            put(file["t0_fields"], "other", other[number], **flags)
    ds = open_the_well(tmp_path)
    assert ds.same.dims == ("x", "y")
    np.testing.assert_array_equal(ds.same, same)
    assert ds.other.dims == ("trajectory", "x", "y")
    # trajectories 0 and 1 are of the first file, 2 and 3 of the second
    np.testing.assert_array_equal(ds.other, np.stack([other[0], other[0], other[1], other[1]]))
    np.testing.assert_array_equal(ds.other[3, 1:3], other[1][1:3])


def test_scalars(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        put(file["scalars"], "angle", np.arange(3.0), sample_varying=True, time_varying=False, units="degrees")
        put(file["scalars"], "energy", values((3, 5)), sample_varying=True, time_varying=True)
        put(file["scalars"], "wind", np.arange(5.0), sample_varying=False, time_varying=True)
        put(file["scalars"], "gamma", np.array([1.4]), sample_varying=False, time_varying=False)
    ds = open_the_well(tmp_path / "a.hdf5")
    assert ds.angle.dims == ("trajectory",) and ds.angle.attrs == {"units": "degrees"}
    assert ds.energy.dims == ("trajectory", "time") and ds.wind.dims == ("time",)
    assert ds.gamma.dims == () and float(ds.gamma) == 1.4
    assert {"angle", "gamma", "viscosity"} <= set(ds.coords) and {"energy", "wind"} <= set(ds.data_vars)
    np.testing.assert_array_equal(ds.viscosity, [0.1, 0.1, 0.1])  # a parameter is told for each trajectory


@pytest.mark.parametrize("folder", ["", "data"])
def test_files_are_joined_with_parameters_and_splits(tmp_path: Path, folder: str) -> None:
    arrays = []
    for number, split in enumerate(("train", "train", "valid", "test")):
        path = tmp_path / folder / split / f"{number}.hdf5"
        arrays.append(write(path, trajectories=number + 1, viscosity=0.1 * number, seed=10 * number))
    ds = open_the_well(tmp_path)
    np.testing.assert_array_equal(ds.D_xy, np.concatenate([array["D"][..., 0, 1] for array in arrays]))
    np.testing.assert_allclose(ds.viscosity, [0, 0.1, 0.1, 0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 0.3])
    assert ds.split.values.tolist() == ["train"] * 3 + ["valid"] * 3 + ["test"] * 4
    assert [Path(file).name for file in ds.file.values[[0, 1, 9]]] == ["0.hdf5", "1.hdf5", "3.hdf5"]
    valid = ds.isel(trajectory=ds.split.values == "valid")
    np.testing.assert_array_equal(valid.density, arrays[2]["density"])


def test_a_flat_folder_has_no_split(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5")
    write(tmp_path / "b.h5", viscosity=0.2)
    (tmp_path / "stats.yaml").write_text("")
    for source in (tmp_path, f"{tmp_path}/*.h*5", [tmp_path / "a.hdf5", tmp_path / "b.h5"]):
        ds = open_the_well(source)
        assert "split" not in ds.coords and ds.sizes["trajectory"] == 6
        np.testing.assert_allclose(ds.viscosity, [0.1] * 3 + [0.2] * 3)


def test_parameters_without_scalars(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"{number}.hdf5", trajectories=1)
        with h5py.File(tmp_path / f"{number}.hdf5", "a") as file:
            file.attrs["simulation_parameters"] = ["viscosity", "scheme", "axis"]
            file.attrs.update(scheme=f"scheme {number}", axis=[0.0, number])
    ds = open_the_well(tmp_path)
    assert ds.scheme.values.tolist() == ["scheme 0", "scheme 1"]
    assert ds.axis.values.tolist() == [[0, 0], [0, 1]] and ds.axis.dims == ("trajectory", "axis_entry_0")


def test_boundary_conditions_of_each_side(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5", boundaries=PERIODIC_BUT_WALL_BELOW)
    conditions = json.loads(open_the_well(tmp_path / "a.hdf5").attrs["boundary_conditions"])
    assert conditions == {"x": ["periodic", "periodic"], "y": ["wall", "open"]}


def test_boundary_conditions_of_masks_over_the_plane(tmp_path: Path) -> None:
    # The first and the last row of x, over all y. At the sides of y they cover 2 of 4 points, no more than open does;
    # z has none.
    write(tmp_path / "a.hdf5", space=("x", "y", "z"), boundaries={"walls": ("WALL", ["x", "y"], (0, -1))})
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        mask = file["boundary_conditions/walls/mask"]
        mask[0, 3] = False  # a hole: five of six points are wall
        mask[-1, 1:] = False  # one of six
        mask[:, 0] = [True, False, False, False]
        group = file["boundary_conditions"].create_group("y_periodic")
        group.attrs.update(bc_type="periodic", associated_dims="y", sample_varying=True)
        group["mask"] = np.array([[True] + [False] * 4 + [True]] * 3)
    conditions = json.loads(open_the_well(tmp_path / "a.hdf5").attrs["boundary_conditions"])
    assert conditions == {"x": ["wall", "open"], "y": ["periodic", "periodic"], "z": ["open", "open"]}


def test_times_of_each_trajectory(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"{number}.hdf5", trajectories=2)
    times = values((2, STEPS))
    with h5py.File(tmp_path / "1.hdf5", "a") as file:
        del file["dimensions/time"]
        file["dimensions/time"] = times
        file["dimensions/time"].attrs["sample_varying"] = True
    ds = open_the_well(tmp_path)
    assert ds.time.values.tolist() == [0, 1, 2, 3, 4]
    assert ds.time_of_trajectory.dims == ("trajectory", "time")
    np.testing.assert_array_equal(ds.time_of_trajectory[:2], [[0, 0.5, 1, 1.5, 2]] * 2)
    np.testing.assert_array_equal(ds.time_of_trajectory[2:], times)


def test_pickles(tmp_path: Path) -> None:
    arrays = write(tmp_path / "a.hdf5")
    ds = open_the_well(tmp_path / "a.hdf5")
    ds.velocity_x[0].load()  # the handle is open now
    again = pickle.loads(pickle.dumps(ds))
    np.testing.assert_array_equal(again.velocity_x, arrays["velocity"][..., 0])


def test_threads_read_what_they_ask_for(tmp_path: Path) -> None:
    arrays = write(tmp_path / "a.hdf5", chunks=True)
    ds = open_the_well(tmp_path / "a.hdf5")
    names = [("velocity_x", 0), ("velocity_y", 1)]
    tasks = [(name, component, step) for step in range(STEPS) for name, component in names] * 4
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda task: ds[task[0]][:, task[2]].values, tasks))
    for (_, component, step), result in zip(tasks, results, strict=True):
        np.testing.assert_array_equal(result, arrays["velocity"][:, step, ..., component])


def _answer(ds: xr.Dataset, answers: Any) -> None:
    opened = []

    class Recorded(h5py.File):
        def __init__(self, path: str, **options: Any) -> None:
            opened.append(path)
            super().__init__(path, **options)

    h5py.File = Recorded
    answers.put((opened, ds.velocity_x[1].values))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_its_own_handle_and_lock(tmp_path: Path) -> None:
    arrays = write(tmp_path / "a.hdf5", chunks=True)
    ds = open_the_well(tmp_path / "a.hdf5")
    ds.velocity_x[0].load()
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_answer, args=(ds, answers), daemon=True)
    held, released = threading.Event(), threading.Event()

    def hold() -> None:
        with hdf5_fields._lock:
            held.set()
            released.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    child.start()
    released.set()
    holder.join()
    try:
        opened, result = answers.get(timeout=300)
        assert opened == [str(tmp_path / "a.hdf5")]
        np.testing.assert_array_equal(result, arrays["velocity"][1, ..., 0])
    finally:
        child.kill()
        child.join()


def test_a_closed_dataset_reads_again(tmp_path: Path) -> None:
    arrays = write(tmp_path / "a.hdf5")
    with open_the_well(tmp_path / "a.hdf5") as ds:
        ds.density[0].load()
    np.testing.assert_array_equal(ds.density, arrays["density"])


def test_it_can_be_written_and_chunked(tmp_path: Path) -> None:
    write(tmp_path / "a.hdf5", chunks=True, boundaries=PERIODIC_BUT_WALL_BELOW)
    ds = open_the_well(tmp_path / "a.hdf5")
    for name in ds.data_vars:
        ds[name].encoding.clear()
    ds.to_netcdf(tmp_path / "b.nc")
    with xr.open_dataset(tmp_path / "b.nc") as again:
        xr.testing.assert_equal(again.drop_vars("file"), ds.drop_vars("file"))
        assert again.attrs == ds.attrs
    xr.testing.assert_equal(ds.chunk({"time": 2}).D_xy.compute(), ds.D_xy)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    first = tmp_path / "first.hdf5"
    write(first, boundaries=PERIODIC_BUT_WALL_BELOW)

    def differs(name: str, *phrases: str, **options: Any) -> None:
        path = tmp_path / name
        write(path, **({"boundaries": PERIODIC_BUT_WALL_BELOW} | options))
        refused([first, path], str(path), str(first), *phrases)

    differs("longer.hdf5", "5 in 1 file, such as", "7 in 1 file, such as", "open_the_well([...])", steps=7)
    differs("deeper.hdf5", "grid is {'x': 4, 'y': 6, 'z': 2}, not {'x': 4, 'y': 6}", space=("x", "y", "z"))
    differs("walls.hdf5", "boundary conditions", boundaries={"x_wall": ("WALL", ["x"], (0, -1))})
    other = tmp_path / "other.hdf5"
    write(other, boundaries=PERIODIC_BUT_WALL_BELOW)
    with h5py.File(other, "a") as file:
        file["dimensions/x"][1] = 0.5
    refused([first, other], str(other), "dimensions/x differs by up to 0.166667")  # 1/3 on four points from 0 to 1
    with h5py.File(other, "a") as file:
        del file["t1_fields/velocity"]
        file["t1_fields"].attrs["field_names"] = []
    refused([first, other], "fields is ['t0_fields/density', 't2_fields/D']")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"

    def damaged(*phrases: str, **deleted: str) -> None:
        refused(path, str(path), *phrases)
        write(path)

    write(path)
    path.write_bytes(path.read_bytes()[:-2000])
    damaged("cannot be opened", "truncated")
    for place, phrase in {
        "dimensions": "lacks the group dimensions",
        "t0_fields": "lacks the group t0_fields",
        "dimensions/y": "lacks dimensions/y",
        "dimensions/time": "lacks dimensions/time",
        "t1_fields/velocity": "t1_fields lists velocity",
    }.items():
        with h5py.File(path, "a") as file:
            del file[place]
        damaged(phrase)
    with h5py.File(path, "a") as file:
        file["t0_fields/density"].attrs["time_varying"] = False
    damaged("t0_fields/density", "(3, 5, 4, 6), but (3, 4, 6) is needed for (trajectory, x, y)")
    with h5py.File(path, "a") as file:
        del file.attrs["n_trajectories"]
    damaged("attribute n_trajectories")
    with h5py.File(path, "a") as file:
        file.attrs["simulation_parameters"] = ["speed"]
    damaged("lists the parameter speed")
    with h5py.File(path, "a") as file:
        put(file["t0_fields"], "velocity_x", values((4, 6)), dim_varying=[True, True])
    damaged("velocity_x twice")
    with h5py.File(path, "a") as file:
        del file["dimensions/x"]
        file["dimensions/x"] = values((3, 4))
    damaged("dimensions/x", "differs between trajectories")
    refused(tmp_path / "absent.hdf5", "does not exist")
    refused([], "list of files is empty")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no HDF5 files")


def test_a_damaged_chunk_and_a_changed_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    write(path, chunks=True)
    with h5py.File(path) as file:
        chunk = file["t1_fields/velocity"].id.get_chunk_info_by_coord((0, 2, 0, 0, 0))
    ds = open_the_well(path)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    ds.velocity_x[0, :2].load()
    with pytest.raises(UserError, match=re.escape(f"cannot read t1_fields/velocity of {path}")):
        ds.velocity_x[0, 2].load()
    ds.close()
    write(path, steps=STEPS + 1)
    with pytest.raises(UserError, match=r"density of .* it has the shape \(3, 6, 4, 6\) now"):
        ds.density.load()


def test_without_h5py_the_layout_is_known_and_the_extra_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.hdf5", boundaries=PERIODIC_BUT_WALL_BELOW)
    original = builtins.__import__

    def without_h5py(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "h5py":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_h5py)
    assert is_the_well(tmp_path / "a.hdf5")
    refused(tmp_path / "a.hdf5", 'pip install "sciJEPA[netcdf]"')
