"""Latents -> how they relate to what is known: indices, fields, and the latents of another model.

Arrives: labelled latents and labelled data with the same times. Leaves: correlations, maps and a similarity, those that
are fitted also on times that the fit has not seen. We decided against numbers from the fitted times alone: with more
features than times, everything is explained there.
"""

import numpy as np
import scipy.linalg
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.explore.components import principal_components
from sciJEPA.explore.states import Latents, state, state_rows
from sciJEPA.probes import Ridge, rows_of

MOST_TIMES = 2000
"""Similarities compare all pairs of times, of at most so many, evenly spaced."""


def canonical_correlation(
    latents: Latents, index: xr.DataArray, *, components: int = 10, folds: int = 5, gap: int | None = None
) -> xr.Dataset:
    """Combinations of latents and of known indices that correlate most, and how they correlate on held-out times.

        max over a, b of corr(s a, y b),   s the leading principal components, y the indices

    Source: Hotelling 1936, "Relations between two sets of variates", https://doi.org/10.1093/biomet/28.3-4.321.

    Parameters
    ----------
    latents
        From `embed`, or pooled.
    index
        Dims (time,) or (time, and one more with an index each); times that both have are used.
    components
        Principal components that enter; few against the number of independent times.
    folds
        Blocks of neighbouring times, each held out in turn.
    gap
        Times left out on both sides of a block; the window of the latents if not given.

    Returns
    -------
    xr.Dataset
        `correlation` (mode) on the fitted times; `held_out` (fold, mode) and its mean `cross_validated` (mode), by
        which to judge; the variates `latent_variate` and `index_variate` (time, mode), standardised; `weight`
        (index, mode) of each standardised index.

    Examples
    --------
    >>> rng, time = np.random.default_rng(0), np.arange(400)
    >>> z = xr.DataArray(rng.normal(size=(400, 3)), dims=("time", "latent"), coords={"time": time})
    >>> index = z.isel(latent=0) + xr.DataArray(rng.normal(size=400), dims="time")
    >>> canonical_correlation(z, index)["cross_validated"].round(1).values.tolist()  # 1 / sqrt(2)
    [0.7]
    """
    scores = principal_components(latents, components)["scores"]
    scores, index = xr.align(scores, _unique(index), join="inner")
    if index.ndim == 1:
        index = index.expand_dims("index", axis=1)
    (dim,) = [name for name in index.dims if name != "time"]
    x, y = scores.to_numpy(), index.transpose("time", dim).to_numpy().astype(np.float64)
    _check(x, y, folds)
    y = (y - y.mean(axis=0)) / y.std(axis=0)
    gap = _window(latents) if gap is None else gap
    correlation, a, b = _canonical(x, y)
    held_out = np.full((folds, len(correlation)), np.nan)
    for number, block in enumerate(np.array_split(np.arange(len(x)), folds)):
        kept = np.r_[0 : max(0, block[0] - gap), min(len(x), block[-1] + 1 + gap) : len(x)]
        _, own, other = _canonical(x[kept], y[kept])
        for mode in range(own.shape[1]):
            held_out[number, mode] = np.corrcoef(x[block] @ own[:, mode], y[block] @ other[:, mode])[0, 1]
    one = {"units": "1"}
    return xr.Dataset(
        {
            "correlation": ("mode", correlation, one | {"long_name": "correlation on the fitted times"}),
            "held_out": (("fold", "mode"), held_out, one),
            "cross_validated": ("mode", held_out.mean(axis=0), one | {"long_name": "correlation on held-out times"}),
            "latent_variate": (("time", "mode"), (x - x.mean(axis=0)) @ a, one),
            "index_variate": (("time", "mode"), y @ b, one),
            "weight": ((dim, "mode"), b, one),
        },
        coords={"time": scores["time"], "mode": np.arange(1, len(correlation) + 1), dim: index[dim]},
        attrs={"components": x.shape[1], "gap": gap},
    )


