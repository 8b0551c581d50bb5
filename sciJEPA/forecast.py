"""Predictions -> labelled forecasts in physical units, and the probe that makes them from latents.

Arrives: latents of issue times and an archive. Leaves: an `xr.Dataset` with dims (init_time, lead_time, latitude,
longitude) under the archive's own names and units.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.archive import Archive, open_archive
from sciJEPA.errors import UserError
from sciJEPA.forcings import without_forcings
from sciJEPA.forecasting.issuing import forecast
from sciJEPA.forecasting.labelling import (
    issue_steps,
    label_fields,
    latent_rows,
    latest_tokens,
    lead_label,
    lead_steps,
    place_weights,
    positions,
    ranges_of,
    series_numbers,
    steps_of,
    target_weights,
    time_labels,
    to_dataset,
    with_outcome,
)
from sciJEPA.judging.baselines import Climatology, DampedPersistence, Forecaster, Persistence, fields
from sciJEPA.loader import WindowReader
from sciJEPA.normalize import fit_normalizer
from sciJEPA.probes import STRENGTHS, Ridge
from sciJEPA.samples import Ranges
from sciJEPA.scores import rmse

__all__ = [
    "ForecastProbe",
    "forecast",
    "issue_steps",
    "latest_tokens",
    "lead_label",
    "lead_steps",
    "skill",
    "target_weights",
    "to_dataset",
]


@dataclass
class ForecastProbe:
    """Ridge from latents to the fields that follow, with scikit-learn's verbs on labelled data.

    Parameters
    ----------
    lead
        One lead time or several, such as "3D" or ["1D", "3D"].
    strengths
        Candidates for the ridge strength; the best on validation is taken for each lead and variable.

    Examples
    --------
    >>> ForecastProbe(lead="3D").get_params()["lead"]
    '3D'
    """

    lead: str | Sequence[str] = "1D"
    strengths: Sequence[float] = STRENGTHS
    ridge_: Ridge = field(init=False, repr=False)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name, as scikit-learn has it."""
        return {"lead": self.lead, "strengths": self.strengths}

    def set_params(self, **parameters: Any) -> "ForecastProbe":
        """Set parameters by name."""
        for name, value in parameters.items():
            if name not in self.get_params():
                raise UserError(f"ForecastProbe has no parameter '{name}'; it has {', '.join(self.get_params())}.")
            setattr(self, name, value)
        return self

    def fit(
        self,
        latents: xr.Dataset,
        archive: str | os.PathLike | xr.Dataset | Archive,
        *,
        validation: xr.Dataset | None = None,
    ) -> "ForecastProbe":
        """Fit on the issue times of `latents`.

        Parameters
        ----------
        latents
            From `embed`, the training times: `latents.sel(time=slice(None, "2007"))`.
        archive
            Holds the fields to be forecast, all but the model's forcings; climatology and spread are taken from the
            training times.
        validation
            Latents on which the strength is chosen; without it, the last eighth of the training times, or twice the
            longest lead if that is more.

        Raises
        ------
        UserError
            If the latents are of another archive, a lead is no multiple of the archive's steps, validation and training
            share times, or either has no time whose outcome is known.
        """
        archive = without_forcings(open_archive(archive), latents.attrs.get("forcings", "").split(", "))
        leads = [self.lead] if isinstance(self.lead, str) else list(self.lead)
        self.leads_ = [lead_steps(lead, archive) for lead in leads]
        horizon = max(self.leads_)
        steps = steps_of(latents, archive)
        if validation is None:
            steps, held_out = _hold_out(steps, archive, horizon)
            held_latents = latents
        else:
            held_latents, held_out = validation, steps_of(validation, archive)
            if len(np.intersect1d(steps, held_out)):
                raise UserError(
                    "validation shares times with the training latents; a strength chosen there is worthless."
                )
        train, chosen = _apart(steps, held_out, archive, horizon)
        for name, kept in (("training", train), ("validation", chosen)):
            if not len(kept):
                raise UserError(
                    f"no {name} time of {archive.source} is followed by {horizon} steps of the same split without a "
                    "gap; use more times or a shorter lead."
                )
        self.ranges_ = ranges_of(train, archive, int(latents.attrs.get("window_steps", 1)) - 1, horizon)
        self.tuned_ranges_ = ranges_of(held_out, archive, 0, horizon)
        self.normalizer_ = fit_normalizer(archive, self.ranges_)
        self.archive_ = archive
        self.reader_ = WindowReader(archive, self.normalizer_)
        self.model_id_ = latents.attrs.get("model_id", "")
        self.tuned_until_ = str(archive.time[int(held_out.max())])
        self.ridge_ = Ridge(self.strengths).fit(
            latent_rows([latents, held_latents], archive),
            [fields(self.reader_, lead) for lead in self.leads_],
            train,
            chosen,
            weights=target_weights(archive),
            groups=len(archive.channels),
        )
        return self

    def predict(self, latents: xr.Dataset) -> xr.Dataset:
        """Forecasts from these latents: dims (init_time, lead_time, ...), in the archive's units and names.

        Issue times that are not followed by the whole lead without a gap in the archive are left out, since
        `init_time` and `valid_time` are labelled from the archive's own time axis.
        """
        if not hasattr(self, "ridge_"):
            raise UserError("the probe is not fitted; call fit(latents, archive) first.")
        model_id = latents.attrs.get("model_id", "")
        if model_id != self.model_id_:
            raise UserError(
                f"the probe was fitted on latents of model {self.model_id_}, these are of model {model_id}."
            )
        steps = with_outcome(steps_of(latents, self.archive_), self.archive_, max(self.leads_))
        if not len(steps):
            raise UserError(
                f"none of these latents is followed by {max(self.leads_)} steps in {self.archive_.source}, from which "
                "valid times are labelled; predict from earlier latents."
            )
        self.ridge_.features_ = latent_rows([latents], self.archive_)
        forecast = to_dataset(self.ridge_.predict(steps), self.archive_, self.normalizer_, steps, self.leads_)
        forecast.attrs = {
            "model_id": model_id,
            "probe": "ridge",
            "trained_from": self.normalizer_.trained_on[0],
            "trained_until": self.normalizer_.trained_on[1],
            "tuned_until": self.tuned_until_,
            "trained_steps": json.dumps(self.ranges_),
            "tuned_steps": json.dumps(self.tuned_ranges_),
            "model_trained_until": latents.attrs.get("statistics_from", "").rpartition(" to ")[2],
        }
        return forecast


