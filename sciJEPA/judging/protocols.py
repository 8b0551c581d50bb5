"""Published protocols by name: `ett`, `weatherbench`, `well`.

Arrives: an archive, and a run. Leaves: tidy rows with the errors that each literature prints, on its splits. A protocol
is its definitions, as small functions, and a way to run them on a run's forecasts. We decided against a framework for
further ones: three protocols have a name and a table in common, and nothing else.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.forecasting.issuing import forecast, init_steps
from sciJEPA.forecasting.labelling import lead_label, place_weights, steps_of
from sciJEPA.forecasting.verification import score
from sciJEPA.hub import Model, load, random_model
from sciJEPA.judging.baselines import Forecaster
from sciJEPA.judging.controls import JUDGED, Methods, chosen_probes, run_configuration
from sciJEPA.judging.panel_cache import open_cache
from sciJEPA.judging.parameters import field_statistics, parameter_rows, row_labels
from sciJEPA.judging.problem import Problem
from sciJEPA.judging.protocol_ett import ett
from sciJEPA.panel import opened_problem, run_folder
from sciJEPA.samples import splits_series
from sciJEPA.scores import vrmse
from sciJEPA.scoring.comparison import COLUMNS
from sciJEPA.scoring.intervals import block_bootstrap

__all__ = ["PROTOCOLS", "WEATHERBENCH", "WELL_WINDOWS", "ett", "protocol", "weatherbench", "well"]

WEATHERBENCH = {"leads": ("3D", "5D"), "year": "2020", "hours": (0, 12), "headline": ("z@500", "t@850")}
"""WeatherBench 2 (Rasp et al. 2024, https://doi.org/10.1029/2023MS004019): issued at 0 and 12 UTC in 2020."""
WELL_WINDOWS = {"6:12": range(6, 13), "13:30": range(13, 31)}
"""Spans of a rollout over which The Well (Ohana et al. 2024, https://arxiv.org/abs/2412.00568) averages."""
WELL_STEPS = 3
"""Leads that stand for a span: its ends and what is between, evenly."""


def protocol(
    name: str,
    archive: str | os.PathLike | xr.Dataset | Archive,
    run: str | os.PathLike | Model | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Run a protocol by name; options are those of the function of that name."""
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol '{name}'; choose from {', '.join(PROTOCOLS)}.")
    if run is None and name != "ett":
        raise UserError(f"the protocol {name} judges a run; pass its folder (--run RUN).")
    return PROTOCOLS[name](archive, run, **options)


# --- WeatherBench


def weatherbench(
    archive: str | os.PathLike | xr.Dataset | Archive,
    run: str | os.PathLike | Model,
    *,
    leads: Sequence[str] = WEATHERBENCH["leads"],  # type: ignore[assignment]
    year: str = WEATHERBENCH["year"],  # type: ignore[assignment]
    method: str = "jepa_target",
    out: str | os.PathLike | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores of the headline fields, 500 hPa geopotential and 850 hPa temperature, beside persistence and climatology.

    RMSE with latitude weights, the root after the mean over time, ACC and bias, of all forecasts issued at 0 and 12 UTC
    of the year whose outcome the archive holds.

    Parameters
    ----------
    archive
        ERA5 on 64 x 32 points from WeatherBench 2's public store, or a copy; all its channels are scored where the
        headline fields are not among them.
    run
        A run whose training and validation end before the year.
    """
    model = run if isinstance(run, Model) else load(run)
    problem = opened_problem(model, archive, None, list(leads))
    issued = issued_at(problem, year)
    labels = [str(time) for time in problem.archive.time[issued]]
    with tempfile.TemporaryDirectory(prefix=".weatherbench-", dir=Path(out).parent if out is not None else None) as at:
        store = Path(at) / "forecast.zarr"
        forecast(run, archive, init=labels, lead=list(leads), method=method, out=store, seed=seed, progress=progress)
        rows = score(store, problem.archive, seed=seed)
    channels = set(rows["variable"])
    wanted = [name for name in channels if _headline(name)]
    return _written(rows[rows["variable"].isin(wanted or channels)].reset_index(drop=True), out)


def issued_at(problem: Problem, year: str) -> np.ndarray:
    """Steps at 0 and 12 UTC of a year from which the longest lead ends inside the archive."""
    archive = problem.archive
    if archive.calendar == "none":
        raise UserError(f"{archive.source} has no calendar, and the protocol is about the dates of {year}.")
    steps = init_steps(problem, year)
    hours = np.asarray(archive.time[steps].hour)
    steps = steps[np.isin(hours, WEATHERBENCH["hours"]) & (steps + max(problem.leads) < len(archive))]
    if not len(steps):
        raise UserError(f"{archive.source} has no forecast issued at 0 or 12 UTC of {year} whose outcome it holds.")
    return steps


def _headline(channel: str) -> bool:
    """Geopotential at 500 hPa or temperature at 850 hPa, under the names that are in use."""
    name, _, level = channel.partition("@")
    return (name in ("geopotential", "z") and level == "500") or (name in ("temperature", "t") and level == "850")


# --- The Well


def well(
    archive: str | os.PathLike | xr.Dataset | Archive,
    run: str | os.PathLike | Model,
    *,
    parameters: Sequence[str] | None = None,
    probes: Sequence[str] = ("ridge", "attentive", "knn"),
    methods: Sequence[str] = ("persistence", "raw_ridge", "random_init", "jepa_target", "latent_rollout"),
    out: str | os.PathLike | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """One-step and rollout VRMSE, and how well frozen latents tell the parameters of a simulation.

    Parameters
    ----------
    archive
        Simulations; whole trajectories make up the splits, those of the coordinate `split` where there is one.
    run
        A run of simulations.
    parameters
        Numbers of the trajectories to be told from latents; all that differ among them if not given.
    probes
        Kinds of probes that tell them.
    methods
        Names of the panel; each with a ridge on whole fields, and with one that all places share.

    Returns
    -------
    pd.DataFrame
        The columns of scores.csv: metrics `vrmse` (lead 1, and the spans 6:12 and 13:30 where trajectories are long
        enough) and `r2` (the variable is the parameter).
    """
    folder, model = run_folder(run), run if isinstance(run, Model) else load(run)
    opened, _ = model.open(archive)
    leads = well_leads(opened.steps_per_series - model.only.config.data.context)
    problem = opened_problem(model, opened, None, [lead_label(lead, opened) for lead in leads], seed=seed)
    rows: list[dict[str, Any]] = []
    with open_cache(folder / "cache" if folder is not None else None, problem.inputs[1], None) as cache:
        trained = (folder if folder is not None else cache.folder) / "controls"
        makers = Methods(problem, model, cache, trained, run_configuration(folder, model), progress)
        for name, kind in makers.entries(methods, chosen_probes(None, problem)):
            rows += vrmse_rows(problem, makers.make(name, kind), name, kind)
        if splits_series(problem.archive, problem.domain.config.data):
            for name, chosen in (("random_init", random_model(model)), ("jepa_target", model)):
                encoder = "target" if name in JUDGED else "online"
                latents = cache.latents(chosen, *problem.inputs, encoder, progress=progress)
                rows += parameter_rows(problem, latents["latents"], name, parameters, probes)
            steps = steps_of(latents, problem.archive)
            rows += parameter_rows(
                problem, field_statistics(problem, steps), "moments_and_spectrum", parameters, probes, pool="flatten"
            )
    return _written(pd.DataFrame(rows, columns=COLUMNS), out)


def well_leads(reach: int) -> list[int]:
    """Lead 1, and those that stand for each span of a rollout that a trajectory reaches to the end of.

    Examples
    --------
    >>> well_leads(20), well_leads(40)
    ([1, 6, 9, 12], [1, 6, 9, 12, 13, 21, 30])
    """
    spans = [span for span in WELL_WINDOWS.values() if span[-1] < reach]
    return [1, *(int(lead) for span in spans for lead in np.linspace(span[0], span[-1], WELL_STEPS).astype(int))]


def vrmse_rows(problem: Problem, method: Forecaster, name: str, probe: str) -> list[dict[str, Any]]:
    """VRMSE of every channel at lead 1 and over each span: the mean over test times and the span's leads."""
    found = vrmse_of(problem, method)
    spans = {lead_label(1, problem.archive): [0]}
    for span, steps in WELL_WINDOWS.items():
        inside = [number for number, lead in enumerate(problem.leads) if lead in steps]
        spans |= {span: inside} if inside else {}
    rows = []
    for label, numbers in spans.items():
        for column, channel in enumerate(problem.archive.channels):
            values = found[numbers, column].mean(axis=0)
            low, high = block_bootstrap(values, block=_trajectory_times(problem), seed=problem.seed)
            numbers_of = {"value": float(values.mean()), "low": float(low), "high": float(high), "n": len(values)}
            rows.append(row_labels(problem, channel.name, label, name, probe) | {"metric": "vrmse"} | numbers_of)
    return rows


def vrmse_of(problem: Problem, method: Forecaster) -> np.ndarray:
    """VRMSE of each lead, channel and test time, in physical units, shape (leads, channels, times)."""
    archive, normalizer = problem.archive, problem.domain.normalizer
    space, shape = archive.space.dims, (-1, len(archive.channels), *archive.shape)
    blocks = []
    for steps in problem.blocks(problem.test):
        parts = []
        for lead, predicted in zip(problem.leads, method.predict(steps), strict=True):
            truth = archive.read(int(steps[0]) + lead, int(steps[-1]) + lead + 1)[steps - steps[0]]
            given = normalizer.invert(predicted.reshape(shape), archive.time[steps + lead])
            # The constant of VRMSE is in units squared: fields are divided by their spread.
            spread = normalizer.spread.reshape(-1, *(1,) * len(archive.shape))
            one, other = (xr.DataArray(field / spread, dims=("time", "channel", *space)) for field in (given, truth))
            parts.append(vrmse(one, other, place_weights(archive), over=space).values.T)
        blocks.append(np.stack(parts))
    return np.concatenate(blocks, axis=2)


def _trajectory_times(problem: Problem) -> int:
    """Test times of one trajectory: they share one simulation, so they are drawn together."""
    _, counts = np.unique(problem.test // problem.archive.steps_per_series, return_counts=True)
    return int(min(counts.max(), len(problem.test)))


def _written(rows: pd.DataFrame, out: str | os.PathLike | None) -> pd.DataFrame:
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        rows.to_csv(out, index=False)
    return rows


PROTOCOLS: Mapping[str, Callable[..., pd.DataFrame]] = {"ett": ett, "weatherbench": weatherbench, "well": well}
