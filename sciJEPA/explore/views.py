"""An archive as the model sees it: its tokens, and a window under a mask.

Arrives: an archive and a model or a configuration. Leaves: labelled data for tables and pictures; nothing is learned or
encoded here. We decided against drawing: `plots.plot_mask` takes what `mask` returns.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sciJEPA.archive import Archive, open_archive
from sciJEPA.errors import UserError
from sciJEPA.explore.states import step_at

if TYPE_CHECKING:
    from sciJEPA.config import RunConfig
    from sciJEPA.hub import Model

Source = str | os.PathLike | xr.Dataset | Archive
ROLES = ("hidden and unused", "context: the encoder sees it", "target: its latents are predicted")


def tokens(archive: Source, how: RunConfig | Model | str, *, domain: str | None = None) -> xr.Dataset:
    """The tokens of one window: where and when each is, and how much of the area it covers.

    Parameters
    ----------
    archive
        A path, an `xr.Dataset` or an opened archive.
    how
        A model, a configuration, or the name of a preset.
    domain
        Which domain of several.

    Returns
    -------
    xr.Dataset
        Along `token`: the coordinates that latents carry, and `in_issue_window`, false for what follows the issue time.

    Examples
    --------
    >>> from sciJEPA.synthetic import travelling_waves
    >>> tokens(travelling_waves(20), "climate-tiny")["in_issue_window"].values[[0, -1]].tolist()
    [True, False]
    """
    from sciJEPA.latents import token_coordinates

    tokenizer = _tokenizer(archive, how, domain)
    grid = tokenizer.grid
    inside = np.arange(grid.count) < grid.context_times * grid.per_time
    return xr.Dataset(
        {"in_issue_window": ("token", inside, {"long_name": "token lies in the issue window"})},
        coords=dict(token_coordinates(tokenizer, slice(None))),
    )


def mask(
    archive: Source, model: Model, time: object, *, domain: str | None = None, strategy: str | None = None
) -> xr.Dataset:
    """A window of the archive and what a training step would show of it.

    Parameters
    ----------
    archive
        An archive that fits the model.
    time
        Issue time: the last step that forecasts may know.
    domain
        Which domain of a joint model.
    strategy
        "forecast", "blocks" or "random"; the likeliest of the model's own if not given.

    Returns
    -------
    xr.Dataset
        `role` (time, ...) with 0 hidden and unused, 1 context, 2 target, for each channel where channels have tokens of
        their own; and `anomaly` (time, channel, ...), standardised departures from climatology, NaN where missing.

    Examples
    --------
    >>> shown = mask("my.zarr", model, "2003-01-05")  # doctest: +SKIP
    >>> plot_mask(shown["anomaly"].isel(channel=0), shown["role"])  # doctest: +SKIP
    """
    import dataclasses

    import torch

    from sciJEPA.forcings import masker_of
    from sciJEPA.loader import WindowReader
    from sciJEPA.masking import STRATEGIES

    opened, chosen = model.open(archive, domain)
    data, tokenizer = chosen.config.data, chosen.tokenizer
    issue = step_at(opened.time[: opened.steps_per_series], time)
    start = issue - data.context + 1
    if start < 0 or start + data.window > opened.steps_per_series:
        raise UserError(
            f"a window of {data.window} steps with {data.context} up to {time} reaches beyond {opened.source}; choose "
            "a time further inside."
        )
    mixture = chosen.config.masking.mixture
    name = strategy or max(mixture, key=lambda one: mixture[one])
    if name not in STRATEGIES:
        raise UserError(f"there is no masking strategy '{name}'; choose from {', '.join(STRATEGIES)}.")
    rng = np.random.default_rng([model.config.seed, 2, 0, start])
    grid = masker_of(tokenizer, chosen.config.masking, model.config.seed, data.forcings).grid
    context, target = STRATEGIES[name](grid, chosen.config.masking, rng)
    role = torch.zeros(1, tokenizer.grid.count, tokenizer.channels_per_token, tokenizer.patch_size)
    role[0, context], role[0, target] = 1, 2
    roles = tokenizer.unpatchify(role)[0].numpy().astype(int)
    each = () if tokenizer.channels_per_token == len(tokenizer.channels) else ("channel",)
    reader = WindowReader(opened, chosen.normalizer, memory_mb=data.memory_mb)
    batch = dataclasses.replace(reader.read(np.array([start]), data.window), domain=chosen.name)
    values = batch.values[0].numpy()
    if batch.observed is not None:
        values = np.where(batch.observed[0].numpy(), values, np.nan)
    space = opened.space.dims
    coords: dict[str, Any] = {str(n): c for n, c in opened.ds.coords.items() if c.dims and set(c.dims) <= set(space)}
    coords["time"] = np.asarray(opened.time[start : start + data.window])
    flags = {"flag_values": [0, 1, 2], "flag_meanings": "unused context target", "long_name": "; ".join(ROLES)}
    return xr.Dataset(
        {
            "role": (("time", *each, *space), np.moveaxis(roles, 0, 1) if each else roles[0], flags),
            "anomaly": (
                ("time", "channel", *space),
                np.moveaxis(values, 0, 1),
                {"units": "standard deviations", "long_name": "anomaly"},
            ),
        },
        coords={**coords, "channel": [channel.name for channel in opened.channels]},
        attrs={"strategy": name, "issue_time": str(opened.time[issue]), "model_id": model.id},
    )


def _tokenizer(archive: Source, how: RunConfig | Model | str, domain: str | None) -> Any:
    from sciJEPA.config import RunConfig, load_config

    if not isinstance(how, str | RunConfig):
        return how.open(archive, domain)[1].tokenizer
    parts = (load_config(how) if isinstance(how, str) else how).parts
    if domain is None and len(parts) > 1:
        raise UserError(f"the configuration has {len(parts)} domains; name one of {', '.join(parts)} with domain=.")
    if domain is not None and domain not in parts:
        raise UserError(f"the configuration has no domain '{domain}'; its domains are {', '.join(parts)}.")
    part = parts[domain] if domain is not None else next(iter(parts.values()))
    opened = open_archive(archive, variables=part.data.inputs)
    return part.tokenizer.build(part.tokenizer.describe(opened, part.data.window, part.data.context))