def skill(
    forecast: xr.Dataset,
    truth: str | os.PathLike | xr.Dataset | Archive,
    against: Sequence[str] = ("persistence", "climatology"),
) -> pd.DataFrame:
    """RMSE of a forecast beside that of simple controls, fitted on the forecast's own training times.

    Parameters
    ----------
    forecast
        From `ForecastProbe.predict`.
    truth
        The archive.
    against
        Names among persistence, climatology, damped_persistence.

    Returns
    -------
    pd.DataFrame
        One row a variable, lead and method: rmse in the variable's units, skill = 1 - RMSE(forecast) / RMSE(method).
    """
    archive = open_archive(truth, variables=[str(name) for name in forecast.data_vars])
    steps, leads = issue_and_leads(forecast, archive)
    trained = trained_steps(forecast, archive, steps)
    reader = WindowReader(archive, fit_normalizer(archive, trained))
    train = issue_steps(archive, trained, 1, max(leads))
    makers: dict[str, Any] = {
        "persistence": lambda: Persistence(reader, leads),
        "climatology": lambda: Climatology(reader, leads),
        "damped_persistence": lambda: DampedPersistence.fit(reader, leads, train),
    }
    unknown = [name for name in against if name not in makers]
    if unknown:
        raise UserError(f"there is no control '{unknown[0]}' here; choose from {', '.join(makers)}.")
    methods = {"forecast": forecast}
    for name in against:
        method: Forecaster = makers[name]()
        methods[name] = to_dataset(method.predict(steps), archive, reader.normalizer, steps, leads)
    span = int(steps.min())
    truth_fields = archive.read(span, int(steps.max()) + max(leads) + 1)
    observed = label_fields(
        np.stack([truth_fields[steps + lead - span] for lead in leads], axis=1), archive, steps, leads
    ).assign_coords({name: forecast[name] for name in ("init_time", "lead_time")})
    weights, over = place_weights(archive), archive.space.dims
    rows = []
    for variable in forecast.data_vars:
        errors = {m: rmse(f[variable], observed[variable], weights, over=over) for m, f in methods.items()}
        for method_name, error in errors.items():
            table = error.rename("rmse").to_dataframe().reset_index()
            table["skill"] = 1 - errors["forecast"].values.ravel() / error.values.ravel()
            rows.append(table.assign(variable=variable, method=method_name))
    return pd.concat(rows, ignore_index=True)


