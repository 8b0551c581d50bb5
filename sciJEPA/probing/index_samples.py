"""Labelled latents -> rows of samples, and which of them are held out for choices.

Arrives: latents with dims (sample, ..., latent). Leaves: `Rows`, one a sample, and the numbers of the training and
validation samples. We decided against random validation samples along a time axis: neighbours share their weather.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.probes import Rows, row_blocks, rows_of

LEAST_SAMPLES = 4
POOLS = ("area", "mean", "moments", "flatten")
LEAST_SPREAD = 1e-6
"""Added to a spread before its logarithm is taken: tokens that are all alike differ by rounding."""
LEAST_VARIANCE = 1e-10
"""Directions of tokens with less than this share of the largest variance are rounding."""
Latents = xr.Dataset | xr.DataArray


def latents_array(latents: Latents, dim: str) -> xr.DataArray:
    """The latents as an array (dim, ..., latent)."""
    array = latents["latents"] if isinstance(latents, xr.Dataset) else latents
    absent = [name for name in (dim, "latent") if name not in array.dims]
    if absent:
        raise UserError(f"the latents lack the dimension '{absent[0]}', found {array.dims}; pass dim=... of a sample.")
    return array.transpose(dim, ..., "latent")


def tokens_of(latents: Latents, dim: str) -> int:
    """Tokens of a sample; further dimensions, such as the times of a trajectory, count as tokens."""
    return int(np.prod(latents_array(latents, dim).shape[1:-1]))


@dataclass(frozen=True)
class TokenAxes:
    """Principal axes of tokens less the mean of their place: what the spread of tokens is taken along.

    A number of a latent mixes all scales of a field, and its spread is that of the largest; along principal axes the
    small scales have numbers of their own. Each layer that latents are made of (attribute `layers`) has its own axes: a
    loud layer would mix with the quiet directions of the others.
    """

    mean: np.ndarray  # (tokens, latent)
    axes: np.ndarray  # (latent, directions), orthonormal columns

    @classmethod
    def fit(cls, latents: Latents, dim: str, samples: np.ndarray) -> "TokenAxes":
        """Of these samples; tokens with missing values count as the mean of their place."""
        array = latents_array(latents, dim)
        total, count, blocks = np.zeros(()), np.zeros(()), row_blocks(samples)
        for block in blocks:
            values = _tokens(array, dim, block)
            seen = np.isfinite(values).all(axis=2, keepdims=True)
            total, count = total + np.where(seen, values, 0).sum(axis=0), count + seen.sum(axis=0)
        mean, gram = total / np.maximum(count, 1), np.zeros((array.sizes["latent"],) * 2)
        for block in blocks:
            centred = np.nan_to_num(_tokens(array, dim, block) - mean).reshape(-1, len(gram))
            gram += centred.T @ centred
        axes = []
        for layer in np.split(np.arange(len(gram)), int(array.attrs.get("layers", 1))):
            squares, vectors = np.linalg.eigh(gram[np.ix_(layer, layer)])
            along = vectors[:, squares > LEAST_VARIANCE * squares[-1]][:, ::-1]
            axes.append(np.zeros((len(gram), along.shape[1])))
            axes[-1][layer] = along
        return cls(mean, np.concatenate(axes, axis=1))

    def moments(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weighted mean, and logarithm of the root mean square, of tokens (n, tokens, latent) along each axis."""
        along = np.nan_to_num(values - self.mean) @ self.axes
        mean, square = (np.einsum("sn,snl->sl", weights, part) for part in (along, along**2))
        return np.concatenate([mean, np.log(np.sqrt(square) + LEAST_SPREAD)], axis=1)


def sample_rows(latents: Latents, dim: str, pool: str, axes: TokenAxes | None = None) -> Rows:
    """One row a sample: its tokens pooled ("area", "mean", or "moments" along `axes`) or side by side ("flatten").

    What is pooled leaves out tokens with a missing value; side by side there may be none.
    """
    if pool not in POOLS:
        raise UserError(f"pool must be one of {', '.join(POOLS)}, got '{pool}'.")
    array = latents_array(latents, dim)

    def read(samples: np.ndarray) -> np.ndarray:
        values = array.isel({dim: samples}).to_numpy().reshape(len(samples), -1)
        missing = int(np.isnan(values).any(axis=1).sum())
        if missing:
            raise UserError(
                f"{missing} of {len(samples)} samples have tokens without latents; use pool='mean', or drop them."
            )
        return values

    if pool == "flatten":
        return Rows(read, int(np.prod(array.shape[1:])))
    weights = np.ones(array.shape[1:-1])
    if pool != "mean" and "token_area" in array.coords:
        weights = array["token_area"].broadcast_like(array.isel({dim: 0, "latent": 0})).to_numpy()
    return rows_of(_pooled(array, dim, weights.ravel(), axes))


