"""Encoder -> latents: labels go back on here and nowhere else.

Arrives: a model and an archive. Leaves: an `xr.Dataset` with one latent a token and issue time, and the coordinates of
every token. The time of a latent is the last step of its issue window: what was known then, and no more.
"""

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from sciJEPA.archive import Archive
from sciJEPA.embedding import store
from sciJEPA.embedding.encoding import Encoding
from sciJEPA.errors import UserError
from sciJEPA.folders import refuse_existing
from sciJEPA.forcings import masker_of
from sciJEPA.hub import Model
from sciJEPA.loader import WindowReader
from sciJEPA.masking import MaskingConfig, MaskPlan
from sciJEPA.samples import window_starts
from sciJEPA.tokenizers.base import Tokenizer

MEMORY_LIMIT = 2**30
"""Latents above this many bytes are lazy, unless they are wanted otherwise."""


def embed(
    model: Model,
    archive: str | os.PathLike | xr.Dataset | Archive,
    *,
    domain: str | None = None,
    encoder: str | None = None,
    pooled: bool = False,
    lazy: bool | None = None,
    out: str | os.PathLike | None = None,
    append: bool = False,
    scheduler: Any = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Latents of every issue window of an archive: in memory, lazily, or in a Zarr store.

    The three have the same bits, with any number of threads, processes and workers on one kind of processor.

    Parameters
    ----------
    model
        From `sciJEPA.load` or `sciJEPA.pretrain`.
    archive
        A path, an `xr.Dataset` or an opened archive, with the model's channels, units, places and cadence.
    domain
        Which domain of a joint model the archive belongs to; found from the archive if not given.
    encoder
        "target" (the moving average) or "online"; if not given the target, but the online one of a salt model, whose
        target is the teacher.
    pooled
        The mean over the tokens of the issue time, weighted by area and observed share, in place of every token; the
        numbers of `sciJEPA.explore.pool`, without the memory that all tokens take.
    lazy
        Dask arrays, computed when they are asked for, here or on the cluster of a `dask.distributed` client, and again
        each time; if not given, where the latents take more than 1 GB.
    out
        A Zarr store to write, range by range, in bounded memory. The same call goes on where a killed one stopped.
    append
        Add to `out` the issue times of an archive that has grown; all of them where there is no store yet.
    scheduler
        Address or client of a Dask cluster that writes `out`, whose workers see the same file systems; this process if
        not given.
    batch_size
        Windows encoded together; chosen by their size, and 64 at most, if not given.

    Returns
    -------
    xr.Dataset
        `latents` with dims (time, token, latent), not normalised; `observed` (time, token), the share of each token's
        values that is not missing; and the coordinates of every token: its centre
        (`token_latitude`, `token_longitude`; `token_x`...; `token_station`), `token_area` (share of the whole) and
        `token_offset` (hours from the issue time to the token's last step). Pooled, `latents` has dims (time, latent).
        Members or trajectories follow each other along time, with coordinates that say which. Windows with a gap are
        left out.

    Raises
    ------
    UserError
        If the archive does not fit the model, or `out` exists, or holds other latents than those that are to be added.
    """
    encoder = encoder or model.jepa.objective.encoder
    if encoder not in ("target", "online"):
        raise UserError(f"encoder must be 'target' or 'online', got '{encoder}'.")
    if out is None and (append or scheduler is not None):
        raise UserError("append and scheduler are about a store, and out names none; give out='latents.zarr'.")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}.")
    if out is not None and not append:
        refuse_existing(out)
    encoding = Encoding(
        model=model, source=archive, domain=domain, encoder=encoder, batch_size=batch_size, pooled=pooled
    )
    count, source = len(encoding.opened.starts), encoding.opened.archive.source
    if not count:
        context = encoding.opened.domain.config.data.context
        raise UserError(f"{source} has no {context} consecutive steps without a gap; there is nothing to embed.")
    if out is not None:
        return _write(encoding, Path(out), scheduler, progress)
    if count * encoding.bytes_per_window > MEMORY_LIMIT if lazy is None else lazy:
        return _label(encoding, encoding.lazily())
    with tqdm(
        total=count, desc=f"embed ({encoder})", unit="window", disable=None if progress else True, file=sys.stderr
    ) as bar:
        return _label(encoding, encoding.at_once(bar.update))


def _write(encoding: Encoding, out: Path, scheduler: Any, progress: bool) -> xr.Dataset:
    """Write a store, or what a store lacks."""
    labelled, first = _label(encoding, encoding.lazily()), 0
    store.finish_growing(out)
    if out.exists():
        first = store.first_to_add(encoding, labelled, out)
    if first < labelled.sizes["time"]:
        dates = time_encoding(labelled)
        store.write(encoding, labelled, out, times=dates, first=first, scheduler=scheduler, progress=progress)
    return xr.open_zarr(out, consolidated=False)


def energy(
    model: Model,
    archive: str | os.PathLike | xr.Dataset | Archive,
    *,
    domain: str | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> xr.Dataset:
    """How surprising what followed was: distance between predicted and encoded latents of what came after.

    Returns
    -------
    xr.Dataset
        `energy` with dims (time, token): mean squared distance in target latents standardised over the batch of
        `batch_size` windows around; time is the issue time, tokens are those after it. Not calibrated: compare within
        one archive.
    """
    archive, chosen = model.open(archive, domain)
    data = chosen.config.data
    if data.window == data.context:
        raise UserError(
            "energy needs steps after the issue window, but the model has data.window equal to data.context."
        )
    starts = window_starts(archive, ((0, len(archive)),), data.window)
    if not len(starts):
        raise UserError(f"{archive.source} has no {data.window} consecutive steps without a gap; there is no energy.")
    device = next(model.jepa.parameters()).device
    reader = WindowReader(archive, chosen.normalizer, memory_mb=data.memory_mb)
    masker = masker_of(chosen.tokenizer, MaskingConfig(forecast=1, blocks=0), seed=0, forcings=data.forcings)
    parts = []
    for first in tqdm(
        range(0, len(starts), batch_size), desc="energy", disable=None if progress else True, file=sys.stderr
    ):
        rows = starts[first : first + batch_size]
        with torch.inference_mode():
            plan = masker(rows.tolist(), epoch=0, step=0)
            plan = MaskPlan(plan.context.to(device), plan.target.to(device), plan.strategy)
            batch = dataclasses.replace(reader.read(rows, data.window), domain=chosen.name)
            output = model.jepa(batch.to(device), plan, tokenizer=chosen.tokenizer)
        parts.append((output.predicted.float() - output.target).pow(2).mean(dim=-1).cpu().numpy())
    issue = starts + data.context - 1
    return xr.Dataset(
        {"energy": (("time", "token"), np.concatenate(parts), {"units": "1", "long_name": "prediction energy"})},
        coords={
            "time": archive.time[issue],
            **series_coordinates(archive, issue, "time"),
            **token_coordinates(chosen.tokenizer, plan.target[0].cpu().numpy()),
        },
        attrs={"model_id": model.id},
    )


def _label(encoding: Encoding, arrays: Mapping[str, Any]) -> xr.Dataset:
    """All windows' arrays with their labels."""
    model, archive, domain = encoding.opened.model, encoding.opened.archive, encoding.opened.domain
    context, grid = domain.config.data.context, domain.tokenizer.grid
    issue = encoding.opened.starts + context - 1
    name = f"latents of the {encoding.encoder} encoder" + (", mean over the tokens" if encoding.pooled else "")
    layers = len(model.jepa.encoder.latent_layers)
    attributes = {
        "latents": {"units": "1", "long_name": name, "model_id": model.id, "layers": layers},
        "observed": {"units": "1", "long_name": "observed share of the token"},
    }
    dims = ("time", "latent") if encoding.pooled else ("time", "token", "latent")
    seen = slice(0, grid.context_times * grid.per_time)
    tokens = {} if encoding.pooled else token_coordinates(domain.tokenizer, seen)
    return xr.Dataset(
        {name: (dims[: array.ndim], array, attributes[name]) for name, array in arrays.items()},
        coords={
            "time": ("time", archive.time[issue], {"long_name": "issue time: last step of the window"}),
            **series_coordinates(archive, issue, "time"),
            **tokens,
        },
        attrs={
            **({"forcings": ", ".join(domain.config.data.forcings)} if domain.config.data.forcings else {}),
            "model_id": model.id,
            "domain": domain.name,
            "encoder": encoding.encoder,
            "archive": Path(archive.source).name,
            "statistics_from": " to ".join(domain.normalizer.trained_on),
            "window_steps": context,
            "seed": model.config.seed,
        },
    )


def series_coordinates(archive: Archive, steps: np.ndarray, dim: str) -> dict[str, Any]:
    """Which member or trajectory each step belongs to, under the archive's own names, as coordinates along `dim`."""
    shape = tuple(archive.ds.sizes[name] for name in archive.series)
    numbers = np.unravel_index(steps // archive.steps_per_series, shape) if shape else ()
    return {
        name: (dim, _labels(archive.ds[name].values[index]) if name in archive.ds.coords else index)
        for name, index in zip(archive.series, numbers, strict=True)
    }


def token_coordinates(
    tokenizer: Tokenizer, which: slice | np.ndarray
) -> dict[str, tuple[str, np.ndarray, Mapping[str, str]]]:
    """Where and when these tokens are, and their share of the area, as coordinates along `token`."""
    geometry = tokenizer.geometry
    centres = {
        f"token_{name}": ("token", _labels(values[which]), attributes)
        for name, (values, attributes) in geometry.coordinates.items()
    }
    offset = {"units": "hours", "long_name": "from issue time to last step"}
    return {
        **centres,
        "token_area": ("token", geometry.area[which], {"units": "1", "long_name": "share of the archive's area"}),
        "token_offset": ("token", geometry.offset[which], offset),
    }


def _labels(values: np.ndarray) -> np.ndarray:
    """Names as Python strings: Zarr 3 has no type yet for strings of fixed length."""
    return values.astype(object) if values.dtype.kind == "U" else values


def time_encoding(ds: xr.Dataset) -> dict[str, dict[str, Any]]:
    """How the times of a store are written to which further blocks are appended.

    Left to itself, xarray chooses the coarsest unit that suits the first block, and later times need not fit it.
    """
    encoding = {}
    for name, coordinate in ds.coords.items():
        first: Any = coordinate.values.flat[0] if coordinate.size else None
        if isinstance(first, np.datetime64):
            whole = (coordinate.values == coordinate.values.astype("datetime64[s]")).all()
            calendar = "proleptic_gregorian"
        elif hasattr(first, "calendar"):
            whole = all(time.microsecond == 0 for time in coordinate.values.flat)
            calendar = str(first.calendar)
        else:
            continue
        units = f"{'seconds' if whole else 'microseconds'} since 1970-01-01"
        encoding[str(name)] = {"units": units, "calendar": calendar, "dtype": "int64"}
    return encoding
