"""Encoder -> latents: labels go back on here and nowhere else.

Arrives: a model and an archive. Leaves: an `xr.Dataset` with one latent a token and issue time, and the coordinates of
every token. The time of a latent is the last step of its issue window: what was known then, and no more.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.folders import complete_folder, refuse_existing
from sciJEPA.hub import Domain, Model
from sciJEPA.loader import WindowReader
from sciJEPA.masking import Masker, MaskingConfig, MaskPlan
from sciJEPA.samples import window_starts
from sciJEPA.tokenizers.base import Tokenizer

MEMORY_LIMIT = 2**30
"""Latents above this many bytes must go to disk."""
BLOCK_BYTES = 2**26
"""Latents are written in blocks of about this size."""


def embed(
    model: Model,
    archive: str | os.PathLike | xr.Dataset | Archive,
    *,
    domain: str | None = None,
    encoder: str = "target",
    out: str | os.PathLike | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> xr.Dataset:
    """Latents of every issue window of an archive.

    Parameters
    ----------
    model
        From `sciJEPA.load` or `sciJEPA.pretrain`.
    archive
        A path, an `xr.Dataset` or an opened archive, with the model's channels, units, places and cadence.
    domain
        Which domain of a joint model the archive belongs to; found from the archive if not given.
    encoder
        "target" (the moving average) or "online".
    out
        A Zarr store to write, in bounded memory; without it the latents are returned in memory.
    batch_size
        Windows encoded at once.

    Returns
    -------
    xr.Dataset
        `latents` with dims (time, token, latent), not normalised; `observed` (time, token), the share of each token's
        values that is not missing; and the coordinates of every token: its centre
        (`token_latitude`, `token_longitude`; `token_x`...; `token_station`), `token_area` (share of the whole) and
        `token_offset` (hours from the issue time to the token's last step). Members or trajectories follow each other
        along time, with coordinates that say which. Windows with a gap are left out.

    Raises
    ------
    UserError
        If the archive does not fit the model, `out` exists, or the latents would not fit in memory.
    """
    if encoder not in ("target", "online"):
        raise UserError(f"encoder must be 'target' or 'online', got '{encoder}'.")
    if out is not None:
        refuse_existing(out)
    archive, chosen = model.open(archive, domain)
    context = chosen.config.data.context
    starts = window_starts(archive, ((0, len(archive)),), context)
    grid = chosen.tokenizer.grid
    size = len(starts) * grid.context_times * grid.per_time * model.jepa.encoder.latent_width * 4
    if not len(starts):
        raise UserError(
            f"{archive.source} has no {context} consecutive steps without a gap; there is nothing to embed."
        )
    if out is None and size > MEMORY_LIMIT:
        raise UserError(
            f"the latents of {archive.source} take {size / 2**30:.1f} GB, more than {MEMORY_LIMIT / 2**30:.0f} GB; "
            "write them to disk with out='latents.zarr'."
        )
    blocks = _encode(model, chosen, archive, starts, encoder, batch_size, progress)
    labelled = (_label(model, chosen, archive, starts[a:b] + context - 1, encoder, *v) for a, b, v in blocks)
    if out is None:
        return xr.concat(list(labelled), dim="time", coords="minimal", compat="override", join="override")
    return _write(labelled, Path(out))


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
    data, grid = chosen.config.data, chosen.tokenizer.grid
    if data.window == data.context:
        raise UserError(
            "energy needs steps after the issue window, but the model has data.window equal to data.context."
        )
    starts = window_starts(archive, ((0, len(archive)),), data.window)
    if not len(starts):
        raise UserError(f"{archive.source} has no {data.window} consecutive steps without a gap; there is no energy.")
    device = next(model.jepa.parameters()).device
    reader = WindowReader(archive, chosen.normalizer, memory_mb=data.memory_mb)
    masker = Masker(grid, MaskingConfig(forecast=1, blocks=0))
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
    past = grid.context_times * grid.per_time
    issue = starts + data.context - 1
    return xr.Dataset(
        {"energy": (("time", "token"), np.concatenate(parts), {"units": "1", "long_name": "prediction energy"})},
        coords={
            "time": archive.time[issue],
            **series_coordinates(archive, issue, "time"),
            **token_coordinates(chosen.tokenizer, slice(past, None)),
        },
        attrs={"model_id": model.id},
    )


def _encode(
    model: Model,
    domain: Domain,
    archive: Archive,
    starts: np.ndarray,
    encoder: str,
    batch_size: int,
    progress: bool,
) -> Iterator[tuple[int, int, tuple[np.ndarray, np.ndarray]]]:
    """Blocks (first, last + 1, (latents, observed shares)) of about 64 MB."""
    data, grid = domain.config.data, domain.tokenizer.grid
    reader = WindowReader(archive, domain.normalizer, memory_mb=data.memory_mb)
    per_window = grid.context_times * grid.per_time * model.jepa.encoder.latent_width * 4
    block = max(batch_size, BLOCK_BYTES // per_window // batch_size * batch_size)
    device = next(model.jepa.parameters()).device
    bar = tqdm(
        total=len(starts), desc=f"embed ({encoder})", unit="window", disable=None if progress else True, file=sys.stderr
    )
    with bar, torch.inference_mode():
        for first in range(0, len(starts), block):
            last = min(first + block, len(starts))
            parts, shares = [], []
            for number in range(first, last, batch_size):
                rows = starts[number : min(number + batch_size, last)]
                batch = dataclasses.replace(reader.read(rows, data.context), domain=domain.name).to(device)
                latents = model.jepa.encode(batch, encoder=encoder, tokenizer=domain.tokenizer)
                parts.append(latents.float().cpu().numpy())
                weight = domain.tokenizer(batch).weight
                shares.append(np.ones(latents.shape[:2], np.float32) if weight is None else weight.cpu().numpy())
                bar.update(len(rows))
            yield first, last, (np.concatenate(parts), np.concatenate(shares))


def _label(
    model: Model,
    domain: Domain,
    archive: Archive,
    issue: np.ndarray,
    encoder: str,
    values: np.ndarray,
    observed: np.ndarray,
) -> xr.Dataset:
    grid = domain.tokenizer.grid
    attributes = {"units": "1", "long_name": f"latents of the {encoder} encoder", "model_id": model.id}
    return xr.Dataset(
        {
            "latents": (("time", "token", "latent"), values, attributes),
            "observed": (("time", "token"), observed, {"units": "1", "long_name": "observed share of the token"}),
        },
        coords={
            "time": ("time", archive.time[issue], {"long_name": "issue time: last step of the window"}),
            **series_coordinates(archive, issue, "time"),
            **token_coordinates(domain.tokenizer, slice(0, grid.context_times * grid.per_time)),
        },
        attrs={
            "model_id": model.id,
            "domain": domain.name,
            "encoder": encoder,
            "archive": Path(archive.source).name,
            "statistics_from": " to ".join(domain.normalizer.trained_on),
            "window_steps": domain.config.data.context,
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


def token_coordinates(tokenizer: Tokenizer, which: slice) -> dict[str, tuple[str, np.ndarray, Mapping[str, str]]]:
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


def _write(blocks: Iterator[xr.Dataset], out: Path) -> xr.Dataset:
    """Append block after block to a store that takes its name when it is complete."""
    with complete_folder(out) as partial:
        for number, block in enumerate(blocks):
            chunk = min(block.sizes["time"], max(1, 2**22 // (block["latents"].nbytes // block.sizes["time"])))
            encoding = {"latents": {"chunks": (chunk, *block["latents"].shape[1:])}, **time_encoding(block)}
            options: Any = {"append_dim": "time"} if number else {"mode": "w", "encoding": encoding}
            block.to_zarr(partial, consolidated=False, **options)
    return xr.open_zarr(out, consolidated=False)
