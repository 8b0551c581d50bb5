"""Samples per second of the loader, beside what people use today and beside what this machine could do at all.

    python benchmarks/loader.py --data loader-data            # 2 GB of data in each of five storages, some ten minutes
    python benchmarks/loader.py --data loader-data --size-mb 400 --storages zarr-32 --json loader.json

Makes an archive of smooth fields in WeatherBench's layout (6 variables on time, longitude 128, latitude 64, float32,
six-hourly) in five storages, then serves shuffled windows of 4 steps of all variables in batches of 32:

sciJEPA  `WindowReader` and `BatchStream`: what training does, but for masks and normalisation, which no other method
         does (missing values are looked for). An epoch each time, before which the reader forgets what it has decoded.
sciJEPA-anomalies  the same with normalisation, as in training: anomalies from a climatology with ten harmonics
xarray   lazily opened datasets, sliced, in a torch DataLoader with as many spawned workers as threads
xbatcher its `BatchGenerator` in the same DataLoader (pip install xbatcher)
zarr     zarr-python, one window per task on a pool of threads
limit    every chunk read and decompressed once an epoch on as many threads, and one copy per delivered sample. This is
         no loader: the copies come from anywhere in decoded memory, in no promised order. NetCDF needs h5py for it.

Every method lives in a process of its own, and the methods take turns: one timing of each, then the next round. Printed
are medians of the rounds. Methods that would need long for an epoch are timed for --seconds. The page cache is warm: a
round that is not counted comes first. Memory is the growth of the resident set from before the first sample to
its highest, summed over the worker processes of a method.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import xarray as xr

VARIABLES = ("z", "t", "u", "v", "q", "msl")
NLON, NLAT, LENGTH, BATCH = 128, 64, 4, 32
STEP_BYTES = len(VARIABLES) * NLON * NLAT * 4
STORAGES = ("zarr-1", "zarr-32", "zarr-shards", "netcdf-deflate", "netcdf-raw")
METHODS = ("sciJEPA", "sciJEPA-anomalies", "xarray", "xbatcher", "zarr", "limit")
PIECE = 256  # steps written at once; whole shards


# --- data -------------------------------------------------------------------------------------------------------------


def smooth_fields(steps: int) -> Iterator[xr.Dataset]:
    """Pieces of fields of low wavenumber that persist for days and repeat nowhere."""
    rng = np.random.default_rng(0)
    rows, columns = 12, 8
    # A few plane waves in both directions span the fields; their amplitudes follow AR(1) processes.
    longitude, latitude = np.linspace(0, 2 * np.pi, NLON, endpoint=False), np.linspace(0, np.pi, NLAT)
    east = np.concatenate([[wave(k * longitude) for wave in (np.sin, np.cos)] for k in range(1, rows // 2 + 1)])
    north = np.stack([np.cos(k * latitude) for k in range(columns)])
    amplitude = rng.standard_normal((len(VARIABLES), rows, columns))
    scale = 1 / (1 + np.arange(rows)[:, None] // 2 + np.arange(columns))
    times = pd.date_range("2000-01-01", periods=steps, freq="6h")
    coords = {"longitude": np.arange(NLON) * 360 / NLON, "latitude": np.linspace(-88.6, 88.6, NLAT)}
    attributes = {"longitude": {"units": "degrees_east"}, "latitude": {"units": "degrees_north"}}
    for start in range(0, steps, PIECE):
        count = min(PIECE, steps - start)
        fields = np.empty((len(VARIABLES), count, NLON, NLAT), dtype=np.float32)
        for step in range(count):
            amplitude = 0.95 * amplitude + 0.3 * rng.standard_normal(amplitude.shape)
            fields[:, step] = np.einsum("vrc,rx,cy->vxy", amplitude * scale, east, north, optimize=True)
        fields += np.array([5e3, 280, 0, 0, 5, 1e3], dtype=np.float32)[:, None, None, None]
        data = {name: (("time", "longitude", "latitude"), fields[i]) for i, name in enumerate(VARIABLES)}
        piece = xr.Dataset(data, {"time": times[start : start + count], **coords})
        for name, found in attributes.items():
            piece[name].attrs |= found
        yield piece


def path_of(folder: Path, storage: str) -> Path:
    return folder / (storage + (".zarr" if storage.startswith("zarr") else ".nc"))


def generate(folder: Path, steps: int, storages: list[str]) -> None:
    """Write the storages that are not there, each under another name until it is complete."""
    missing = [storage for storage in storages if not path_of(folder, storage).exists()]
    for storage in missing:
        print(f"writing {steps} steps as {storage} into {folder}", file=sys.stderr)
        part = path_of(folder, f"{storage}-part") if storage.startswith("netcdf") else folder / f"{storage}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.unlink(missing_ok=True)
        (write_zarr if storage.startswith("zarr") else write_netcdf)(part, storage, steps)
        part.rename(path_of(folder, storage))


def write_zarr(path: Path, storage: str, steps: int) -> None:
    import zarr

    # The codec of WeatherBench 2's own stores.
    codec = zarr.codecs.BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")
    chunk = {"zarr-1": 1, "zarr-32": 32, "zarr-shards": 8}[storage]
    encoding: dict[str, Any] = {"chunks": (chunk, NLON, NLAT), "compressors": (codec,)}
    if storage == "zarr-shards":
        encoding["shards"] = (256, NLON, NLAT)
    for number, piece in enumerate(smooth_fields(steps)):
        if number:
            piece.drop_encoding().to_zarr(path, append_dim="time", zarr_format=3, consolidated=False)
        else:
            settings: dict[str, Any] = {name: encoding for name in VARIABLES}
            settings["time"] = {"units": "hours since 2000-01-01", "chunks": (steps,)}
            piece.to_zarr(path, encoding=settings, zarr_format=3, consolidated=False)
    zarr.consolidate_metadata(path)


def write_netcdf(path: Path, storage: str, steps: int) -> None:
    import netCDF4

    options: dict[str, Any] = {"contiguous": True}
    if storage == "netcdf-deflate":
        options = {"zlib": True, "complevel": 4, "shuffle": True, "chunksizes": (8, NLON, NLAT)}
    with netCDF4.Dataset(path, "w") as file:
        start = 0
        for piece in smooth_fields(steps):
            stop = start + piece.sizes["time"]
            if start == 0:
                for name, size in (("time", steps), ("longitude", NLON), ("latitude", NLAT)):
                    file.createDimension(name, size)
                    file.createVariable(name, "f8", (name,))
                file["time"].units = "hours since 2000-01-01"
                for name in ("longitude", "latitude"):
                    file[name][:] = piece[name].values
                    file[name].units = piece[name].attrs["units"]
                for name in VARIABLES:
                    file.createVariable(name, "f4", ("time", "longitude", "latitude"), **options)
            file["time"][start:stop] = np.arange(start, stop) * 6
            for name in VARIABLES:
                file[name][start:stop] = piece[name].values
            start = stop


# --- methods ----------------------------------------------------------------------------------------------------------
# Each is a function of (path, threads, memory) that gives another, which takes seconds and gives samples and seconds.

Round = Callable[[float], tuple[int, float]]


def stream_of(path: str, memory_mb: int, mode: str = "none") -> Callable[[int], Any]:
    """Streams of one epoch each, for which nothing is decoded beforehand; the statistics are fitted once."""
    from sciJEPA.archive import open_archive
    from sciJEPA.loader import BatchStream, WindowReader
    from sciJEPA.normalize import fit_normalizer
    from sciJEPA.samples import window_starts

    archive = open_archive(path)
    starts = window_starts(archive, ((0, len(archive)),), LENGTH)
    normalizer = fit_normalizer(archive, ((0, len(archive)),), {"default": mode})
    batches = len(starts) // BATCH

    reader = WindowReader(archive, normalizer, memory_mb=memory_mb)

    class NoMasks:
        def __call__(self, samples: Any, epoch: int, step: int) -> Any:
            return None

        def points(self, shape: Any, samples: Any, epoch: int) -> Any:
            return None

    masker: Any = NoMasks()

    def epoch(number: int) -> BatchStream:
        reader.forget()
        first = number * batches
        return BatchStream(reader, masker, starts, LENGTH, first + batches, BATCH, first=first)

    return epoch


def scijepa(path: str, threads: int, memory_mb: int, mode: str = "none") -> Round:
    epoch = stream_of(path, memory_mb, mode)
    rounds = 0

    def once(seconds: float) -> tuple[int, float]:
        nonlocal rounds
        batches, start = epoch(rounds), time.perf_counter()
        samples = sum(len(batch.values) for batch, _ in batches)
        seconds = time.perf_counter() - start
        rounds += 1
        return samples, seconds

    return once


def scijepa_anomalies(path: str, threads: int, memory_mb: int) -> Round:
    return scijepa(path, threads, memory_mb, "anomaly")


class Windows:
    """A map-style data set: window number -> its values; opened where it is first used."""

    def __init__(self, path: str, xbatcher: bool) -> None:
        self.path, self.xbatcher = path, xbatcher
        self.windows: Any = None

    def open(self) -> Any:
        options: dict[str, Any] = {} if self.path.endswith(".nc") else {"engine": "zarr"}
        ds = xr.open_dataset(self.path, chunks=None, cache=False, **options)
        if not self.xbatcher:
            return ds
        from xbatcher import BatchGenerator

        return BatchGenerator(ds, {"time": LENGTH}, {"time": LENGTH - 1}, preload_batch=False)

    def __getitem__(self, number: int) -> np.ndarray:
        self.windows = self.windows or self.open()
        if self.xbatcher:
            window = self.windows[number]
        else:
            window = self.windows.isel(time=slice(number, number + LENGTH))
        return np.stack([window[name].values for name in VARIABLES])


def in_loader(path: str, threads: int, xbatcher: bool) -> Round:
    from torch.utils.data import DataLoader

    if xbatcher:
        import xbatcher as _  # noqa: F401  tells that it is missing before a worker does
    with xr.open_dataset(path, chunks=None) as ds:
        windows = ds.sizes["time"] - LENGTH + 1
    order = np.concatenate([np.random.default_rng(n).permutation(windows)[: 2**16] for n in range(20)]).tolist()
    dataset: Any = Windows(path, xbatcher)
    loader: Any = DataLoader(
        dataset, BATCH, sampler=order, num_workers=threads, multiprocessing_context="spawn", persistent_workers=True
    )
    batches = iter(loader)
    next(batches)  # the workers have imported what they need; memory is counted from here

    def once(seconds: float) -> tuple[int, float]:
        for _ in range(2 * threads):  # what was prepared while others were timed
            next(batches)
        samples, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds or samples < 4 * BATCH:
            samples += len(next(batches))
        return samples, time.perf_counter() - start

    return once


def zarr_threads(path: str, threads: int, memory_mb: int) -> Round:
    import zarr

    if path.endswith(".nc"):
        raise ImportError("zarr reads no NetCDF")
    zarr.config.set({"async.concurrency": threads, "threading.max_workers": threads})
    group: Any = zarr.open_group(path, mode="r")
    arrays = [group[name] for name in VARIABLES]
    rng = np.random.default_rng(0)
    pool = ThreadPoolExecutor(threads)

    def window(start: int) -> np.ndarray:
        return np.stack([array[start : start + LENGTH] for array in arrays])

    def once(seconds: float) -> tuple[int, float]:
        samples, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds or samples < BATCH:
            starts = rng.integers(0, arrays[0].shape[0] - LENGTH + 1, BATCH).tolist()
            samples += len(np.stack(list(pool.map(window, starts))))
        return samples, time.perf_counter() - start

    return once


def limit(path: str, threads: int, memory_mb: int) -> Round:
    """Every chunk once, into a slab that stands for decoded memory; for each of its steps one sample is copied."""
    chunk, steps, decode = netcdf_chunks(path) if path.endswith(".nc") else zarr_chunks(path)
    slab_steps = max(chunk, memory_mb * 2**20 // STEP_BYTES // 2 // chunk * chunk)
    slab = np.zeros((len(VARIABLES), slab_steps, NLON, NLAT), dtype=np.float32)
    batches = np.zeros((4, BATCH, len(VARIABLES), LENGTH, NLON, NLAT), dtype=np.float32)
    ring = batches.reshape(-1, *batches.shape[2:])
    rng = np.random.default_rng(0)
    sources = rng.integers(0, slab_steps - LENGTH + 1, steps + chunk).tolist()
    pool = ThreadPoolExecutor(threads)

    def work(first: int) -> None:
        place, count = first % slab_steps, min(chunk, steps - first)
        for variable in range(len(VARIABLES)):
            decode(variable, first, slab[variable, place : place + chunk])
        for step in range(first, first + count):
            np.copyto(ring[step % len(ring)], slab[:, sources[step] : sources[step] + LENGTH])

    def once(seconds: float) -> tuple[int, float]:
        start = time.perf_counter()
        for _ in pool.map(work, range(0, steps, chunk)):
            pass
        return steps, time.perf_counter() - start

    return once


Decode = Callable[[int, int, np.ndarray], None]


def zarr_chunks(path: str) -> tuple[int, int, Decode]:
    """Steps in a chunk, in all, and a function that decodes the chunk of a variable that begins at a step."""
    from numcodecs import blosc

    blosc.use_threads = False
    about = json.loads((Path(path) / VARIABLES[0] / "zarr.json").read_text())
    steps, stored = about["shape"][0], about["chunk_grid"]["configuration"]["chunk_shape"][0]
    inner = [c["configuration"]["chunk_shape"][0] for c in about["codecs"] if c["name"] == "sharding_indexed"]
    chunk = inner[0] if inner else stored

    def read(variable: int, first: int) -> bytes:
        with open(f"{path}/{VARIABLES[variable]}/c/{first // stored}/0/0", "rb", buffering=0) as file:
            if not inner:
                return file.read()
            size = os.fstat(file.fileno()).st_size
            index_bytes = stored // chunk * 16 + 4  # offset and length of every chunk, and a checksum
            index = np.frombuffer(os.pread(file.fileno(), index_bytes - 4, size - index_bytes), "<u8").reshape(-1, 2)
            offset, length = index[first % stored // chunk].tolist()
            return os.pread(file.fileno(), length, offset)

    def decode(variable: int, first: int, out: np.ndarray) -> None:
        blosc.decompress(read(variable, first), out)

    return chunk, steps, decode


def netcdf_chunks(path: str) -> tuple[int, int, Decode]:
    import h5py
    from numcodecs import Shuffle

    try:
        from deflate import zlib_decompress
    except ImportError:
        import zlib

        def zlib_decompress(data: bytes, size: int) -> bytes:
            return zlib.decompress(data, bufsize=size)

    with h5py.File(path) as file:
        steps = file[VARIABLES[0]].shape[0]
        chunk = file[VARIABLES[0]].chunks[0] if file[VARIABLES[0]].chunks else 16
        raw = file[VARIABLES[0]].chunks is None
        places: list[dict[int, tuple[int, int]]] = []
        for name in VARIABLES:
            stored: dict[int, tuple[int, int]] = {}
            if raw:
                stored[0] = (file[name].id.get_offset(), 0)
            else:
                file[name].id.chunk_iter(
                    lambda c, into=stored: into.update({c.chunk_offset[0]: (c.byte_offset, c.size)})
                )
            places.append(stored)
    handle = os.open(path, os.O_RDONLY)
    unshuffle = Shuffle(4)

    def decode(variable: int, first: int, out: np.ndarray) -> None:
        if raw:
            count = min(chunk, steps - first)
            os.preadv(handle, [out[:count]], places[variable][0][0] + first * out[0].nbytes)
            return
        offset, size = places[variable][first]
        unshuffle.decode(zlib_decompress(os.pread(handle, size, offset), out.nbytes), out)

    return chunk, steps, decode


def statistics_of(path: str, threads: int) -> dict[str, Callable[[], Any]]:
    """What reads an archive once: for its statistics, with sciJEPA and with xarray and Dask; and to decompress it."""
    import dask

    from sciJEPA.archive import open_archive
    from sciJEPA.normalize import fit_normalizer

    archive = open_archive(path)
    chunk, steps, decode = netcdf_chunks(path) if path.endswith(".nc") else zarr_chunks(path)
    local = threading.local()

    def with_dask() -> None:
        with xr.open_dataset(path, chunks={}) as ds, dask.config.set(scheduler="threads", num_workers=threads):
            dask.compute(ds.mean("time"), ds.std("time"))

    def decompress() -> None:
        def work(first: int) -> None:
            if not hasattr(local, "slabs"):
                local.slabs = np.empty((len(VARIABLES), chunk, NLON, NLAT), dtype=np.float32)
            for variable in range(len(VARIABLES)):
                decode(variable, first, local.slabs[variable])

        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, range(0, steps, chunk)):
                pass

    return {
        "sciJEPA": lambda: fit_normalizer(archive, ((0, len(archive)),), {"default": "zscore"}),
        "sciJEPA-anomalies": lambda: fit_normalizer(archive, ((0, len(archive)),)),
        "dask": with_dask,
        "decompress": decompress,
    }


def compare_statistics(storage: str, path: Path, options: argparse.Namespace) -> None:
    """Print seconds of each, medians of rounds in which they take turns."""
    methods = statistics_of(str(path), options.threads)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(options.repeats + 1):
        for name, work in methods.items():
            start = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - start)
    found = {name: statistics.median(times) for name, times in seconds.items()}
    ours, dask, plain, cycles = (found[name] for name in ("sciJEPA", "dask", "decompress", "sciJEPA-anomalies"))
    print(
        f"{storage}: mean, spread and tendencies in {ours:.2f} s ({cycles:.2f} s with a climatology of ten harmonics), "
        f"{dask / ours:.1f} times the speed of Dask's mean and deviation "
        f"(5 or more), {plain / ours:.0%} of that of decompression (60 % or more)"
    )


MAKERS: dict[str, Callable[[str, int, int], Round]] = {
    "sciJEPA": scijepa,
    "sciJEPA-anomalies": scijepa_anomalies,
    "xarray": lambda path, threads, memory: in_loader(path, threads, xbatcher=False),
    "xbatcher": lambda path, threads, memory: in_loader(path, threads, xbatcher=True),
    "zarr": zarr_threads,
    "limit": limit,
}


# --- processes --------------------------------------------------------------------------------------------------------


def memory(key: str) -> float:
    """MB of this process and its children: VmRSS, the resident set now, or VmHWM, the largest that it was."""
    processes, total = [os.getpid()], 0
    while processes:
        process = processes.pop()
        try:
            status = Path(f"/proc/{process}/status").read_text()
            processes += map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in status.splitlines() if line.startswith(key)), 0)
    return total / 1024


def child(method: str, path: str, threads: int, memory_mb: int) -> None:
    """Answer "go SECONDS" with "samples seconds", and "memory" with the growth of the resident set in MB."""
    try:
        once = MAKERS[method](path, threads, memory_mb)
    except ImportError as error:
        print(f"skipped: {error}", flush=True)
        return
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here, after the statistics
    print("ready", flush=True)
    for line in sys.stdin:
        if line.startswith("go"):
            print(*once(float(line.split()[1])), flush=True)
        else:
            print(memory("VmHWM") - before, flush=True)
            return


class Child:
    """One method in a process of its own."""

    def __init__(self, method: str, path: Path, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--child", method, str(path)]
        command += ["--threads", str(options.threads), "--memory-mb", str(options.memory_mb)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.rates: list[float] = []
        self.note = self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, question: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self.answer()

    def time(self, seconds: float) -> float:
        answer = self.ask(f"go {seconds}").split()
        if len(answer) != 2:
            raise RuntimeError(f"{self.process.args} ended with code {self.process.wait()}; its message is above")
        return int(answer[0]) / float(answer[1])


def measure(storage: str, path: Path, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Median samples per second and peak memory of every method."""
    children: dict[str, Child] = {}
    for method in options.methods:
        started = Child(method, path, options)
        if started.note == "ready":
            children[method] = started
        else:
            print(f"{storage}: {method} {started.note or 'failed; its message is above'}", file=sys.stderr)
    for number in range(options.repeats + 1):
        for name, one in children.items():
            rate = one.time(options.seconds)
            if number:  # the first warms the page cache
                one.rates.append(rate)
            print(f"{storage} round {number} {name}: {rate:.0f} samples/s", file=sys.stderr)
    found = {m: (statistics.median(one.rates), float(one.ask("memory"))) for m, one in children.items()}
    for one in children.values():
        one.process.communicate()
    return found