def _canonical(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlations, and the weights that give variates of variance one; the largest weight of y is positive."""
    (qx, rx, px), (qy, ry, py) = (scipy.linalg.qr(v - v.mean(axis=0), mode="economic", pivoting=True) for v in (x, y))
    for triangle, what in ((rx, "latents"), (ry, "indices")):
        if abs(triangle[-1, -1]) <= 1e-10 * abs(triangle[0, 0]):
            raise UserError(f"the {what} depend on each other linearly; leave out components or indices.")
    u, correlation, vt = scipy.linalg.svd(qx.T @ qy, full_matrices=False)
    scale = np.sqrt(len(x))
    a, b = np.empty((x.shape[1], len(correlation))), np.empty((y.shape[1], len(correlation)))
    a[px], b[py] = scipy.linalg.solve_triangular(rx, u) * scale, scipy.linalg.solve_triangular(ry, vt.T) * scale
    signs = np.sign(b[np.abs(b).argmax(axis=0), np.arange(b.shape[1])])
    return correlation.clip(0, 1), a * signs, b * signs


def probe_map(latents: Latents, field: xr.DataArray, *, gap: int | None = None) -> xr.DataArray:
    """Where the latents know a field: R2 of a ridge from the latents to each place, on times that it has not seen.

        R2 = 1 - sum_t (y - f)^2 / sum_t (y - m)^2,   m the mean over the fitted times

    The first 60 % of the times fit, the next 20 % choose the strength, the last 20 % judge. 1: all of it; 0: no more
    than the mean; below 0: worse. A linear probe that finds nothing does not prove that nothing is there.

    Source: Alain and Bengio 2017, "Understanding intermediate layers using linear classifier probes",
    https://arxiv.org/abs/1610.01644.

    Parameters
    ----------
    field
        Dims (time, ...); shift its times to ask about the future. Times that both have are used; where a value is
        missing, it is left out of the score and counts as the mean in the fit.
    gap
        Times left out between the parts; the window of the latents if not given.

    Returns
    -------
    xr.DataArray
        R2 with the field's other dimensions and coordinates; NaN where the field does not vary.

    Examples
    --------
    >>> time, rng = np.arange(300), np.random.default_rng(0)
    >>> z = xr.DataArray(rng.normal(size=(300, 2)), dims=("time", "latent"), coords={"time": time})
    >>> noise = xr.DataArray(rng.normal(size=300), dims="time", coords={"time": time})
    >>> known = xr.concat([z.isel(latent=0, drop=True), noise], dim="x")
    >>> abs(probe_map(z, known)).round(1).values.tolist()
    [1.0, 0.0]
    """
    array = state(latents)
    field = _unique(field).transpose("time", ...)
    gap = _window(latents) if gap is None else gap
    shared, mine, theirs = np.intersect1d(array.indexes["time"], field.indexes["time"], return_indices=True)
    cuts = (round(0.6 * len(shared)), round(0.8 * len(shared)))
    train, validation = np.arange(cuts[0] - gap), np.arange(cuts[0], cuts[1] - gap)
    test = np.arange(cuts[1], len(shared))
    if min(len(train), len(validation), len(test)) < 4:
        raise UserError(f"latents and field share {len(shared)} times; about 30 are needed to fit, choose and judge.")
    y = field.isel(time=theirs).to_numpy().reshape(len(shared), -1).astype(np.float64)
    observed = np.isfinite(y)
    count = observed[train].sum(axis=0)
    mean = np.divide(np.nan_to_num(y[train]).sum(axis=0), count, out=np.zeros(y.shape[1]), where=count > 0)
    filled = np.where(observed, y - mean, 0)
    rows = state_rows(array)
    features = rows_of(rows.read(mine))
    ridge = Ridge().fit(features, [rows_of(filled)], train, validation, weights=np.ones(y.shape[1]))
    rest = np.where(observed[test], filled[test] - ridge.predict(test)[0], 0)
    total = (filled[test] ** 2).sum(axis=0)
    r2 = 1 - np.divide((rest**2).sum(axis=0), total, out=np.full(len(total), np.nan), where=total > 0)
    name = field.attrs.get("long_name", field.name or "the field")
    attributes = {"units": "1", "long_name": f"R2 of {name} from the latents"}
    return field.isel(time=0, drop=True).copy(data=r2.reshape(field.shape[1:])).rename("r2").assign_attrs(attributes)


def similarity(one: Latents, other: Latents, *, debiased: bool = True) -> xr.DataArray:
    """Linear centred kernel alignment of two sets of latents of the same times: 1 where they agree up to a rotation.

        CKA = HSIC(X X', Y Y') / sqrt(HSIC(X X', X X') HSIC(Y Y', Y Y'))

    Blind to rotations and to a common scale, not to the relative size of directions. With more features than times the
    plain form is near 1 for noise as well, which the unbiased HSIC avoids; it may fall slightly below 0.

    Source: Kornblith et al. 2019, https://arxiv.org/abs/1905.00414; unbiased HSIC: Song et al. 2012, eq. 5,
    https://jmlr.org/papers/v13/song12a.html; as used in Nguyen et al. 2021, https://arxiv.org/abs/2010.15327.

    Parameters
    ----------
    one, other
        Latents of two models, or of two encoders; the times that both have are used, at most 2000 of them.

    Examples
    --------
    >>> z = xr.DataArray(np.random.default_rng(0).normal(size=(50, 2)), dims=("time", "latent"))
    >>> z = z.assign_coords(time=np.arange(50))
    >>> turned = z.copy(data=3 * z.values @ np.array([[0.6, -0.8], [0.8, 0.6]]))
    >>> similarity(z, turned).round(6).item()
    1.0
    """
    first, second = state(one), state(other)
    times = [array.indexes["time"] for array in (first, second)]
    shared, mine, theirs = np.intersect1d(*times, return_indices=True)
    if len(shared) < 4:
        raise UserError(f"the two sets of latents share {len(shared)} times, at least 4 are needed to compare them.")
    kept = np.unique(np.linspace(0, len(shared) - 1, min(len(shared), MOST_TIMES)).round().astype(int))
    kernels = []
    for array, which in ((first, mine), (second, theirs)):
        values = state_rows(array).read(which[kept]).astype(np.float64)
        values -= values.mean(axis=0)
        kernels.append(values @ values.T)
    hsic = _unbiased if debiased else _plain
    cross, own, their = (hsic(a, b) for a, b in (kernels, (kernels[0],) * 2, (kernels[1],) * 2))
    if own <= 0 or their <= 0:
        raise UserError("one set of latents does not vary over the times, so there is nothing to compare.")
    attributes = {"units": "1", "long_name": "linear CKA", "times": len(kept), "debiased": int(debiased)}
    return xr.DataArray(cross / np.sqrt(own * their), name="similarity", attrs=attributes)


def _plain(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum())


def _unbiased(a: np.ndarray, b: np.ndarray) -> float:
    """HSIC without its diagonal: [tr(KL) + sum(K) sum(L) / ((n - 1)(n - 2)) - 2 1'KL1 / (n - 2)] / (n (n - 3))."""
    n = len(a)
    a, b = (kernel - np.diag(np.diag(kernel)) for kernel in (a, b))
    rows = a.sum(axis=0), b.sum(axis=0)
    total = (a * b).sum() + rows[0].sum() * rows[1].sum() / ((n - 1) * (n - 2)) - 2 * (rows[0] @ rows[1]) / (n - 2)
    return float(total / (n * (n - 3)))


def _unique(labelled: xr.DataArray) -> xr.DataArray:
    if "time" not in labelled.indexes:
        raise UserError(f"{labelled.name or 'the data'} needs times as a coordinate, found dimensions {labelled.dims}.")
    if not labelled.indexes["time"].is_unique:
        raise UserError(f"{labelled.name or 'the data'} has times more than once; select one member first.")
    return labelled


def _check(x: np.ndarray, y: np.ndarray, folds: int) -> None:
    least = folds * (x.shape[1] + y.shape[1] + 2)
    if len(x) < least:
        raise UserError(
            f"latents and index share {len(x)} times; {folds} folds of {x.shape[1]} components and {y.shape[1]} "
            f"indices need at least {least}. Give fewer components or folds."
        )
    if not np.isfinite(y).all():
        raise UserError(f"the index is missing at {int((~np.isfinite(y)).any(axis=1).sum())} times; drop them.")
    if not (y.std(axis=0) > 0).all():
        raise UserError("an index does not vary over the shared times, so it correlates with nothing.")


def _window(latents: Latents) -> int:
    return int(latents.attrs.get("window_steps", 1)) if isinstance(latents, xr.Dataset) else 1
