"""Part of encoder -> latents: latents in a Zarr store, range by range, by one process or by the workers of a cluster.

Arrives: an encoding, and what it will give as a lazy dataset with labels. Leaves: a store that is complete or not
there. Until all is written it lies in a hidden folder beside its place, with a journal of the ranges that are done,
from which the same call goes on. New times of an archive that has grown are written there too; at the end their files
move into the store, last those by which it knows of them. We decided against `append_dim`: a killed append would leave
times without latents.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from tqdm import tqdm

from sciJEPA.embedding.encoding import Encoding
from sciJEPA.errors import UserError
from sciJEPA.storage.chunked_copy import Journal, Region
from sciJEPA.storage.clusters import connected

LABELS_IN_CHUNK = 2**14
"""Times in a chunk of the coordinates, whatever their number: a store that grows keeps its chunks."""
SAMPLED_STEPS = 8
ROUNDING = 1e-2
"""Latents that are computed again differ by less, in standard deviations, unless they are of another archive."""


def write(
    encoding: Encoding,
    labelled: xr.Dataset,
    out: Path,
    *,
    times: dict[str, dict[str, Any]],
    first: int = 0,
    scheduler: Any = None,
    progress: bool = True,
) -> None:
    """Write the windows from `first` on; those before are in the store that is at `out` already.

    Parameters
    ----------
    labelled
        All windows, lazily.
    times
        How coordinates that are dates are stored.
    scheduler
        Address or client of a Dask cluster; this process if not given.
    """
    partial, grows = _partial(out), out.exists()
    task = _task(encoding, labelled, first)
    journal = _begin(encoding, labelled, partial, task, times, discard=grows)
    todo = [Region("latents", (slice(*range_),)) for range_ in encoding.ranges(first)]
    left = [region for region in todo if region.key not in journal.done]
    windows = labelled.sizes["time"]
    quiet = None if progress else True
    title = f"embed ({encoding.encoder})"
    with tqdm(total=windows, desc=title, unit="window", disable=quiet, file=sys.stderr) as bar:
        bar.update(windows - sum(_length(region) for region in left))
        written = _here if scheduler is None else _on_cluster
        for region in written(encoding, partial / "store", left, bar.update, scheduler):
            journal.add(region)
    if grows:
        (partial / "whole").touch()
        finish_growing(out)
    else:
        os.replace(partial / "store", out)
        shutil.rmtree(partial, ignore_errors=True)


def write_range(encoding: Encoding, store: Path, first: int, last: int, advance: Callable[[int], object]) -> None:
    """Encode some windows and write them; no other range shares a chunk with them."""
    for name, values in encoding.encode(first, last, advance).items():
        array = zarr.open_array(store / name, mode="r+", config={"write_empty_chunks": True})
        array[first:last] = values


def _here(encoding: Encoding, store: Path, regions: list[Region], advance: Any, _: Any) -> Iterator[Region]:
    for region in regions:
        (steps,) = region.where
        write_range(encoding, store, steps.start, steps.stop, advance)
        yield region


def _on_cluster(encoding: Encoding, store: Path, regions: list[Region], advance: Any, at: Any) -> Iterator[Region]:
    """Each worker is given the encoding once."""
    with connected(at) as client:
        from distributed import KilledWorker, as_completed

        shared = client.scatter(encoding, hash=False)
        running = {}
        for region in regions:
            (steps,) = region.where
            task = client.submit(_on_worker, shared, store.absolute(), steps.start, steps.stop, pure=False)
            running[task] = region
        try:
            for task in as_completed(running, loop=client.loop):
                try:
                    task.result()
                except KilledWorker as error:
                    raise UserError(
                        f"several workers died at {running[task].key}, as they do for want of memory; give them more, "
                        "or a smaller batch_size. What is written stays, and the same call goes on."
                    ) from error
                advance(_length(running[task]))
                yield running.pop(task)
        finally:
            client.cancel(list(running))


def _on_worker(encoding: Encoding, store: Path, first: int, last: int) -> None:
    write_range(encoding, store, first, last, lambda _: None)


# --- what is there already


def first_to_add(encoding: Encoding, labelled: xr.Dataset, out: Path) -> int:
    """Number of the first window that the store at `out` lacks, or of the beginning of the chunk that it belongs to.

    Raises
    ------
    UserError
        If the store was written by another model or in another way, or the archive has not grown out of its own.
    """
    try:
        stored = xr.open_zarr(out, consolidated=False)
        stored["latents"].sizes["time"]
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"{out} is no store of latents, so nothing can be added to it; choose another path.") from error
    for name, wanted in labelled.attrs.items():
        if name != "archive" and stored.attrs.get(name) != wanted:
            _refuse(out, f"its {name} is {stored.attrs.get(name)}, that of the new ones {wanted}")
    found, wanted = (", ".join(map(str, ds["latents"].dims)) for ds in (stored, labelled))
    if found != wanted:
        _refuse(out, f"its latents have the dimensions {found}, the new ones {wanted}")
    chunk = stored["latents"].encoding["chunks"][0]
    if chunk != encoding.chunk:
        _refuse(out, f"its chunks have {chunk} windows, the new ones {encoding.chunk}, as with another batch_size")
    count = stored.sizes["time"]
    old = labelled.isel(time=slice(0, count))
    for name, coordinate in stored.coords.items():
        if name not in old.coords or not np.array_equal(old[name].values, coordinate.values):
            _refuse(out, f"its {count} values of {name} are not the first ones of the archive")
    if count == labelled.sizes["time"]:
        return count
    step = max(encoding.chunk, encoding.batch)
    first = (count - 1) // step * step
    again, before = encoding.encode(first, count)["latents"], stored["latents"][first:count].values
    if not np.allclose(again, before, rtol=0, atol=ROUNDING * np.nanstd(before), equal_nan=True):
        _refuse(out, "its last latents are not those of the archive, whose values have changed")
    return first


def _refuse(out: Path, reason: str) -> None:
    raise UserError(f"cannot add times to {out}: {reason}. Write the latents anew, to another path.")


def finish_growing(out: Path) -> None:
    """Move what has been added into the store, where all of it is written; also after a kill amid the moving."""
    partial = _partial(out)
    if not (partial / "whole").exists() or not out.is_dir():
        return
    store = partial / "store"
    files = [file.relative_to(store) for file in store.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: (file.name == "zarr.json", file)):
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(store / file, out / file)
    shutil.rmtree(partial, ignore_errors=True)


def _begin(
    encoding: Encoding,
    labelled: xr.Dataset,
    partial: Path,
    task: str,
    times: dict[str, dict[str, Any]],
    *,
    discard: bool,
) -> Journal:
    """The journal of an unfinished store to go on with, or of a new one with all its labels.

    `discard` throws away what something else has begun: of new times that is little.
    """
    journal = Journal(partial / "journal", task) if (partial / "journal").exists() else None
    if journal is not None and journal.begun and journal.fits:
        return journal
    if journal is not None and journal.begun and not discard:
        raise UserError(
            f"{partial} holds unfinished latents of another model or archive, or with other options; repeat the call "
            "that began them, choose another path, or remove that folder."
        )
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    chunks = {name: {"chunks": (encoding.chunk, *shape)} for name, shape in encoding.shapes.items()}
    along = {str(n): {"chunks": (LABELS_IN_CHUNK,)} for n, c in labelled.coords.items() if c.dims == ("time",)}
    dates = {name: along.get(name, {}) | how for name, how in times.items()}
    labelled.to_zarr(partial / "store", consolidated=False, compute=False, encoding=along | dates | chunks)
    return Journal(partial / "journal", task)


def _task(encoding: Encoding, labelled: xr.Dataset, first: int) -> str:
    """Digest of everything that decides which bytes are written: a few fields stand for the values of the archive."""
    archive = encoding.opened.archive
    what = {"attributes": labelled.attrs, "sizes": dict(labelled.sizes), "first": first, "source": archive.source}
    what |= {"batch": encoding.batch, "chunk": encoding.chunk}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode())
    digest.update(archive.hours.tobytes() + str(archive.time[0]).encode())
    for step in np.linspace(0, len(archive) - 1, SAMPLED_STEPS).astype(int).tolist():
        digest.update(archive.read(step, step + 1).tobytes())
    return digest.hexdigest()


def _partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def _length(region: Region) -> int:
    return sum(part.stop - part.start for part in region.where)