def show(storage: str, found: dict[str, tuple[float, float]]) -> None:
    peers = [found[method][0] for method in ("xarray", "xbatcher") if method in found]
    best = found.get("limit", (None,))[0]
    for method, (rate, peak) in found.items():
        ratio = f"{rate / max(peers):10.1f}" if peers else f"{'-':>10}"
        share = f"{rate / best:10.0%}" if best else f"{'-':>10}"
        print(f"{storage:<15}{method:<18}{rate:>11.0f}{ratio}{share}{peak:>12.0f}")


def shuffling(path: Path, memory_mb: int, epochs: int = 8) -> tuple[float, int, float]:
    """Mean absolute rank correlation of order and time, and least and mean number of separate blocks in a batch."""
    epoch = stream_of(str(path), memory_mb)
    correlations, blocks = [], []
    for number in range(epochs):
        stream = epoch(number)
        batches = [stream.samples(k) for k in range(number * stream.per_epoch, (number + 1) * stream.per_epoch)]
        order = np.concatenate(batches)
        # Window starts are distinct, so their ranks are their places in sorted order.
        correlations.append(abs(np.corrcoef(np.arange(len(order)), order.argsort().argsort())[0, 1]))
        blocks += [len(np.unique(batch // stream.reader.block)) for batch in batches]
    return float(np.mean(correlations)), min(blocks), float(np.mean(blocks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder that keeps the archives; a temporary one if left out")
    parser.add_argument("--size-mb", type=int, default=2000, help="of every archive, before compression")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="time for methods that would need long for an epoch")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--memory-mb", type=int, default=512, help="data.memory_mb of sciJEPA")
    parser.add_argument("--storages", nargs="+", choices=STORAGES, default=STORAGES)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--statistics", action="store_true", help="time the statistics of the archives instead")
    parser.add_argument("--json", type=Path, help="write {storage: {method: samples/s}} to this file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(*options.child, options.threads, options.memory_mb)

    steps = max(PIECE, options.size_mb * 10**6 // STEP_BYTES // PIECE * PIECE)  # whole shards
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.data or Path(temporary)) / f"{steps}-steps"
        folder.mkdir(parents=True, exist_ok=True)
        generate(folder, steps, options.storages)
        if options.statistics:
            for storage in options.storages:
                compare_statistics(storage, path_of(folder, storage), options)
            return None
        title = f"{steps} steps, {steps * STEP_BYTES / 1e6:.0f} MB, {options.threads} threads"
        print(f"{title}, windows of {LENGTH} steps, batches of {BATCH}, medians of {options.repeats}")
        print(f"{'storage':<15}{'method':<18}{'samples/s':>11}{'to peers':>10}{'of limit':>10}{'peak MB':>12}")
        results: dict[str, dict[str, float]] = {}
        for storage in options.storages:
            found = measure(storage, path_of(folder, storage), options)
            show(storage, found)
            results[storage] = {method: rate for method, (rate, _) in found.items()}
        for storage in options.storages if "sciJEPA" in options.methods else ():
            correlation, least, mean = shuffling(path_of(folder, storage), options.memory_mb)
            print(
                f"{storage}: mean |rank correlation| of order and time {correlation:.3f} (below 0.05), "
                f"separate blocks in a batch {mean:.1f}, at least {least} (8 or more)"
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
