"""Scores, part 2: methods beside each other, from per-time statistics to the tidy rows of scores.csv.

What arrives: one `MethodErrors` for each method, variable and lead, on the same times. What leaves: one row a number.
We decided against comparing intervals of single methods: they share one weather, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sciJEPA.errors import UserError
from sciJEPA.scoring.intervals import block_bootstrap, block_length
from sciJEPA.scoring.score_table import method_title

COLUMNS = ["archive", "variable", "lead", "method", "probe", "metric", "value", "low", "high", "n", "seed"]


def skill_score(rmse_method: np.ndarray | float, rmse_reference: np.ndarray | float) -> np.ndarray:
    """Skill = 1 - RMSE / RMSE of the reference: 1 is perfect, 0 no better than the reference, below 0 worse.

    Of roots, not of squares: "0.10" then reads as ten percent less error. NaN for a reference without error.

    Examples
    --------
    >>> float(skill_score(0.9, 1.0)).__round__(3)
    0.1
    """
    reference = np.asarray(rmse_reference, dtype=float)
    return 1 - np.asarray(rmse_method, dtype=float) / np.where(reference > 0, reference, np.nan)


@dataclass(frozen=True, kw_only=True)
class MethodErrors:
    """Per-time statistics of one method, one variable, one lead: what the table needs and no more."""

    method: str  # stable name, a key of score_table.METHOD_TITLES
    variable: str
    lead: str  # as the user wrote it: "6H", "1D"
    probe: str  # "none", "ridge", "attentive", "knn", ...
    squared_error: np.ndarray  # (n,) area-weighted mean squared error of each init time, units squared
    anomaly_correlation: np.ndarray | None = None  # (n,); NaN where undefined, None where never defined

    def __post_init__(self) -> None:
        error = np.asarray(self.squared_error, dtype=float)
        name = f"{self.method} ({self.probe}) for {self.variable} at {self.lead}"
        if error.ndim != 1 or error.size == 0 or np.isinf(error).any() or (error < 0).any():
            raise UserError(f"squared_error of {name} must be a 1-d array of values >= 0, got shape {error.shape}.")
        object.__setattr__(self, "squared_error", error)
        given = self.anomaly_correlation
        acc = np.full(error.shape, np.nan) if given is None else np.asarray(given, dtype=float)
        if acc.shape != error.shape:
            raise UserError(f"anomaly_correlation of {name} must have shape {error.shape}, got {acc.shape}.")
        object.__setattr__(self, "anomaly_correlation", acc)


def score_rows(
    errors: Sequence[MethodErrors],
    *,
    archive: str,
    seed: int,
    controls: Sequence[str],
    simple: Sequence[str] = ("persistence", "climatology", "damped_persistence"),
    block: int | None = None,
) -> pd.DataFrame:
    """The tidy table of scores.csv: one row a number, each with a 95 % interval from a paired block bootstrap.

    Metrics, for each variable, lead, method and probe:

    - ``rmse``: square root of the mean over time, in the variable's units;
    - ``rmse_over_climatology``: its ratio to climatology's (left out when climatology is not among the methods);
    - ``skill``: 1 - RMSE / RMSE of the best of `simple` (left out when none of them is there);
    - ``acc``: mean over the times where the anomaly correlation is defined; ``n`` counts them;
    - ``difference_to_best_control``: RMSE minus RMSE of the best of `controls`; below zero is better than it.

    The best simple control and the best control are chosen by their RMSE in this very table, on the same times. That
    choice favours the controls a little, so it is conservative for the method judged. It is kept fixed in the
    bootstrap.

    Times whose truth was missing for every method (NaN in all) are left out and ``n`` says how many remain; NaN in only
    some methods is an error, since their means would be over different weather.

    Parameters
    ----------
    errors
        Methods to compare; those of one variable and lead must cover the same times in the same order.
    archive, seed
        Copied into the rows; the seed also seeds the bootstrap.
    controls
        Names of the methods that count as controls; those present are used.
    block
        Block length in times; by default `block_length` of the squared errors, the longest among the methods.

    Examples
    --------
    >>> flat = {"variable": "t2m", "lead": "1D", "probe": "none"}
    >>> errors = [MethodErrors(method="climatology", squared_error=np.full(9, 4.0), **flat),
    ...           MethodErrors(method="jepa_target", squared_error=np.full(9, 1.0), **flat)]
    >>> rows = score_rows(errors, archive="toy", seed=0, controls=["climatology"])
    >>> rows.query("metric == 'skill'")[["method", "value"]].values.tolist()
    [['climatology', 0.0], ['jepa_target', 0.5]]
    """
    groups: dict[tuple[str, str], list[MethodErrors]] = {}
    for entry in errors:
        groups.setdefault((entry.variable, entry.lead), []).append(entry)
    rows: list[dict[str, object]] = []
    for (variable, lead), entries in groups.items():
        for entry, metric, numbers, n in _scores_of_group(entries, controls, simple, block, seed):
            value, low, high = (float(number) for number in numbers)
            labels = {"archive": archive, "variable": variable, "lead": lead, "method": entry.method}
            rows.append(
                labels
                | {
                    "probe": entry.probe,
                    "metric": metric,
                    "value": value,
                    "low": low,
                    "high": high,
                    "n": n,
                    "seed": seed,
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


Score = tuple[MethodErrors, str, tuple[float, float, float], int]


def _common_times(entries: Sequence[MethodErrors]) -> np.ndarray:
    """(n,) True where truth was observed; refuses methods that cover different times."""
    where = f"{entries[0].variable} at {entries[0].lead}"
    names = [method_title(entry.method, entry.probe) for entry in entries]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UserError(f"{where}: {sorted(repeated)} given more than once; give each method and probe one entry.")
    lengths = {name: entry.squared_error.size for name, entry in zip(names, entries, strict=True)}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{where}: methods must be scored on the same times, found these numbers of times: {lengths}.")
    missing = np.stack([np.isnan(entry.squared_error) for entry in entries])
    if (missing.any(axis=0) != missing.all(axis=0)).any():
        counts = dict(zip(names, missing.sum(axis=1).tolist(), strict=True))
        raise UserError(f"{where}: some methods lack an error at times where others have one (NaN: {counts}).")
    if missing.all():
        raise UserError(f"{where}: no truth was observed at any of {missing.shape[1]} times; choose another period.")
    return ~missing[0]


def _best(entries: Sequence[MethodErrors], means: np.ndarray, names: Sequence[str]) -> int | None:
    """Index of the entry with the smallest mean error among the named methods; None if none is there."""
    among = [index for index, entry in enumerate(entries) if entry.method in names]
    return min(among, key=lambda index: means[index]) if among else None


def _scores_of_group(
    entries: Sequence[MethodErrors], controls: Sequence[str], simple: Sequence[str], block: int | None, seed: int
) -> list[Score]:
    """Every metric of every method, for one variable and lead."""
    kept = _common_times(entries)
    statistics = np.stack([entry.squared_error[kept] for entry in entries])
    n = int(kept.sum())
    length = min(n, block_length(statistics) if block is None else block)
    means = statistics.mean(axis=1)
    references = {
        "rmse_over_climatology": _best(entries, means, ["climatology"]),
        "skill": _best(entries, means, simple),
        "difference_to_best_control": _best(entries, means, controls),
    }

    def formula(mean: np.ndarray) -> np.ndarray:
        """(methods, ...) mean squared errors -> (metrics, methods, ...)."""
        root = np.sqrt(np.maximum(mean, 0.0))
        out = [root]
        for metric, index in references.items():
            if index is None:
                continue
            if metric == "difference_to_best_control":
                out.append(root - root[index])
            else:
                skill = skill_score(root, root[index])
                out.append(skill if metric == "skill" else 1 - skill)
        return np.stack(out)

    metrics = ["rmse", *(metric for metric, index in references.items() if index is not None)]
    values = formula(means)
    lows, highs = block_bootstrap(statistics, formula, block=length, seed=seed)
    scores: list[Score] = []
    for position, entry in enumerate(entries):
        for number, metric in enumerate(metrics):
            at = (number, position)
            scores.append((entry, metric, (values[at], lows[at], highs[at]), n))
        scores.append((entry, "acc", *_correlation(entry, kept, length, seed)))
    return scores


def _correlation(
    entry: MethodErrors, kept: np.ndarray, block: int, seed: int
) -> tuple[tuple[float, float, float], int]:
    assert entry.anomaly_correlation is not None  # filled in by MethodErrors
    ratios = entry.anomaly_correlation[kept]
    ratios = ratios[~np.isnan(ratios)]
    if ratios.size == 0:
        return (np.nan, np.nan, np.nan), 0
    low, high = block_bootstrap(ratios, block=min(block, ratios.size), seed=seed)
    return (float(ratios.mean()), float(low), float(high)), ratios.size