def trained_steps(forecast: xr.Dataset, archive: Archive, steps: np.ndarray) -> Ranges:
    """Steps that the probe was trained on; refused where the forecasts begin within what it or its model has seen."""
    if archive.repeats > 1:
        stated = [json.loads(forecast.attrs.get(name, "[]")) for name in ("trained_steps", "tuned_steps")]
        seen = sum(int(((steps >= start) & (steps < stop)).sum()) for start, stop in [*stated[0], *stated[1]])
        if seen or not stated[0]:
            raise UserError(
                f"{seen} of {len(steps)} forecasts begin within the training and validation steps of their probe, or "
                "these are unknown; skill there would be hindsight. Predict other series or later times."
            )
        return tuple((int(start), int(stop)) for start, stop in stated[0])
    labels = time_labels(archive)
    wanted = [str(forecast.attrs.get(name)) for name in ("trained_from", "trained_until", "tuned_until")]
    absent = [label for label in wanted if label not in labels]
    if absent:
        raise UserError(
            f"the forecasts were trained from {wanted[0]} to {wanted[1]}, but {absent[0]} is no time of "
            f"{archive.source}; pass the archive that the probe was fitted on."
        )
    first, last, tuned = (labels.index(label) for label in wanted)
    # The encoder may have been trained longer than the probe; on another archive's times it saw nothing of this one.
    encoder = forecast.attrs.get("model_trained_until")
    until = max(last, tuned, labels.index(encoder) if encoder in labels else 0)
    if steps.min() <= until:
        raise UserError(
            f"the forecasts begin at {labels[steps.min()]}, within the training and validation times of probe and "
            f"model that end at {labels[until]}; skill there would be hindsight. Predict later times."
        )
    return ((first, last + 1),)


def issue_and_leads(forecast: xr.Dataset, archive: Archive) -> tuple[np.ndarray, list[int]]:
    """Issue steps of a forecast and its leads in steps."""
    series = series_numbers(forecast, archive)
    steps = positions(forecast["init_time"].values, archive, series)
    valid = forecast["valid_time"].transpose("init_time", "lead_time").values
    repeated = None if series is None else np.repeat(series, valid.shape[1])
    ahead = positions(valid.ravel(), archive, repeated).reshape(valid.shape) - steps[:, None]
    if not len(steps) or steps.min() < 0 or (ahead < 1).any() or (ahead != ahead[0]).any():
        raise UserError(
            f"the forecast's init_time and valid_time are not times of {archive.source}; pass the archive that the "
            "probe was fitted on."
        )
    return steps, ahead[0].tolist()


def _hold_out(steps: np.ndarray, archive: Archive, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation steps: the last eighth of the series, or of the times where there is one series."""
    series = steps // archive.steps_per_series
    numbers = np.unique(series)
    if len(numbers) > 1:
        last = series >= numbers[-max(1, len(numbers) // 8)]
        return steps[~last], steps[last]
    cut = max(0, len(steps) - max(len(steps) // 8, 2 * horizon))
    return steps[:cut], steps[cut:]


def _apart(steps: np.ndarray, held_out: np.ndarray, archive: Archive, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation steps whose outcomes do not reach into the other's times, nor beyond the validation's."""
    length = archive.steps_per_series
    chosen = held_out[held_out % length + horizon <= (held_out % length).max()]
    shared = bool(np.isin(steps // length, held_out // length).any())
    local, first, last = steps % length, (held_out % length).min(), (held_out % length).max()
    train = steps[(local + horizon < first) | (local > last)] if shared else steps
    return with_outcome(train, archive, horizon), with_outcome(chosen, archive, horizon)
