"""What a fair comparison forbids, one function a rule; each refusal says which rule was broken.

Arrives: labelled latents of the splits, or rows and times. Leaves: nothing, or an error. Two rules are checked on
labels; that nothing is chosen on the test split is enforced: rows behind `only_at` cannot be read elsewhere. We decided
against repairing: a split that overlaps was meant otherwise.
"""

import math
from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.probes import Rows

ORDER = ("train", "validation", "test")


def refuse_leaky_latents(splits: Mapping[str, xr.Dataset | xr.DataArray]) -> None:
    """All rules that labelled latents of "train", "validation" and "test" can be held to.

    They share no time, no token looks past its issue time, and the encoder's statistics come from no time on which
    something is chosen or judged.
    """
    refuse_shared_times(splits)
    for name, latents in splits.items():
        refuse_hindsight(latents, name)
    judged = [label for name in ("validation", "test") if name in splits for label in time_labels(splits[name])]
    for latents in splits.values():
        given = latents.attrs.get("statistics_from", "").partition(" to ")
        if given[1] and judged:
            refuse_statistics((given[0], given[2]), judged)


def refuse_shared_times(splits: Mapping[str, xr.Dataset | xr.DataArray], dim: str = "time") -> None:
    """Rule: an issue time belongs to one split.

    Examples
    --------
    >>> days = xr.DataArray(np.arange(4), dims="time", coords={"time": np.arange(4)})
    >>> refuse_shared_times({"train": days[:2], "test": days[2:]})
    >>> refuse_shared_times({"train": days[:3], "test": days[2:]})
    Traceback (most recent call last):
    sciJEPA.errors.UserError: splits must not overlap: train and test share 1 time, the first 2.
    """
    for (one, ours), (other, theirs) in combinations(splits.items(), 2):
        shared = ours.indexes[dim].intersection(theirs.indexes[dim])
        if len(shared):
            times = f"{len(shared)} time{'s' if len(shared) > 1 else ''}"
            raise UserError(f"splits must not overlap: {one} and {other} share {times}, the first {shared[0]}.")


def refuse_overlap(splits: Mapping[str, np.ndarray], *, horizon: int, window: int = 1) -> None:
    """Rule: nothing that is fitted has seen an outcome on which a later split is judged.

    A sample issued at step t uses the steps t - window + 1 to t + horizon; it is judged on t + 1 to t + horizon, or on
    t itself where the horizon is 0. What an earlier split uses must not contain what a later one is judged on.

    Parameters
    ----------
    splits
        Issue steps of "train", "validation" and "test", or some of them, on one time axis.
    horizon
        Longest lead in steps.
    window
        Steps of the issue window.

    Examples
    --------
    >>> refuse_overlap({"train": np.arange(5), "test": np.arange(7, 9)}, horizon=3)
    >>> refuse_overlap({"train": np.arange(5), "test": np.arange(6, 9)}, horizon=3)
    Traceback (most recent call last):
    sciJEPA.errors.UserError: splits must not overlap: train issued at step 4 uses steps 4 to 7, test issued at step 6 \
is judged on steps 7 to 9; leave 2 steps between them.
    """
    named = [(name, np.unique(splits[name])) for name in ORDER if name in splits]
    for (one, fitted), (other, judged) in combinations(named, 2):
        if not len(fitted) or not len(judged):
            continue
        first_judged = 1 if horizon else 0
        place = np.searchsorted(judged, fitted)
        later, earlier = judged[np.minimum(place, len(judged) - 1)], judged[np.maximum(place - 1, 0)]
        for near in (later, earlier):
            overlap = (fitted - window + 1 <= near + horizon) & (near + first_judged <= fitted + horizon)
            if overlap.any():
                # The pair that lies closest is the one that a reader can check.
                number = int(np.flatnonzero(overlap)[np.abs(near - fitted)[overlap].argmin()])
                t, s = int(fitted[number]), int(near[number])
                needed = horizon - first_judged if s >= t else horizon + window - 1
                raise UserError(
                    f"splits must not overlap: {one} issued at step {t} uses steps {t - window + 1} to {t + horizon}, "
                    f"{other} issued at step {s} is judged on steps {s + first_judged} to {s + horizon}; leave "
                    f"{needed} steps between them."
                )


