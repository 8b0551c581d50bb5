"""A run and issue times -> forecasts in a file: the verb `forecast`.

Arrives: a run, an archive, issue times and leads. Leaves: forecasts in physical units, in the layout of WeatherBench 2.
The probe is fitted as in the panel, on the training split; issue times may reach to the archive's last step, whose
outcome nobody knows yet. We decided against fitting on all that is there: such a forecast could not be checked.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from tqdm import tqdm

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.folders import refuse_existing
from sciJEPA.forecasting.labelling import issue_steps, ranges_of, time_labels, to_dataset
from sciJEPA.forecasting.layout import read_forecast, to_weatherbench, write_forecasts
from sciJEPA.hub import Model, load
from sciJEPA.judging.baselines import Forecaster
from sciJEPA.judging.controls import CEILINGS, CONTROLS, JUDGED, PROBES, Methods, run_configuration
from sciJEPA.judging.panel_cache import open_cache
from sciJEPA.judging.problem import Problem
from sciJEPA.panel import opened_problem, run_folder
from sciJEPA.samples import split_steps


def forecast(
    run: str | os.PathLike | Model,
    archive: str | os.PathLike | xr.Dataset | Archive,
    *,
    init: str | Sequence[str] | None = None,
    lead: str | Sequence[str] | None = None,
    method: str | None = None,
    probe: str = "ridge",
    domain: str | None = None,
    out: str | os.PathLike | None = None,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """Forecasts from a run's frozen encoder, or from any method of the control panel.

    Parameters
    ----------
    run, archive, domain
        As in `probe`.
    init
        Issue times: a date ("2004-01-10", every issue time of that day), an interval ("2004-01-10/2004-02-10", both
        ends included), "latest", several of these, or "test", the test split's; "test" if not given.
    lead
        Lead times such as ["1D", "3D"]; 1, 2, 3 and 5 steps if not given.
    method, probe
        A name of the panel, and the kind of probe for latents; jepa_target if not given, jepa_online for salt.
    out
        A Zarr store to write, block by block; without it the forecasts are returned in memory.

    Returns
    -------
    xr.Dataset
        Dims (time, prediction_timedelta, ...): `time` is the issue time. In physical units, under the archive's names.
    """
    names = (*CONTROLS, *CEILINGS, *JUDGED)
    for kind, given, allowed in (("method", method, names), ("probe", probe, PROBES)):
        if given is not None and given not in allowed:
            raise UserError(f"there is no {kind} '{given}'; choose from {', '.join(allowed)}.")
    if out is not None:
        refuse_existing(out)
    folder, model = run_folder(run), run if isinstance(run, Model) else load(run)
    method = method or f"jepa_{model.jepa.objective.encoder}"
    problem = opened_problem(model, archive, domain, lead, seed=seed)
    steps = init_steps(problem, init)
    beside = Path(out).absolute().parent if out is not None else None
    with open_cache(folder / "cache" if folder is not None else None, problem.inputs[1], beside) as store:
        trained = (folder if folder is not None else store.folder) / "controls"
        methods = Methods(problem, model, store, trained, run_configuration(folder, model), progress)
        blocks = _Blocks(problem, methods.make(method, probe), steps, _attributes(problem, model, method, probe))
        if out is None:
            return xr.concat([to_weatherbench(block) for block in blocks], dim="time", coords="minimal",
                             compat="override", join="override")  # fmt: skip
        write_forecasts(tqdm(blocks, desc="forecast", unit="block", disable=None if progress else True), out)
    return to_weatherbench(read_forecast(out)).drop_vars("valid_time")


def init_steps(problem: Problem, init: str | Sequence[str] | None) -> np.ndarray:
    """Steps of the issue times as a user writes them; those with a whole issue window before them."""
    archive = problem.archive
    possible = issue_steps(archive, ((0, len(archive)),), problem.context, 0)
    chosen = [
        _some(archive, problem, possible, text) for text in ([init] if isinstance(init, str) else init or ["test"])
    ]
    return np.unique(np.concatenate(chosen))


def _some(archive: Archive, problem: Problem, possible: np.ndarray, text: str) -> np.ndarray:
    if text == "test":
        return np.intersect1d(
            possible, issue_steps(archive, split_steps(archive, problem.domain.config.data).test, 1, 0)
        )
    if text == "latest":
        return possible[possible % archive.steps_per_series == (possible % archive.steps_per_series).max()]
    first, _, last = text.partition("/")
    labels = np.array(time_labels(archive))[possible]
    try:
        if archive.calendar == "none":
            values = labels.astype(float)
            inside = (values >= float(first)) & (values <= float(last or first))
        elif isinstance(archive.time, pd.DatetimeIndex):
            series = pd.Series(0, index=archive.time[: archive.steps_per_series]).loc[first : last or first]
            inside = np.isin(possible % archive.steps_per_series, archive.step_of(series.index))
        else:
            inside = np.array([first <= label[: len(first)] and label[: len(last or first)] <= (last or first)
                               for label in labels])  # fmt: skip
    except (ValueError, TypeError) as error:
        raise UserError(
            f"cannot read the issue time '{text}': write a date such as 2004-01-31, an interval 2004-01-01/2004-01-31, "
            "latest or test."
        ) from error
    if not inside.any():
        raise UserError(
            f"{archive.source} has no issue time '{text}' with {problem.context} steps without a gap up to it; the "
            f"first is {labels[0]}, the last {labels[-1]}."
        )
    return possible[inside]


@dataclass(frozen=True)
class _Blocks:
    """Forecasts, block by block of issue times."""

    problem: Problem
    method: Forecaster
    steps: np.ndarray
    attributes: dict[str, str]

    def __len__(self) -> int:
        return len(self.problem.blocks(self.steps))

    def __iter__(self) -> Iterator[xr.Dataset]:
        problem = self.problem
        for steps in problem.blocks(self.steps):
            predicted = self.method.predict(steps)
            block = to_dataset(predicted, problem.archive, problem.domain.normalizer, steps, problem.leads)
            yield block.drop_vars("valid_time").assign_attrs(self.attributes)


def _attributes(problem: Problem, model: Model, method: str, probe: str) -> dict[str, str]:
    """What `score` must know to refuse times that the forecast was made with."""
    labels, horizon = time_labels(problem.archive), max(problem.leads)
    archive, before = problem.archive, problem.context - 1
    ranges = {
        "trained_steps": ranges_of(problem.unlabelled, archive, before, horizon),
        "tuned_steps": ranges_of(problem.validation, archive, 0, horizon),
    }
    first, last = problem.domain.normalizer.trained_on
    return {
        "Conventions": "CF-1.10",
        "model_id": model.id,
        "method": method,
        "probe": probe,
        "archive": Path(problem.archive.source).name,
        "seed": str(problem.seed),
        "trained_from": first if first in labels else labels[int(problem.unlabelled.min()) - problem.context + 1],
        "trained_until": last if last in labels else labels[int(problem.train.max()) + horizon],
        "tuned_until": labels[int(problem.validation.max()) + horizon],
        "model_trained_until": last,
        **{name: json.dumps(value) for name, value in ranges.items()},
    }
