"""States -> regimes: which recur, how long they last, and which follows which.

Arrives: labelled latents. Leaves: a label for each time, centres, and the transition matrix with its counts; the fields
of a regime come from `explore_fields`. k-means finds as many clusters as it is asked for, in a cloud without any too:
look at the shares, at several seeds, and at whether persistence exceeds what neighbouring days have in common anyway.
We decided against soft labels, which make no transition matrix.
"""

import warnings

import numpy as np
import xarray as xr
from scipy.cluster.vq import kmeans2

from sciJEPA.errors import UserError
from sciJEPA.explore.components import principal_components
from sciJEPA.explore.states import Latents, cadence, elapsed


def regimes(
    latents: Latents, number: int = 4, seed: int = 0, *, components: int = 20, attempts: int = 20
) -> xr.Dataset:
    """Clusters of states by k-means on the leading principal components, the most frequent first.

    Minimises sum_t |s(t) - c_label(t)|^2 over centres and labels, the best of several starts (k-means++: Arthur and
    Vassilvitskii 2007, http://ilpubs.stanford.edu:8090/778/). Regimes of the atmosphere: Michelangeli, Vautard and
    Legras 1995, https://doi.org/10.1175/1520-0469(1995)052<1237:WRRAQS>2.0.CO;2.

    Parameters
    ----------
    number
        How many clusters.
    seed
        Of the starts.
    components
        Principal components that enter.
    attempts
        Starts; `agreement` says how many of them ended within 0.1 % of the best sum of squares.

    Returns
    -------
    xr.Dataset
        `label` (time), `distance` (time) to the centre of the own regime, `centre` (regime, component), `share`
        (regime) of the times, and what `transitions` gives. Attributes `explained` (share of the variance between
        centres) and `agreement`.

    Examples
    --------
    >>> values = np.array([0.0, 0.1, 0.2, 9.0, 9.1])[:, None]
    >>> found = regimes(xr.DataArray(values, dims=("time", "latent"), coords={"time": np.arange(5)}), 2)
    >>> found["label"].values.tolist(), found["probability"].values.round(2).tolist()
    ([1, 1, 1, 2, 2], [[0.67, 0.33], [0.0, 1.0]])
    """
    parts = principal_components(latents, components)
    scores = parts["scores"]
    if not 1 <= number < len(scores):
        raise UserError(f"{number} regimes need more than {number} times and at least one regime, got {len(scores)}.")
    values = scores.to_numpy()
    rng = np.random.default_rng(seed)
    runs = sorted((_k_means(values, number, rng) for _ in range(attempts)), key=lambda run: run[2])
    centres, owner, squares = runs[0]
    if not np.isfinite(squares):
        raise UserError(f"the latents have fewer than {number} different states; ask for fewer regimes.")
    order = np.argsort(-np.bincount(owner, minlength=number), kind="stable")
    label = np.argsort(order)[owner] + 1
    along = {name: c for name, c in scores.coords.items() if c.dims == ("time",)}
    labels = xr.DataArray(label, along, ("time",), name="regime", attrs={"long_name": "regime"})
    own = np.linalg.norm(values - centres[owner], axis=1)
    total = float(((values - values.mean(axis=0)) ** 2).sum())
    found = xr.Dataset(
        {
            "label": labels,
            "distance": ("time", own, {"units": "1", "long_name": "distance to the centre of the regime"}),
            "centre": (("regime", "component"), centres[order], {"units": "1"}),
            "share": ("regime", np.bincount(label - 1) / len(label), {"units": "1", "long_name": "share of the times"}),
        },
        coords={"component": scores["component"]},
        attrs={
            **parts.attrs,
            "explained": 1 - squares / total,
            "agreement": f"{sum(run[2] <= squares * 1.001 + 1e-12 for run in runs)} of {attempts} starts",
            "seed": seed,
        },
    )
    return found.merge(transitions(labels))


def transitions(labels: xr.DataArray) -> xr.Dataset:
    """How often each label follows each from one time to the next, and how long a stay is expected to last.

        p_ij = n_ij / sum_j n_ij,   expected stay = 1 / (1 - p_ii) steps

    of a Markov chain with these counts. Pairs across a gap, or from one member to the next, are left out.

    Parameters
    ----------
    labels
        Dims (time,); any values.

    Returns
    -------
    xr.Dataset
        `count` and `probability` with dims (regime, next_regime), named after the labels; `persistence` in steps, the
        mean length of a stay if the chain were one, infinite where none was left; NaN where none was observed.

    Examples
    --------
    >>> chain = xr.DataArray(["a", "a", "b", "a"], dims="time", coords={"time": np.arange(4)}, name="regime")
    >>> transitions(chain)["count"].values.tolist()  # a -> a, a -> b, b -> a
    [[1, 1], [1, 0]]
    """
    name = str(labels.name or "regime")
    index = labels.indexes["time"]
    step = np.diff(elapsed(index))
    follows = np.abs(step - cadence(index)) <= 0.15 * cadence(index)  # months differ in length
    names, owner = np.unique(labels.to_numpy(), return_inverse=True)
    count = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(count, (owner[:-1][follows], owner[1:][follows]), 1)
    left = count.sum(axis=1)
    probability = np.divide(count, left[:, None], out=np.full(count.shape, np.nan), where=left[:, None] > 0)
    with np.errstate(divide="ignore"):
        stay = 1 / (1 - np.diag(probability))
    pair = (name, f"next_{name}")
    return xr.Dataset(
        {
            "count": (pair, count, {"units": "1", "long_name": "transitions from one time to the next"}),
            "probability": (pair, probability, {"units": "1"}),
            "persistence": (name, stay, {"units": "steps", "long_name": "expected length of a stay"}),
        },
        coords={name: names, f"next_{name}": names},
    )


def _k_means(values: np.ndarray, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Centres, labels and sum of squares of one start; infinite where a cluster was lost."""
    first = [values[rng.integers(len(values))]]
    for _ in range(number - 1):
        squares = np.min([((values - centre) ** 2).sum(axis=1) for centre in first], axis=0)
        total = squares.sum()
        first.append(values[rng.choice(len(values), p=squares / total if total > 0 else None)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a lost cluster shows in the counts below
        centres, owner = kmeans2(values, np.array(first), iter=100, minit="matrix")
    if len(np.unique(owner)) < number:
        return centres, owner, float("inf")
    return centres, owner, float(((values - centres[owner]) ** 2).sum())