def _pooled(array: xr.DataArray, dim: str, weights: np.ndarray, axes: TokenAxes | None) -> np.ndarray:
    pooled = []
    for block in row_blocks(np.arange(array.sizes[dim])):
        values = _tokens(array, dim, block)
        seen = np.isfinite(values).all(axis=2) * weights
        if not (seen.sum(axis=1) > 0).all():
            raise UserError(f"{int((seen.sum(axis=1) <= 0).sum())} samples have no token with latents; drop them.")
        seen = seen / seen.sum(axis=1, keepdims=True)
        known = np.einsum("sn,snl->sl", seen, np.nan_to_num(values)) if axes is None else axes.moments(values, seen)
        pooled.append(known)
    return np.concatenate(pooled)


def _tokens(array: xr.DataArray, dim: str, samples: np.ndarray) -> np.ndarray:
    """Values (samples, tokens, latent) in double precision."""
    values = array.isel({dim: samples}).to_numpy().astype(np.float64)
    return values.reshape(len(samples), -1, array.sizes["latent"])


def matching(latents: Latents, target: xr.DataArray, dim: str) -> xr.DataArray:
    """The target of these samples, by label where both have labels; complete, or refused."""
    if dim not in target.dims:
        raise UserError(f"the target needs the dimension '{dim}', found {target.dims}; pass dim=... of a sample.")
    array = latents_array(latents, dim)
    name = target.name or "the target"
    if dim in array.indexes and dim in target.indexes:
        places = target.indexes[dim]
        if not places.is_unique:
            raise UserError(f"{name} has more than one value at some labels of '{dim}'; keep one of each.")
        found = places.get_indexer(array.indexes[dim])
        if (found < 0).any():
            raise UserError(
                f"{name} is not given at {int((found < 0).sum())} of the {len(found)} samples along '{dim}', the first "
                f"at {array.indexes[dim][found < 0][0]}; select latents and target at the same labels."
            )
        target = target.isel({dim: found})
    elif array.sizes[dim] != target.sizes[dim]:
        raise UserError(f"{array.sizes[dim]} samples of latents do not match {target.sizes[dim]} of {name}.")
    missing = int(target.isnull().sum())
    if missing:
        raise UserError(f"{name} is missing at {missing} of {target.size} samples; drop them from latents and target.")
    return target


def hold_out(latents: Latents, dim: str, groups: Any, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training and of the validation samples, about `share` of them.

    Along a time axis the last samples are held out, and the training samples whose windows (attribute `window_steps`)
    reach into theirs are left out. With groups, whole groups are drawn; without either, single samples.
    """
    if not 0 < share < 1:
        raise UserError(f"validation must be a share between 0 and 1, got {share}.")
    count = latents.sizes[dim]
    if count < LEAST_SAMPLES:
        raise UserError(f"{count} samples are too few to fit a probe and choose its strength; at least 4 are needed.")
    if groups is None and is_time(latents, dim):
        order = np.argsort(latents[dim].to_numpy(), kind="stable") if dim in latents.indexes else np.arange(count)
        cut = count - max(1, round(share * count))
        train, validation = order[: max(0, cut - int(latents.attrs.get("window_steps", 1)) + 1)], order[cut:]
    else:
        labels = np.arange(count) if groups is None else np.asarray(groups)
        if labels.shape != (count,):
            raise UserError(f"groups need one label for each of {count} samples, got shape {labels.shape}.")
        names = np.random.default_rng(seed).permutation(np.unique(labels))
        chosen = np.isin(labels, names[: max(1, round(share * len(names)))])
        train, validation = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    if len(train) < 2:
        raise UserError(
            f"of {count} samples {len(validation)} are held out and {len(train)} are left to train on; pass more "
            "samples or groups."
        )
    return train, validation


def told_apart(latents: Latents, dim: str, held_out: Any) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training and of the validation samples, where the caller says which are held out."""
    chosen = np.asarray(held_out)
    if chosen.shape != (latents.sizes[dim],) or chosen.dtype != bool or chosen.all() or not chosen.any():
        raise UserError(
            f"held_out needs True or False for each of {latents.sizes[dim]} samples, and some of both; got shape "
            f"{chosen.shape}, {chosen.dtype}."
        )
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def is_time(latents: Latents, dim: Hashable) -> bool:
    """Whether samples along this dimension follow each other in time."""
    if dim not in latents.indexes:
        return dim == "time"
    return dim == "time" or isinstance(latents[dim].to_index(), xr.CFTimeIndex) or latents[dim].dtype.kind in "mM"
