"""Frozen features of issue windows -> the parameters of their trajectories: a viscosity, a feed rate.

Arrives: a problem, and latents or a control of single windows. Leaves: rows with R2 on trajectories with parameters of
their own. A window is a sample, and windows of a trajectory share its parameters, so that splits and intervals take
whole trajectories. We decided against means over the tokens alone: what parameters change is how fields vary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sciJEPA.archive import Archive
from sciJEPA.forecasting.labelling import steps_of
from sciJEPA.judging.field_statistics import moments_and_spectrum
from sciJEPA.judging.problem import Problem
from sciJEPA.latents import series_coordinates
from sciJEPA.probes import row_blocks
from sciJEPA.probing.index import RegressionProbe
from sciJEPA.samples import split_steps


def parameter_rows(
    problem: Problem,
    features: xr.DataArray,
    name: str,
    parameters: Sequence[str] | None,
    probes: Sequence[str],
    *,
    pool: str = "moments",
) -> list[dict[str, Any]]:
    """R2 of parameters told from what is known of single issue windows, on trajectories with other parameters.

    Windows of one trajectory do not overlap. Strengths, neighbours and epochs are chosen on validation trajectories;
    intervals draw whole test trajectories.
    """
    archive, rows = problem.archive, []
    steps = steps_of(features.to_dataset(name="latents"), archive)
    apart = (steps % archive.steps_per_series + 1) % problem.context == 0
    series, samples = steps[apart] // archive.steps_per_series, features.drop_vars("time").isel(time=apart)
    samples = samples.rename(time="sample")
    part = split_numbers(problem)[series]
    fitted, judged = part < 2, part == 2
    for parameter in list(parameters) if parameters is not None else trajectory_parameters(archive):
        target = xr.DataArray(archive.ds[parameter].values.ravel()[series].astype(float), dims="sample", name=parameter)
        for kind in probes:
            probe = RegressionProbe(kind=kind, pool=pool, standardise=True, seed=problem.seed)
            probe.fit(samples[fitted], target[fitted], dim="sample", held_out=part[fitted] == 1)
            value, low, high = grouped_r2(target[judged].values, probe.predict(samples[judged]).values, series[judged])
            told = {"metric": "r2", "value": value, "low": low, "high": high, "n": int(judged.sum())}
            rows.append(row_labels(problem, parameter, "0", name, kind) | told)
    return rows


def split_numbers(problem: Problem) -> np.ndarray:
    """For each trajectory 0, 1 or 2: training, validation or test."""
    archive, splits = problem.archive, split_steps(problem.archive, problem.domain.config.data)
    part = np.zeros(archive.repeats, dtype=int)
    for number, ranges in enumerate((splits.train, splits.validation, splits.test)):
        part[[start // archive.steps_per_series for start, _ in ranges]] = number
    return part


def field_statistics(problem: Problem, steps: np.ndarray) -> xr.DataArray:
    """Moments and spectra of issue windows that end at these steps; the steps of a window take the place of tokens."""
    archive, rows = problem.archive, moments_and_spectrum(problem.reader, problem.context)
    values = np.concatenate([rows.read(block) for block in row_blocks(steps)]).astype(np.float32)
    coords = {"time": archive.time[steps], **series_coordinates(archive, steps, "time")}
    return xr.DataArray(
        values.reshape(len(steps), problem.context, -1), dims=("time", "token", "latent"), coords=coords
    )


def grouped_r2(
    truth: np.ndarray, predicted: np.ndarray, groups: np.ndarray, *, draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """1 - squared error / squared distance from the mean of these samples, and its 95 % interval over whole groups.

    Samples of a trajectory share its parameter, so that drawing them one by one would promise too much.

    Examples
    --------
    >>> truth = np.array([0.0, 0.0, 2.0, 2.0])  # squared distance 4, squared error 2
    >>> grouped_r2(truth, np.array([0.0, 1.0, 2.0, 1.0]), np.array([0, 0, 1, 1]), draws=2)[0]
    0.5
    """
    values = r2_draws(truth, predicted, groups, draws=draws, seed=seed)
    low, high = np.percentile(values[1:], [2.5, 97.5]) if len(values) > 1 else (np.nan, np.nan)
    return float(values[0]), float(low), float(high)


def r2_draws(truth: np.ndarray, predicted: np.ndarray, groups: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
    """R2 of all samples, then of random draws of whole groups: the same for all methods, whose differences are paired.

    Draws of a single group again and again have no spread and are left out.
    """
    names, number = np.unique(groups, return_inverse=True)
    count = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    weights = np.concatenate([np.ones((1, len(truth))), count[:, number]])
    mean = (weights * truth).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    spread = (weights * (truth - mean) ** 2).sum(axis=1)
    error = (weights * (truth - predicted) ** 2).sum(axis=1)
    values: np.ndarray = 1 - error[spread > 0] / spread[spread > 0]
    return values


def trajectory_parameters(archive: Archive) -> list[str]:
    """Numbers of the trajectories, coordinates or variables, that differ among them."""
    return [
        str(name)
        for name, values in archive.ds.variables.items()
        if archive.series and values.dims == archive.series and name not in archive.series
        if values.dtype.kind in "fiu" and len(np.unique(values.values)) > 1
    ]


def row_labels(problem: Problem, variable: str, lead: str, method: str, probe: str) -> dict[str, Any]:
    """What a score is of, without an interval."""
    labels = {"archive": Path(problem.archive.source).name, "variable": variable, "lead": lead, "method": method}
    return labels | {"probe": probe, "low": np.nan, "high": np.nan, "seed": problem.seed}
