"""Dataset card -> archive chunked for training, with its statistics beside it.

Arrives: the name or path of a card, or any archive that opens. Leaves: a folder that `open_archive` opens. It is a Zarr
store with `statistics.safetensors` of the training split and `dataset.json`, which says what it is, where it comes
from, how it is split and with which versions it was made. The folder takes its name when all of it is there; until then
everything lies in a hidden folder beside it, from which the same command goes on. We decided against a date in it: the
same source and options give the same bytes.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import sys
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from tqdm import tqdm

from sciJEPA.archive import Archive, open_archive
from sciJEPA.axes import time_label
from sciJEPA.cards import Card, CardSplits, find_card, load_card, unknown_dataset
from sciJEPA.errors import UserError
from sciJEPA.folders import refuse_existing
from sciJEPA.normalize import fit_normalizer
from sciJEPA.samples import DataConfig, Ranges, split_steps
from sciJEPA.saved_statistics import DESCRIPTION, write_statistics
from sciJEPA.storage.chunked_copy import HIDDEN, Copier, Journal, Layout, lay_out, layouts, regions, reveal
from sciJEPA.storage.clusters import connected, workers_of
from sciJEPA.storage.sources import Opened, open_source

CODECS_AND_READERS = ("sciJEPA", "dask", "numcodecs", "numpy", "xarray", "zarr")


class PrepareWarning(UserWarning):
    """Something about a prepared archive that its user should know."""


def prepare(
    dataset: str | os.PathLike | xr.Dataset,
    out: str | os.PathLike,
    *,
    archive: str | os.PathLike | None = None,
    variables: Sequence[str] | None = None,
    start: str | None = None,
    stop: str | None = None,
    chunk_steps: int | None = None,
    memory_mb: int = 512,
    scheduler: str | None = None,
    restart: bool = False,
    progress: bool = True,
) -> Archive:
    """Write an archive that is quick to train on, with statistics and provenance beside it.

    The same call goes on where a killed one stopped. Names, units, calendar and the order of dimensions stay as they
    are in the source; values become float32.

    Parameters
    ----------
    dataset
        Name of a shipped card, path of a `dataset.yaml`, or anything that `open_archive` opens.
    out
        The folder to write; it must not exist.
    archive
        A copy of the card's dataset to read in place of what the card names.
    variables
        Those to take; the card's, or all, if not given.
    start, stop
        First and last date to take; "2018" as the last one means until its end.
    chunk_steps
        Time steps in a chunk; chosen so that a chunk has about 4 MB if not given.
    memory_mb
        Memory for the data that are under way, on each worker.
    scheduler
        Address of a `dask.distributed` cluster whose workers see the same file systems; threads of this process if
        not given. NetCDF and HDF5 files are read by one thread of this process in any case: their library crashes
        under several.
    restart
        Throw an unfinished copy away instead of going on with it.

    Raises
    ------
    UserError
        If the source cannot be read, `out` exists, or the unfinished copy there is one of something else.
    """
    out = refuse_existing(out)
    if memory_mb < 1 or (chunk_steps is not None and chunk_steps < 1):
        raise UserError(f"memory_mb and chunk_steps need at least 1, got {memory_mb} and {chunk_steps}.")
    names = list(variables) if variables is not None else None
    card = load_card(dataset) if isinstance(dataset, str | os.PathLike) and find_card(dataset) else None
    opened = _open(dataset, card, archive, names, progress)
    first, ds = _part(opened.archive, start, stop)
    train = _training_steps(open_archive(ds, variables=opened.archive.variables), card, first)
    plan = layouts(opened.archive, ds, chunk_steps)
    partial = out.with_name(f".{out.name}.partial")
    task = _task(opened, card, ds, plan)
    journal = _begin(partial, task, ds, plan, restart=restart)
    store = partial / "archive"
    if (store / HIDDEN).exists():
        with _cluster(scheduler, opened.archive) as (client, workers):
            copier = Copier(
                archive=opened.archive,
                ds=ds,
                first=first,
                store=store,
                scheduler=client,
                worker_bytes=memory_mb * 1e6 / 2,
            )
            _copy(copier, plan, journal, memory_mb * 1e6 / 4 * workers, progress)
        reveal(store)
    _describe(store, opened, card, first, train)
    os.replace(store, out)
    shutil.rmtree(partial, ignore_errors=True)
    return open_archive(out)


def _open(dataset: Any, card: Card | None, archive: Any, names: list[str] | None, progress: bool) -> Opened:
    if card is not None:
        return open_source(card, archive=archive, variables=names, progress=progress)
    if archive is not None:
        raise UserError("archive= replaces the source of a card, and no card was named; give one of the two.")
    bare = isinstance(dataset, str) and not any(letter in dataset for letter in "*?[/\\")
    if bare and not os.path.exists(os.path.expanduser(dataset)):
        raise unknown_dataset(dataset)
    opened = open_archive(dataset, variables=names)
    return Opened(opened, {"archive": opened.source})


def _part(archive: Archive, start: str | None, stop: str | None) -> tuple[int, xr.Dataset]:
    """First step, and the steps from `start` to `stop` of the variables that are used and of all static ones."""
    time = archive.axes["time"]
    kept = [str(n) for n, v in archive.ds.data_vars.items() if n in archive.variables or time not in v.dims]
    others = [n for n, v in archive.ds.coords.items() if time in v.dims and v.ndim > 1]
    ds = archive.ds[kept].drop_vars(others)
    if start is None and stop is None:
        return 0, ds
    index = archive.time[: archive.steps_per_series]
    if archive.calendar == "none":
        raise UserError(f"{archive.source} has no calendar, so start and stop name no time in it; leave them out.")
    try:
        steps = range(len(index))[index.slice_indexer(start, stop)]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"start={start} and stop={stop} are no dates of the {archive.calendar} calendar of {archive.source}; write "
            "them as 2008-01-31."
        ) from error
    if len(steps) < 2:
        span = f"{time_label(index, 0)} to {time_label(index, len(index) - 1)}"
        raise UserError(f"{archive.source} has {len(steps)} steps from {start} to {stop}; it runs from {span}.")
    return steps[0], ds.isel({time: slice(steps[0], steps[-1] + 1)})


def _task(opened: Opened, card: Card | None, ds: xr.Dataset, plan: dict[str, Layout]) -> str:
    """Digest of everything that decides which bytes are written."""
    archive = opened.archive
    what: dict[str, Any] = {"card": card.to_dict() if card else None, "origin": opened.origin, "format": 1}
    what |= {"source": archive.source, "files": dict(archive.files)}
    what |= {"layouts": {name: dataclasses.asdict(layout) for name, layout in plan.items()}}
    time = ds[archive.axes["time"]]
    what |= {"times": hashlib.sha256(str(time.values[[0, -1]]).encode()).hexdigest()}
    if archive.format == "memory" and "function" not in opened.origin:
        what |= {"once": uuid.uuid4().hex}  # nobody can tell whether the next dataset in memory is the same
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def _begin(partial: Path, task: str, ds: xr.Dataset, plan: dict[str, Layout], *, restart: bool) -> Journal:
    """The journal of an unfinished copy to go on with, or of a new one."""
    store = partial / "archive"
    if partial.exists() and not restart:
        journal = Journal(partial / "journal", task)
        if journal.begun and journal.fits:
            for torn in store.rglob("*.partial"):
                torn.unlink()
            return journal
        if journal.begun:
            raise UserError(
                f"{partial} holds an unfinished copy of another source or with other options; repeat the command that "
                "began it, choose another --out, or throw it away with --restart."
            )
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    lay_out(ds, plan, store)
    return Journal(partial / "journal", task)


def _copy(copier: Copier, plan: dict[str, Layout], journal: Journal, region_bytes: float, progress: bool) -> None:
    total = sum(4 * math.prod(layout.shape) for layout in plan.values())
    quiet = None if progress else True
    with tqdm(total=total, desc="prepare", unit="B", unit_scale=True, disable=quiet, file=sys.stderr) as bar:
        for region in regions(plan, copier.archive.axes["time"], region_bytes):
            if region.key not in journal.done:
                bar.set_postfix_str(region.variable)
                copier.copy(region, plan[region.variable])
                journal.add(region)
            bar.update(4 * math.prod(part.stop - part.start for part in region.where))


@contextlib.contextmanager
def _cluster(address: str | None, archive: Archive) -> Iterator[tuple[Any, int]]:
    """What Dask computes with, and how many workers share the reading."""
    one_thread = not archive.format.startswith(("zarr", "memory"))
    if address is None or one_thread:
        if address is not None:
            warnings.warn(
                f"{archive.source} is read by one thread of this process and not by the cluster, since its library "
                "crashes under several.",
                PrepareWarning,
                stacklevel=4,
            )
        yield ("synchronous" if one_thread else "threads"), 1
        return
    with connected(address) as client:
        yield client, workers_of(client)


def _describe(store: Path, opened: Opened, card: Card | None, first: int, train: Ranges) -> None:
    """Write the statistics of the training split, and the description of everything."""
    archive = open_archive(store, variables=opened.archive.variables)
    steps = archive.steps_per_series
    statistics: dict[str, Any] = {"steps": train}
    try:
        normalizer = fit_normalizer(archive, train)
    except UserError as error:  # the archive is complete and good for other variables
        statistics["missing_because"] = str(error).replace(str(store), "this archive")
        warnings.warn(f"no statistics were written: {statistics['missing_because']}", PrepareWarning, stacklevel=3)
    else:
        statistics |= write_statistics(store, normalizer)
    described = {
        "format": 1,
        "name": card.name if card else Path(opened.archive.source).stem,
        "card": card.to_dict() if card else None,
        "origin": opened.origin | {"format": opened.archive.format, "first_step": first},
        "channels": [{"name": channel.name, "units": channel.units} for channel in archive.channels],
        "steps": steps,
        "series": archive.repeats,
        "time": [time_label(archive.time, 0), time_label(archive.time, steps - 1)],
        "statistics": statistics,
        "made_with": {name: importlib.metadata.version(name) for name in CODECS_AND_READERS},
    }
    text = json.dumps(described, indent=1, default=str)
    (store / DESCRIPTION).write_text(f"{text}\n", encoding="utf-8")


def _training_steps(part: Archive, card: Card | None, first: int) -> Ranges:
    """Steps of the training split within the part that is taken: as the card says, or as `pretrain` does by default."""
    splits = card.splits if card else CardSplits(method="source")
    if splits.rows is not None:
        begin, end = (min(max(0, row - first), len(part)) for row in splits.rows["train"])
    elif splits.validation_start is not None:
        begin, end = 0, int(part.time.get_slice_bound(splits.validation_start, "left"))
    else:
        shares = (splits.train, splits.validation, splits.test)
        given: Any = {"split": shares} if None not in shares else {}
        return split_steps(part, DataConfig(window=1, context=1, **given)).train
    if end - begin < 2:
        raise UserError(
            f"the part of {part.source} that is taken has {max(end - begin, 0)} steps of the training split, and "
            "statistics need at least 2; take more, or an earlier part, with --start and --stop."
        )
    return ((begin, end),)
