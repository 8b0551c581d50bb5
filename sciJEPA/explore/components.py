"""States -> a few coordinates: principal components, and UMAP for the eye.

Arrives: labelled latents. Leaves: labelled scores, patterns and shares. Components are those of departures from each
token's mean over time, weighted by area, so that position embeddings, which never change, have no part in them. We
decided against a rotation: components are coordinates to look along, not modes of nature.
"""

from typing import Any

import numpy as np
import scipy.linalg
import torch
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.explore.states import Latents, state, state_rows
from sciJEPA.probes import row_blocks
from sciJEPA.probing.principal import principal_axes


def principal_components(latents: Latents, number: int = 10) -> xr.Dataset:
    """Leading principal components of the states: directions in which the latents vary most over time.

        z(t) = mean + sum_k score_k(t) pattern_k + rest,   <pattern_j, pattern_k> = [j = k]

    with the area-weighted mean over tokens as inner product. The sign is such that a pattern's largest entry is
    positive.

    Source: Hannachi, Jolliffe and Stephenson 2007, "Empirical orthogonal functions and related techniques",
    https://doi.org/10.1002/joc.1499.

    Parameters
    ----------
    latents
        From `embed`, or pooled.
    number
        How many; fewer where the latents have fewer directions.

    Returns
    -------
    xr.Dataset
        `scores` (time, component), `patterns` (component, token, latent), `share` (component) of the variance, and
        `strength` (component, token): the share of each token's own variance, which makes a map of where it acts.

    Examples
    --------
    >>> time = np.arange(8)
    >>> wave = np.cos(np.pi * time / 4)[:, None, None] * np.array([[3.0, 0.0]])
    >>> found = principal_components(xr.DataArray(wave, dims=("time", "token", "latent"), coords={"time": time}))
    >>> found["share"].round(6).values.tolist(), abs(found["patterns"]).values.tolist()
    ([1.0], [[[1.0, 0.0]]])
    """
    array, rows = state(latents), state_rows(latents)
    times = np.arange(array.sizes["time"])
    basis = principal_axes(rows, times, number)
    signs = np.sign(basis.axes[np.abs(basis.axes).argmax(axis=0), np.arange(basis.axes.shape[1])])
    axes, parts = basis.axes * signs, []
    squares = np.zeros(rows.width)
    for block in row_blocks(times):
        centred = rows.read(block) - basis.mean
        squares += (centred**2).sum(axis=0)
        parts.append(centred @ axes)
    squares /= len(times)
    places, inner = tuple(str(dim) for dim in array.dims[1:]), array.shape[1:]
    explained = ((axes * basis.deviation) ** 2).T.reshape(-1, *inner).sum(axis=-1)
    own = squares.reshape(inner).sum(axis=-1)
    scale = np.sqrt(_areas(array))[..., None]
    labels = {name: c for name, c in array.coords.items() if "time" not in c.dims and "latent" not in c.dims}
    one = {"units": "1"}
    return xr.Dataset(
        {
            "scores": (("time", "component"), np.concatenate(parts), one | {"long_name": "score"}),
            "patterns": (("component", *places), axes.T.reshape(-1, *inner) / scale, one),
            "share": ("component", basis.deviation**2 / squares.sum(), one | {"long_name": "share of the variance"}),
            "strength": (
                ("component", *places[:-1]),
                np.divide(explained, own, out=np.zeros_like(explained), where=own > 0),
                one | {"long_name": "share of the token's variance"},
            ),
        },
        coords={**labels, "component": np.arange(1, axes.shape[1] + 1), **_along_time(array)},
        attrs=latents.attrs if isinstance(latents, xr.Dataset) else {},
    )


def token_components(latents: Latents, number: int = 3) -> xr.DataArray:
    """Leading principal components among the tokens of all times: each token of each time gets its scores, for maps.

    The axes are shared by all tokens, so that a value means the same everywhere on the map; the mean over time of each
    token is taken out first.

    Returns
    -------
    xr.DataArray
        Dims (time, token, component), units of the latents.

    Examples
    --------
    >>> values = np.array([[[1.0, 0.0], [-2.0, 0.0]], [[-1.0, 0.0], [2.0, 0.0]]])
    >>> token_components(xr.DataArray(values, dims=("time", "token", "latent")), 1).values[..., 0].tolist()
    [[1.0, -2.0], [-1.0, 2.0]]
    """
    array = state(latents)
    if "token" not in array.dims:
        raise UserError("pooled latents have no tokens left to lay out on a map; pass what embed() returned.")
    values = array.to_numpy().astype(np.float64)
    values = values - values.mean(axis=0)
    area = _areas(array)
    covariance = np.einsum("tnl,n,tnm->lm", values, area, values, optimize=True) / len(values)
    _, vectors = scipy.linalg.eigh(covariance)
    axes = vectors[:, ::-1][:, :number]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    coords = {name: c for name, c in array.coords.items() if "latent" not in c.dims}
    scores = xr.DataArray(values @ axes, coords, ("time", "token", "component"), name="scores")
    return scores.assign_coords(component=np.arange(1, axes.shape[1] + 1)).assign_attrs(units="1", long_name="score")


def umap(
    latents: Latents, number: int = 2, *, neighbours: int = 15, components: int = 50, seed: int = 0
) -> xr.DataArray:
    """A picture of which states are near each other, by UMAP on the leading principal components.

    Distances between groups, and the size of a group, mean nothing; neighbours do. Reproducible for a seed on one
    machine.

    Source: McInnes, Healy and Melville 2018, https://arxiv.org/abs/1802.03426; needs `pip install "scijepa[umap]"`.

    Parameters
    ----------
    neighbours
        Fewer show detail, more the whole; 5 to 50.

    Returns
    -------
    xr.DataArray
        Dims (time, dimension).

    Examples
    --------
    >>> from sciJEPA.synthetic import travelling_waves
    >>> umap(model.embed(travelling_waves(200))).sizes["dimension"]  # doctest: +SKIP
    2
    """
    try:
        from umap import UMAP
    except ImportError as error:
        raise UserError(
            'umap needs the package umap-learn, which is not installed; run: pip install "scijepa[umap]".'
        ) from error
    scores = principal_components(latents, components)["scores"]
    if len(scores) <= neighbours:
        raise UserError(f"umap with {neighbours} neighbours needs more than {len(scores)} times; set neighbours lower.")
    options: dict[str, Any] = {"n_components": number, "n_neighbors": neighbours, "random_state": seed, "n_jobs": 1}
    threads = torch.get_num_threads()
    try:
        values = UMAP(**options).fit_transform(scores.to_numpy())
    finally:  # numba sets those of OpenMP, which torch shares, and with their number torch's rounding changes
        torch.set_num_threads(threads)
    attributes = {"units": "1", "long_name": "UMAP", "neighbours": neighbours, "seed": seed}
    placed = xr.DataArray(values, dims=("time", "dimension"), name="umap", attrs=attributes)
    return placed.assign_coords({**_along_time(scores), "dimension": np.arange(1, number + 1)})


def _areas(array: xr.DataArray) -> np.ndarray:
    """Share of each token of the state, shape (token,), or one number where tokens are pooled."""
    if "token" not in array.dims:
        return np.ones(())
    area = array["token_area"].to_numpy() if "token_area" in array.coords else np.ones(array.sizes["token"])
    return np.asarray(area / area.sum())


def _along_time(array: xr.DataArray) -> dict[Any, xr.DataArray]:
    return {name: c for name, c in array.coords.items() if c.dims == ("time",)}
