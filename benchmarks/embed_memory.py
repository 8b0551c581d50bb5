"""Memory in which an archive is embedded that is larger than it, and whether the numbers are those of one piece.

    python benchmarks/embed_memory.py --folder /scratch/embed                    # 6 GB of archive in 2 GB
    python benchmarks/embed_memory.py --folder /scratch/embed --gigabytes 1 --limit 1 --json embed_memory.json

The archive is noise on 180 x 360 places and 8 levels, uncompressed, in chunks of one step. The model is untrained but
for two steps: its numbers mean nothing, and are all different. Each way is a process of its own. Those with a limit get
it from the system (RLIMIT_DATA), so that one that asks for more memory fails: `out` writes a store, `lazy` hands Dask
arrays to xarray, which writes them, `append` writes the first half of the times and then adds the others, and `lazy
pooled` keeps the mean over tokens alone. `one piece` has no limit: it reads the archive into memory first and encodes
all windows as one range. Printed are the peak of the resident memory, seconds, and whether all bits are those of the
one piece. The archive and the latents are removed at the end.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
import zarr

LEVELS = (1000, 850, 700, 500, 300, 200, 100, 50)
SHAPE = (len(LEVELS), 180, 360)
WAYS = ("one piece", "out", "lazy", "append", "lazy pooled")


def write_archive(path: Path, steps: int) -> None:
    dims = ("time", "level", "latitude", "longitude")
    coords = {
        "time": pd.date_range("2000-01-01", periods=steps, freq="6h"),
        "level": ("level", np.array(LEVELS), {"units": "hPa", "standard_name": "air_pressure"}),
        "latitude": ("latitude", np.arange(180) - 89.5, {"units": "degrees_north"}),
        "longitude": ("longitude", np.arange(360) + 0.5, {"units": "degrees_east"}),
    }
    xr.Dataset(coords=coords).to_zarr(path, consolidated=False)
    array = zarr.open_group(path).create_array(
        "z",
        shape=(steps, *SHAPE),
        chunks=(1, *SHAPE),
        dtype="float32",
        compressors=None,
        dimension_names=dims,
        attributes={"units": "m"},
    )
    noise = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    for step in range(steps):  # no step is another: they move by a place each, and grow
        array[step] = np.roll(noise, step, axis=-1) * np.float32(1 + step / steps)


def train(folder: Path) -> None:
    from sciJEPA.config import config_from_dict
    from sciJEPA.pretrain import pretrain

    write_archive(folder / "small.zarr", 40)
    tree = {
        "data": {"archive": str(folder / "small.zarr"), "window": 3, "context": 2},
        "tokenizer": {"patch_latitude": 30, "patch_longitude": 30},
        "encoder": {"width": 64, "depth": 2, "heads": 2},
        "predictor": {"width": 32, "depth": 1, "heads": 2},
        "training": {"steps": 2, "batch_size": 4, "precision": "float32"},
    }
    pretrain(config_from_dict(tree), folder / "run", progress=False)


def in_memory(path: Path) -> xr.Dataset:
    stored = xr.open_zarr(path, consolidated=False, chunks=None)
    values = np.empty(stored["z"].shape, np.float32)
    for first in range(0, len(values), 64):
        values[first : first + 64] = stored["z"][first : first + 64].values
    return stored.assign(z=stored["z"].copy(data=values))


def one_way(folder: Path, way: str, limit: float) -> None:
    """Embed in this process, and print what it took."""
    import sciJEPA
    from sciJEPA.embedding import encoding

    if way != "one piece":
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 1e9), int(limit * 1e9)))
    begin = time.perf_counter()
    model, path, out = sciJEPA.load(folder / "run"), folder / "archive.zarr", folder / f"{way}.zarr"
    if way == "one piece":
        encoding.RANGE_BYTES = 2**60
        sciJEPA.embed(model, in_memory(path), lazy=False).to_zarr(out, consolidated=False)
    elif way == "out":
        sciJEPA.embed(model, path, out=out)
    elif way == "append":
        whole = xr.open_zarr(path, consolidated=False, chunks=None)
        sciJEPA.embed(model, whole.isel(time=slice(whole.sizes["time"] // 2)), out=out)
        sciJEPA.embed(model, path, out=out, append=True)
    else:
        sciJEPA.embed(model, path, pooled=way == "lazy pooled", lazy=True).to_zarr(out, consolidated=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"way": way, "peak_gb": peak / 1e9, "seconds": time.perf_counter() - begin}))


def same_bits(folder: Path, way: str) -> bool:
    from sciJEPA.explore import pool

    piece, found = (
        xr.open_zarr(folder / f"{name}.zarr", chunks=None, consolidated=False) for name in ("one piece", way)
    )
    for first in range(0, piece.sizes["time"], 256):
        wanted, given = (ds.isel(time=slice(first, first + 256)).load() for ds in (piece, found))
        if way == "lazy pooled":
            wanted = pool(wanted).astype(np.float32)
        if not all(np.array_equal(wanted[name], given[name]) for name in (*wanted.data_vars, "time")):
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the archive is written; must not exist")
    parser.add_argument("--gigabytes", type=float, default=6.0, help="size of the archive")
    parser.add_argument("--limit", type=float, default=2.0, help="memory of the processes, in GB")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        return one_way(options.folder, options.way, options.limit)
    options.folder.mkdir(parents=True)
    rows = []
    try:
        steps = round(options.gigabytes * 1e9 / (4 * np.prod(SHAPE)))
        write_archive(options.folder / "archive.zarr", steps)
        train(options.folder)
        for way in WAYS:
            words = ["--folder", str(options.folder), "--way", way, "--limit", str(options.limit)]
            done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1]) | {"same_bits": same_bits(options.folder, way)}
            rows.append({"archive_gb": options.gigabytes, "limit_gb": options.limit, **row})
            print(
                f"{way:<12} {row['peak_gb']:5.2f} GB {row['seconds']:6.0f} s  same bits: {row['same_bits']}", flush=True
            )
    finally:
        shutil.rmtree(options.folder)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
