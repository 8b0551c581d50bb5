"""Encoder -> latents: labels go back on here and nowhere else.

Arrives: a model and an archive. Leaves: an `xr.Dataset` with one latent a token and issue time, and the coordinates of
every token. The time of a latent is the last step of its issue window: what was known then, and no more.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.folders import complete_folder, refuse_existing
from sciJEPA.hub import Model
from sciJEPA.loader import WindowReader
from sciJEPA.masking import Masker, MaskingConfig, MaskPlan
from sciJEPA.samples import window_starts

MEMORY_LIMIT = 2**30
"""Latents above this many bytes must go to disk."""
BLOCK_BYTES = 2**26
"""Latents are written in blocks of about this size."""


def embed(
    model: Model,
    archive: str | os.PathLike | xr.Dataset | Archive,
    *,
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
        A path, an `xr.Dataset` or an opened archive, with the model's channels, units, grid and cadence.
    encoder
        "target" (the moving average) or "online".
    out
        A Zarr store to write, in bounded memory; without it the latents are returned in memory.
    batch_size
        Windows encoded at once.

    Returns
    -------
    xr.Dataset
        `latents` with dims (time, token, latent), not normalised, and the coordinates `token_latitude`,
        `token_longitude` (degrees), `token_area` (share of the grid) and `token_offset` (hours from the issue time to
        the token's last step). Windows with a gap are left out.

    Raises
    ------
    UserError
        If the archive does not fit the model, `out` exists, or the latents would not fit in memory.
    """
    if encoder not in ("target", "online"):
        raise UserError(f"encoder must be 'target' or 'online', got '{encoder}'.")
    if out is not None:
        refuse_existing(out)
    archive = model.open(archive)
    context = model.config.data.context
    starts = window_starts(archive, ((0, len(archive)),), context)
    grid = model.jepa.tokenizer.grid
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
    blocks = _encode(model, archive, starts, encoder, batch_size, progress)
    labelled = (_label(model, archive, starts[a:b] + context - 1, encoder, values) for a, b, values in blocks)
    if out is None:
        return xr.concat(list(labelled), dim="time", coords="minimal", compat="override", join="override")
    return _write(labelled, Path(out))


def energy(
    model: Model, archive: str | os.PathLike | xr.Dataset | Archive, *, batch_size: int = 64, progress: bool = True
) -> xr.Dataset:
    """How surprising what followed was: distance between predicted and encoded latents of what came after.

    Returns
    -------
    xr.Dataset
        `energy` with dims (time, token): mean squared distance in target latents standardised over the batch of
        `batch_size` windows around; time is the issue time, tokens are those after it. Not calibrated: compare within
        one archive.
    """
    archive = model.open(archive)
    data = model.config.data
    if data.window == data.context:
        raise UserError(
            "energy needs steps after the issue window, but the model has data.window equal to data.context."
        )
    starts = window_starts(archive, ((0, len(archive)),), data.window)
    if not len(starts):
        raise UserError(f"{archive.source} has no {data.window} consecutive steps without a gap; there is no energy.")
    device = next(model.jepa.parameters()).device
    reader = WindowReader(archive, model.normalizer, memory_mb=data.memory_mb)
    masker = Masker(model.jepa.tokenizer.grid, MaskingConfig(forecast=1, blocks=0))
    parts = []
    for first in tqdm(
        range(0, len(starts), batch_size), desc="energy", disable=None if progress else True, file=sys.stderr
    ):
        chosen = starts[first : first + batch_size]
        with torch.inference_mode():
            plan = masker(chosen.tolist(), epoch=0, step=0)
            plan = MaskPlan(plan.context.to(device), plan.target.to(device), plan.strategy)
            output = model.jepa(reader.read(chosen, data.window).to(device), plan)
        parts.append((output.predicted.float() - output.target).pow(2).mean(dim=-1).cpu().numpy())
    past = model.jepa.tokenizer.grid.context_times * model.jepa.tokenizer.grid.per_time
    return xr.Dataset(
        {"energy": (("time", "token"), np.concatenate(parts), {"units": "1", "long_name": "prediction energy"})},
        coords={"time": archive.time[starts + data.context - 1], **_token_coordinates(model, slice(past, None))},
        attrs={"model_id": model.id},
    )


def _encode(
    model: Model, archive: Archive, starts: np.ndarray, encoder: str, batch_size: int, progress: bool
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Latents in blocks (first, last + 1, values) of about 64 MB."""
    reader = WindowReader(archive, model.normalizer, memory_mb=model.config.data.memory_mb)
    grid = model.jepa.tokenizer.grid
    per_window = grid.context_times * grid.per_time * model.jepa.encoder.latent_width * 4
    block = max(batch_size, BLOCK_BYTES // per_window // batch_size * batch_size)
    device = next(model.jepa.parameters()).device
    bar = tqdm(
        total=len(starts), desc=f"embed ({encoder})", unit="window", disable=None if progress else True, file=sys.stderr
    )
    with bar, torch.inference_mode():
        for first in range(0, len(starts), block):
            last = min(first + block, len(starts))
            parts = []
            for number in range(first, last, batch_size):
                chosen = starts[number : min(number + batch_size, last)]
                batch = reader.read(chosen, model.config.data.context).to(device)
                parts.append(model.jepa.encode(batch, encoder=encoder).float().cpu().numpy())
                bar.update(len(chosen))
            yield first, last, np.concatenate(parts)


def _label(model: Model, archive: Archive, issue: np.ndarray, encoder: str, values: np.ndarray) -> xr.Dataset:
    grid = model.jepa.tokenizer.grid
    attributes = {"units": "1", "long_name": f"latents of the {encoder} encoder", "model_id": model.id}
    return xr.Dataset(
        {"latents": (("time", "token", "latent"), values, attributes)},
        coords={
            "time": ("time", archive.time[issue], {"long_name": "issue time: last step of the window"}),
            **_token_coordinates(model, slice(0, grid.context_times * grid.per_time)),
        },
        attrs={
            "model_id": model.id,
            "encoder": encoder,
            "archive": Path(archive.source).name,
            "statistics_from": " to ".join(model.normalizer.trained_on),
            "window_steps": model.config.data.context,
            "seed": model.config.seed,
        },
    )


def _token_coordinates(model: Model, which: slice) -> dict[str, tuple[str, np.ndarray, dict[str, str]]]:
    geometry = model.jepa.tokenizer.geometry
    return {
        "token_latitude": ("token", geometry.latitude[which], {"units": "degrees_north"}),
        "token_longitude": ("token", geometry.longitude[which], {"units": "degrees_east"}),
        "token_area": ("token", geometry.area[which], {"units": "1", "long_name": "share of the grid's area"}),
        "token_offset": (
            "token",
            geometry.offset[which],
            {"units": "hours", "long_name": "from issue time to last step"},
        ),
    }


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
