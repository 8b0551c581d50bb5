"""Latents -> how many directions they use, and how many numbers it would take to say where a state is.

Arrives: labelled latents. Leaves: labelled numbers. Rank is of the linear span and reveals collapse; the intrinsic
dimension is of the curved set that states fill. We decided against either as a measure of quality: noise has the
highest of both.
"""

import numpy as np
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.explore.components import principal_components
from sciJEPA.explore.states import Latents, elapsed, length_of, state

MOST_SAMPLES = 2000
DISCARDED = 0.1
"""Share of the largest ratios that is left out of the fit, as in the paper: they depend on the edges of the cloud."""


def rank(latents: Latents) -> xr.DataArray:
    """Effective rank of the latents: how many directions the tokens of all times use.

        rank = exp(-sum_k p_k log p_k),   p_k = s_k / sum s,   s the singular values of the centred latents

    From 1 (one direction, a collapse) to the width. Source: Roy and Vetterli 2007,
    https://ieeexplore.ieee.org/document/7098875; RankMe, Garrido et al. 2023, https://arxiv.org/abs/2210.02885.

    Examples
    --------
    >>> square = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> rank(xr.DataArray(square, dims=("time", "latent"))).round(6).item()
    2.0
    """
    array = state(latents)
    total, outer, count = np.zeros(array.sizes["latent"]), np.zeros((array.sizes["latent"],) * 2), 0
    for first in range(0, array.sizes["time"], 256):
        rows = array.isel(time=slice(first, first + 256)).to_numpy().reshape(-1, array.sizes["latent"])
        rows = rows[np.isfinite(rows).all(axis=1)].astype(np.float64)
        total, outer, count = total + rows.sum(axis=0), outer + rows.T @ rows, count + len(rows)
    if count < 2:
        raise UserError(f"a rank needs at least 2 latents, found {count}.")
    singular = np.sqrt(np.linalg.eigvalsh(outer - np.outer(total, total) / count).clip(min=0))
    share = singular / singular.sum() if singular.sum() > 0 else np.eye(len(singular))[0]
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    attributes = {"units": "1", "long_name": "effective rank", "width": array.sizes["latent"]}
    return xr.DataArray(np.exp(entropy), name="rank", attrs=attributes)


def intrinsic_dimension(latents: Latents, *, apart: str | None = None, components: int = 100) -> xr.DataArray:
    """How many numbers locate a state, from the ratio of the distances to its two nearest neighbours (TwoNN).

        mu = r_2 / r_1,   F(mu) = 1 - mu^-d,   d the slope through the origin of -log(1 - F) against log mu

    States must be independent of each other: yesterday and tomorrow are at nearly the same distance from today, which
    passes for a very high dimension. So choose `apart` beyond the memory of the data, and see whether the answer stays
    when it is doubled. Biased low for more than about 10 dimensions; a few hundred states are needed.

    Source: Facco et al. 2017, https://doi.org/10.1038/s41598-017-11873-y.

    Parameters
    ----------
    latents
        From `embed`, or pooled; at most 2000 evenly spaced times are used.
    apart
        Only times at least this far from each other are used; the window of the latents if not given.
    components
        Distances are among so many leading principal components.

    Examples
    --------
    >>> circle = np.exp(2j * np.pi * np.random.default_rng(0).random(1000))
    >>> points = np.stack([circle.real, circle.imag], axis=1)
    >>> z = xr.DataArray(points, dims=("time", "latent"), coords={"time": np.arange(1000)})
    >>> intrinsic_dimension(z).round().item()
    1.0
    """
    scores = principal_components(latents, components)["scores"]
    index = scores.indexes["time"]
    window = int(latents.attrs.get("window_steps", 1)) if isinstance(latents, xr.Dataset) else 1
    kept = _thinned(elapsed(index), length_of(apart or str(window), index))
    kept = kept[np.unique(np.linspace(0, len(kept) - 1, min(len(kept), MOST_SAMPLES)).round().astype(int))]
    values = scores.to_numpy()[kept]
    ratios = []
    for point in values if len(values) > 2 else []:
        _, first, second = np.partition(((values - point) ** 2).sum(axis=1), (1, 2))[:3]  # the point itself comes first
        if first > 0:  # two equal states say nothing about the dimension
            ratios.append(np.sqrt(second / first))
    if len(ratios) < 20:
        raise UserError(
            f"{len(ratios)} different states are far enough apart in time, at least 20 are needed; give a "
            "shorter apart, or more latents."
        )
    ordered = np.sort(np.log(ratios))
    part = int((1 - DISCARDED) * len(ordered))
    reached = -np.log1p(-np.arange(1, part + 1) / len(ordered))
    slope = (ordered[:part] @ reached) / (ordered[:part] @ ordered[:part])
    attributes = {"units": "1", "long_name": "intrinsic dimension (TwoNN)", "states": len(ratios)}
    return xr.DataArray(slope, name="intrinsic_dimension", attrs=attributes)


def _thinned(hours: np.ndarray, gap: float) -> np.ndarray:
    """Numbers of times that are at least `gap` after the one before; each member begins anew."""
    kept: list[int] = []
    for number, hour in enumerate(hours):
        if not kept or hour < hours[kept[-1]] or hour - hours[kept[-1]] >= gap * (1 - 1e-6):
            kept.append(number)
    return np.array(kept)