def refuse_hindsight(latents: xr.Dataset | xr.DataArray, name: str = "the") -> None:
    """Rule: a latent knows nothing past its issue time.

    Latents must say what their encoder saw: `token_offset`, hours from the issue time to a token's last step.
    """
    if "token_offset" not in latents.coords:
        raise UserError(
            f"{name} latents must say what their encoder saw: they lack the coordinate token_offset (hours from the "
            "issue time to a token's last step), which `embed` writes."
        )
    offset = latents["token_offset"].to_numpy()
    if not (offset <= 0).all():  # also NaN
        raise UserError(
            f"latents must not know what follows their issue time: {int((~(offset <= 0)).sum())} of {offset.size} "
            f"tokens of {name} latents reach up to {np.nanmax(offset):g} hours past it; drop them, or label the "
            "latents with the last step that their encoder saw."
        )


def refuse_statistics(trained_on: tuple[str, str], judged: Iterable[str]) -> None:
    """Rule: weights and statistics come from no time on which something is chosen or judged.

    Parameters
    ----------
    trained_on
        First and last time, as `Normalizer.trained_on` has them.
    judged
        Validation and test times in the same notation, see `time_labels`. Dates against plain numbers: other times
        altogether, and fine.

    Examples
    --------
    >>> refuse_statistics(("0", "6"), ["7", "10"])
    >>> refuse_statistics(("0", "7"), ["7", "10"])
    Traceback (most recent call last):
    sciJEPA.errors.UserError: statistics must come from training times only: they are from 0 to 7, and 1 of 2 times \
that are judged lie within, the first 7; retrain with this split, or judge other times.
    """
    first, last = trained_on
    labels = list(judged)
    numbers = [_is_number(label) for label in (first, last, *labels)]
    if not all(numbers) and any(numbers):
        return
    # As text, dates compare like dates; numbers do not.
    order = float if all(numbers) else str
    within = [label for label in labels if order(first) <= order(label) <= order(last)]  # type: ignore[operator]
    if within:
        raise UserError(
            f"statistics must come from training times only: they are from {first} to {last}, and {len(within)} of "
            f"{len(labels)} times that are judged lie within, the first {within[0]}; retrain with this split, or judge "
            "other times."
        )


def refuse_series(trained_on: Iterable[str], judged: Iterable[str]) -> None:
    """Rule: weights come from no trajectory on which something is chosen or judged, nor from one with its parameters.

    Another file of the same simulations is split anew, so that trajectories of training may be among those judged.

    Parameters
    ----------
    trained_on, judged
        Trajectories by their parameters, see `samples.series_named`; where they have none, nothing can be said.

    Examples
    --------
    >>> refuse_series(["drag 0.1", "drag 0.2"], ["drag 0.3"])
    >>> refuse_series(["drag 0.1", "drag 0.2"], ["drag 0.2", "drag 0.3"])
    Traceback (most recent call last):
    sciJEPA.errors.UserError: trajectories of training must not be judged: the model was trained on 1 of the 2 sets of \
parameters that are judged, the first drag 0.2; judge others, or the archive of training, or give this one a \
coordinate split (train, validation, test).
    """
    seen, wanted = set(trained_on), list(judged)
    shared = [name for name in wanted if name in seen]
    if shared:
        raise UserError(
            f"trajectories of training must not be judged: the model was trained on {len(shared)} of the {len(wanted)} "
            f"sets of parameters that are judged, the first {shared[0]}; judge others, or the archive of training, or "
            "give this one a coordinate split (train, validation, test)."
        )


def only_at(rows: Rows, allowed: np.ndarray, what: str) -> Rows:
    """The same rows, which refuse to be read anywhere else.

    Rule: nothing is fitted or chosen on test times. Hand a probe its targets behind this, with the training and the
    validation times, and it cannot break the rule.

    Examples
    --------
    >>> from sciJEPA.probes import rows_of
    >>> truth = only_at(rows_of(np.arange(4.0)), np.arange(3), "truth")
    >>> truth.read(np.array([2])).tolist()
    [[2.0]]
    >>> truth.read(np.array([2, 3]))
    Traceback (most recent call last):
    sciJEPA.errors.UserError: nothing may be fitted or chosen on test times: truth was asked for at 1 step outside of \
training and validation, the first 3.
    """
    inside = np.unique(allowed)

    def read(indices: np.ndarray) -> np.ndarray:
        outside = np.setdiff1d(indices, inside)
        if len(outside):
            steps = f"{len(outside)} step{'s' if len(outside) > 1 else ''}"
            raise UserError(
                f"nothing may be fitted or chosen on test times: {what} was asked for at {steps} outside of training "
                f"and validation, the first {outside[0]}."
            )
        return rows.read(indices)

    return Rows(read, rows.width)


def time_labels(latents: xr.Dataset | xr.DataArray, dim: str = "time") -> list[str]:
    """Issue times as `Normalizer.trained_on` writes them."""
    return [str(time) for time in latents.indexes[dim]]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
