"""A model and an archive -> where and when it is surprised, and what a token listens to.

Arrives: prediction energy from `energy`, or a model with an archive. Leaves: labelled series and maps. We decided
against thresholds: energy is not calibrated, so that only comparisons within one archive mean anything.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.explore.states import elapsed, on_map, step_at

if TYPE_CHECKING:
    from sciJEPA.explore.fields import Source
    from sciJEPA.hub import Model


def surprise(energy: xr.Dataset) -> xr.Dataset:
    """Energy in time and on the map.

        in_time(t) = sum_n a_n e_n(t) / sum_n a_n,   on_map(n) = mean over t of e_n(t)

    Parameters
    ----------
    energy
        From `sciJEPA.latents.energy`, `model.energy` or `ds.jepa.energy`.

    Returns
    -------
    xr.Dataset
        `in_time` (time): how surprising what followed each issue time was, over all tokens after it; `rank` (time): its
        place among all times, 0 to 1; `on_map`: the mean over time, on the places of the tokens, with a dimension
        `offset` where several steps follow.

    Examples
    --------
    >>> places = {"token_x": ("token", [0.0, 1.0]), "token_area": ("token", [0.5, 0.5]), "time": [0, 1]}
    >>> energy = xr.Dataset({"energy": (("time", "token"), [[1.0, 3.0], [5.0, 3.0]])}, coords=places)
    >>> found = surprise(energy)
    >>> found["in_time"].values.tolist(), found["on_map"].values.tolist(), found["rank"].values.tolist()
    ([2.0, 4.0], [3.0, 3.0], [0.0, 1.0])
    """
    if "energy" not in energy:
        raise UserError(f"surprise needs what energy() returns, found the variables {list(energy.data_vars)}.")
    values = energy["energy"]
    in_time = values.weighted(energy["token_area"]).mean("token").assign_attrs(values.attrs)
    order = in_time.copy(data=in_time.to_numpy().argsort().argsort() / max(1, len(in_time) - 1))
    mean = on_map(values.mean("time").assign_attrs(values.attrs))
    return xr.Dataset(
        {
            "in_time": in_time,
            "rank": order.assign_attrs(units="1", long_name="place among all times"),
            "on_map": mean.assign_attrs(long_name="mean prediction energy"),
        },
        attrs=energy.attrs,
    )


def receptive_field(
    model: "Model", archive: "Source", time: object, token: int, *, encoder: str = "target", domain: str | None = None
) -> xr.DataArray:
    """How strongly the latent of one token answers to each value of its window.

        r(x) = sqrt( mean over features l of (d z_l / d x)^2 )

    by automatic differentiation, x in standardised anomalies. It holds for small changes around this window.

    Source: Luo et al. 2016, "Understanding the effective receptive field", https://arxiv.org/abs/1701.04128.

    Parameters
    ----------
    time
        Issue time: the last step of the window.
    token
        Number of the token along `token` of `embed`'s latents; negative ones count from the last.
    encoder
        "target" or "online".

    Returns
    -------
    xr.DataArray
        Dims (time, channel, and the archive's dimensions of space), units of latents per standard deviation.

    Examples
    --------
    >>> receptive_field(model, "my.zarr", "2003-01-05", token=-1)  # doctest: +SKIP
    """
    import torch

    from sciJEPA.loader import WindowReader

    opened, chosen = model.open(archive, domain)
    context, step = chosen.config.data.context, step_at(opened.time[: opened.steps_per_series], time)
    grid = chosen.tokenizer.grid
    tokens = grid.context_times * grid.per_time
    if not -tokens <= token < tokens:
        raise UserError(f"there is no token {token}; the issue window has {tokens}, numbered from 0.")
    first = step - context + 1
    hours = elapsed(opened.time[max(first, 0) : step + 1])
    if first < 0 or not np.allclose(np.diff(hours), opened.cadence, rtol=0.15):
        raise UserError(f"{time} does not end {context} consecutive steps of {opened.source}; choose a later time.")
    reader = WindowReader(opened, chosen.normalizer, memory_mb=chosen.config.data.memory_mb)
    device = next(model.jepa.parameters()).device
    batch = dataclasses.replace(reader.read(np.array([first]), context), domain=chosen.name).to(device)
    values = batch.values.clone().requires_grad_()
    batch = dataclasses.replace(batch, values=values)
    latent = model.jepa.encode(batch, encoder=encoder, tokenizer=chosen.tokenizer)[0, token % tokens]
    squares = torch.zeros_like(values[0])
    for feature in latent:
        (slope,) = torch.autograd.grad(feature, values, retain_graph=True)
        squares += slope[0] ** 2
    answer = (squares / len(latent)).sqrt().cpu().numpy()
    coords = {str(name): c for name, c in opened.ds.coords.items() if c.dims and set(c.dims) <= set(opened.space.dims)}
    found = chosen.tokenizer.geometry.coordinates.items()
    place = {f"token_{name}": np.asarray(values)[:tokens][token].item() for name, (values, _) in found}
    return xr.DataArray(
        np.moveaxis(answer, 0, 1),
        {"time": opened.time[first : step + 1], "channel": [c.name for c in opened.channels], **coords},
        ("time", "channel", *opened.space.dims),
        name="receptive_field",
        attrs={"units": "1", "long_name": "answer of the latent", "token": token % tokens, **place},
    )
