"""How surprising a difference to the best control would be if there were none, in a table with many cells.

Arrives: per-time errors of methods. Leaves: p-values, adjusted for the number of cells: of twenty cells in which
nothing differs, one has an interval that excludes zero. We decided against dividing the level by the number of cells:
Holm's rule promises the same and finds more.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.stats

from sciJEPA.errors import UserError
from sciJEPA.scoring.comparison import COLUMNS, MethodErrors, _best, _common_times
from sciJEPA.scoring.intervals import block_length, resampled_means

RESAMPLES = 9999
"""The smallest p-value is one over this and one."""


def bootstrap_p_value(
    errors: np.ndarray, reference: np.ndarray, *, block: int, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """Two-sided p-value of a difference in RMSE, from a paired block bootstrap.

        p = (1 + number of resamples with |d* - d| >= |d|) / (1 + resamples)

    d is the difference of the roots of the means and d* that of a resample: as far as resamples stray from d, d would
    stray from zero. Two methods with equal errors have p = 1.

    Source: Davison & Hinkley 1997, "Bootstrap Methods and their Application", chapter 4,
    https://doi.org/10.1017/CBO9780511802843.

    Parameters
    ----------
    errors, reference
        Mean squared error of each time, shape (n,), finite, on the same times.
    block
        Neighbouring times drawn together; see `intervals.block_length`.

    Examples
    --------
    >>> same = np.arange(1.0, 9.0)
    >>> bootstrap_p_value(same, same, block=2, resamples=99), bootstrap_p_value(same + 9, same, block=2, resamples=99)
    (1.0, 0.01)
    """
    both = np.stack([np.asarray(errors, dtype=float), np.asarray(reference, dtype=float)])
    means = resampled_means(both, block=block, resamples=resamples, seed=seed)
    roots = np.sqrt(np.maximum(means, 0.0))
    found = np.sqrt(both.mean(axis=1))
    difference = found[0] - found[1]
    strays = np.abs(roots[0] - roots[1] - difference)
    # Without a difference rounding must not decide.
    least = max(abs(difference) - 1e-12 * float(found.max()), 0.0)
    return float((1 + int((strays >= least).sum())) / (1 + resamples))


def adjusted(p_values: Sequence[float] | np.ndarray, method: str = "holm") -> np.ndarray:
    """p-values for a table with so many cells.

    - "holm": the chance of even one false find is below the level, whatever the cells have in common (Holm 1979,
      https://www.jstor.org/stable/4615733);
    - "bh": the expected share of false finds is below the level, for cells that are positively dependent, as those of
      one weather are (Benjamini & Hochberg 1995, https://doi.org/10.1111/j.2517-6161.1995.tb02031.x);
    - "by": the same whatever they have in common (Benjamini & Yekutieli 2001).

    NaN stays NaN and counts as no cell.

    Examples
    --------
    >>> adjusted([0.01, 0.04, 0.03]).tolist(), adjusted([0.01, 0.04, 0.03], "bh").tolist()
    ([0.03, 0.06, 0.06], [0.03, 0.04, 0.04])
    """
    values = np.asarray(p_values, dtype=float)
    if method not in ("holm", "bh", "by"):
        raise UserError(f"p-values are adjusted by holm, bh or by, got '{method}'.")
    given = ~np.isnan(values)
    cells = values[given]
    if ((cells < 0) | (cells > 1)).any():
        raise UserError(f"p-values lie between 0 and 1, got {cells.min():g} to {cells.max():g}.")
    out = np.full(values.shape, np.nan)
    if method != "holm":
        out[given] = scipy.stats.false_discovery_control(cells, method=method) if cells.size else cells
        return out
    order = np.argsort(cells)
    raised = np.maximum.accumulate(cells[order] * np.arange(cells.size, 0, -1))
    holm = np.empty_like(cells)
    holm[order] = np.minimum(raised, 1.0)
    out[given] = holm
    return out


def p_value_rows(
    errors: Sequence[MethodErrors],
    *,
    archive: str,
    seed: int,
    controls: Sequence[str],
    judged: Sequence[str] | None = None,
    method: str = "holm",
    block: int | None = None,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Rows of scores.csv with the p-value of each method's difference to the best control, and the adjusted one.

    Metrics `p_value` and `p_value_adjusted`. A cell is a judged method at one variable and lead; the adjustment is for
    all cells of this table. The best control is the one of `score_rows`.

    Parameters
    ----------
    errors, archive, seed, controls, block
        As in `score_rows`.
    judged
        Names of the methods whose difference is a claim; by default all that are no controls.
    """
    groups: dict[tuple[str, str], list[MethodErrors]] = {}
    for entry in errors:
        groups.setdefault((entry.variable, entry.lead), []).append(entry)
    rows: list[dict[str, object]] = []
    for (variable, lead), entries in groups.items():
        kept = _common_times(entries)
        statistics = np.stack([entry.squared_error[kept] for entry in entries])
        best = _best(entries, statistics.mean(axis=1), controls)
        if best is None:
            raise UserError(f"none of the controls {list(controls)} was scored for {variable} at {lead}.")
        n = int(kept.sum())
        length = min(n, block_length(statistics) if block is None else block)
        for number, entry in enumerate(entries):
            if number == best or not (entry.method in judged if judged is not None else entry.method not in controls):
                continue
            value = bootstrap_p_value(
                statistics[number], statistics[best], block=length, resamples=resamples, seed=seed
            )
            labels = {"archive": archive, "variable": variable, "lead": lead, "method": entry.method}
            rows.append(labels | {"probe": entry.probe, "metric": "p_value", "value": value, "n": n, "seed": seed})
    table = pd.DataFrame(rows, columns=COLUMNS)
    raised = table.assign(metric="p_value_adjusted", value=adjusted(table["value"].to_numpy(dtype=float), method))
    return pd.concat([table, raised], ignore_index=True)
