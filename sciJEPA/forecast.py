"""Predictions -> labelled forecasts in physical units, and the probe that makes them from latents.

Arrives: latents of issue times and an archive. Leaves: an `xr.Dataset` with dims (init_time, lead_time, latitude,
longitude) under the archive's own names and units.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cftime
import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.archive import Archive, open_archive
from sciJEPA.baselines import Climatology, DampedPersistence, Forecaster, Persistence, fields
from sciJEPA.errors import UserError
from sciJEPA.loader import WindowReader
from sciJEPA.normalize import Normalizer, fit_normalizer
from sciJEPA.probes import STRENGTHS, Ridge, Rows
from sciJEPA.samples import Ranges, contiguous, window_starts
from sciJEPA.score_table import lead_days
from sciJEPA.scores import rmse


def lead_steps(lead: str, archive: Archive) -> int:
    """Steps of a lead time such as "3D" or "6H"; it must be a whole number of the archive's steps."""
    days, unit = lead_days(lead)
    steps = days if unit == "step" else days * 24 / archive.cadence
    nearest = round(steps)
    # Months have 28 to 31 days; anything else has to fit.
    if nearest < 1 or abs(steps - nearest) > (0.1 * nearest if unit in ("m", "mo", "y") else 1e-6):
        raise UserError(
            f"a lead of {lead} is {steps:.3g} steps of {archive.source}, whose steps are {archive.cadence:g} hours; "
            f"use a multiple such as {lead_label(1, archive)} or {lead_label(3, archive)}."
        )
    return nearest


def lead_label(steps: int, archive: Archive) -> str:
    """A lead of so many steps in the way users write it."""
    hours = steps * archive.cadence
    if archive.calendar == "none":
        return str(steps)
    if 27 * 24 <= archive.cadence <= 32 * 24:
        return f"{steps}M"
    return f"{hours / 24:g}D" if hours % 24 == 0 else f"{hours:g}H"


def issue_steps(archive: Archive, split: Ranges, context: int, horizon: int) -> np.ndarray:
    """Issue steps whose window of `context` steps and whose next `horizon` steps lie in the split without a gap."""
    return window_starts(archive, split, context + horizon) + context - 1


def target_weights(archive: Archive) -> np.ndarray:
    """Area weight of every target (V, *space), flattened; mean 1."""
    return np.tile(archive.space.weights.ravel(), len(archive.channels))


def to_dataset(
    predictions: Sequence[np.ndarray], archive: Archive, normalizer: Normalizer, steps: np.ndarray, leads: Sequence[int]
) -> xr.Dataset:
    """Standardised anomalies of each lead, shape (n, V H W), as fields in physical units under the archive's names."""
    shape = (len(steps), len(archive.channels), *archive.shape)
    physical = np.stack(
        [
            normalizer.invert(p.reshape(shape), archive.time[steps + lead])
            for p, lead in zip(predictions, leads, strict=True)
        ],
        axis=1,
    )
    return label_fields(physical, archive, steps, leads)


def label_fields(physical: np.ndarray, archive: Archive, steps: np.ndarray, leads: Sequence[int]) -> xr.Dataset:
    """Fields (n, leads, V, H, W) in physical units, `leads` steps after the issue steps, under the archive's names."""
    valid = np.stack([np.asarray(archive.time[steps + lead]) for lead in leads], axis=1)
    space = archive.space.dims
    coords: dict[str, Any] = {
        "init_time": np.asarray(archive.time[steps]),
        "lead_time": ("lead_time", _lead_values(archive, leads), {"long_name": "time since issue"}),
        "valid_time": (("init_time", "lead_time"), valid),
        **_coordinates_on(archive, space),
        **series_coordinates(archive, steps, "init_time"),
    }
    variables: dict[str, Any] = {}
    for name in archive.variables:
        numbers = [i for i, channel in enumerate(archive.channels) if channel.variable == name]
        attrs = {
            key: archive.ds[name].attrs[key]
            for key in ("units", "long_name", "standard_name")
            if key in archive.ds[name].attrs
        }
        if archive.channels[numbers[0]].level is None:
            variables[name] = (("init_time", "lead_time", *space), physical[:, :, numbers[0]], attrs)
        else:
            level = archive.axes["level"]
            coords |= _coordinates_on(archive, (level,))
            variables[name] = (("init_time", "lead_time", level, *space), physical[:, :, numbers], attrs)
    return xr.Dataset(variables, coords=coords)


def _coordinates_on(archive: Archive, dims: Sequence[str]) -> dict[str, Any]:
    """The archive's coordinates on these dimensions, without the way in which they were stored."""
    return {
        str(name): (coordinate.dims, coordinate.values, coordinate.attrs)
        for name, coordinate in archive.ds.coords.items()
        if coordinate.dims and set(coordinate.dims) <= set(dims)
    }


def place_weights(archive: Archive) -> xr.DataArray:
    """Area weight of every place, on the archive's own dimensions; mean 1."""
    return xr.DataArray(archive.space.weights, dims=archive.space.dims)


def time_labels(archive: Archive) -> list[str]:
    """Every time as a normaliser's `trained_on` writes it; Index.astype(str) leaves midnight out."""
    return [str(time) for time in archive.time]


def _lead_values(archive: Archive, leads: Sequence[int]) -> np.ndarray:
    if archive.calendar == "none":
        return np.asarray(leads)
    return pd.to_timedelta(np.asarray(leads) * archive.cadence, unit="h").to_numpy()


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
            Holds the fields to be forecast; climatology and spread are taken from the training times.
        validation
            Latents on which the strength is chosen; without it, the last eighth of the training times, or twice the
            longest lead if that is more.

        Raises
        ------
        UserError
            If the latents are of another archive, a lead is no multiple of the archive's steps, validation and training
            share times, or either has no time whose outcome is known.
        """
        archive = open_archive(archive)
        leads = [self.lead] if isinstance(self.lead, str) else list(self.lead)
        self.leads_ = [lead_steps(lead, archive) for lead in leads]
        horizon = max(self.leads_)
        steps = _steps_of(latents, archive)
        if validation is None:
            steps, held_out = _hold_out(steps, archive, horizon)
            held_latents = latents
        else:
            held_latents, held_out = validation, _steps_of(validation, archive)
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
        self.ranges_ = _ranges_of(train, archive, int(latents.attrs.get("window_steps", 1)) - 1, horizon)
        self.tuned_ranges_ = _ranges_of(held_out, archive, 0, horizon)
        self.normalizer_ = fit_normalizer(archive, self.ranges_)
        self.archive_ = archive
        self.reader_ = WindowReader(archive, self.normalizer_)
        self.model_id_ = latents.attrs.get("model_id", "")
        self.tuned_until_ = str(archive.time[int(held_out.max())])
        self.ridge_ = Ridge(self.strengths).fit(
            _latent_rows([latents, held_latents], archive),
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
        steps = _with_outcome(_steps_of(latents, self.archive_), self.archive_, max(self.leads_))
        if not len(steps):
            raise UserError(
                f"none of these latents is followed by {max(self.leads_)} steps in {self.archive_.source}, from which "
                "valid times are labelled; predict from earlier latents."
            )
        self.ridge_._features = _latent_rows([latents], self.archive_)
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
    steps, leads = _issue_and_leads(forecast, archive)
    trained = _trained_steps(forecast, archive, steps)
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


def _trained_steps(forecast: xr.Dataset, archive: Archive, steps: np.ndarray) -> Ranges:
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


def _issue_and_leads(forecast: xr.Dataset, archive: Archive) -> tuple[np.ndarray, list[int]]:
    """Issue steps of a forecast and its leads in steps."""
    series = _series_numbers(forecast, archive)
    steps = _positions(forecast["init_time"].values, archive, series)
    valid = forecast["valid_time"].transpose("init_time", "lead_time").values
    repeated = None if series is None else np.repeat(series, valid.shape[1])
    ahead = _positions(valid.ravel(), archive, repeated).reshape(valid.shape) - steps[:, None]
    if not len(steps) or steps.min() < 0 or (ahead < 1).any() or (ahead != ahead[0]).any():
        raise UserError(
            f"the forecast's init_time and valid_time are not times of {archive.source}; pass the archive that the "
            "probe was fitted on."
        )
    return steps, ahead[0].tolist()


def series_coordinates(archive: Archive, steps: np.ndarray, dim: str) -> dict[str, Any]:
    """Which member or trajectory each step belongs to, under the archive's own names, as coordinates along `dim`."""
    shape = tuple(archive.ds.sizes[name] for name in archive.series)
    numbers = np.unravel_index(steps // archive.steps_per_series, shape) if shape else ()
    return {
        name: (dim, archive.ds[name].values[index] if name in archive.ds.coords else index)
        for name, index in zip(archive.series, numbers, strict=True)
    }


def _series_numbers(labelled: xr.Dataset, archive: Archive) -> np.ndarray | None:
    """The series of each labelled time, from its coordinates; None where the archive has one series."""
    if not archive.series:
        return None
    numbers = []
    for name in archive.series:
        own = archive.ds[name].to_index() if name in archive.ds.coords else pd.RangeIndex(archive.ds.sizes[name])
        numbers.append(own.get_indexer(labelled[name].values))
    if min(part.min(initial=0) for part in numbers) < 0:
        raise UserError(f"some of the {', '.join(archive.series)} labels are not those of {archive.source}.")
    return np.ravel_multi_index(numbers, tuple(archive.ds.sizes[name] for name in archive.series))


def _positions(times: np.ndarray, archive: Archive, series: np.ndarray | None = None) -> np.ndarray:
    """Steps of the archive with these times; -1 for those that it lacks."""
    if isinstance(archive.time, xr.CFTimeIndex) and times.dtype.kind == "M":
        # Dates of the standard calendar come back from a store as datetime64.
        dates = pd.DatetimeIndex(times).to_pydatetime()
        calendar = str(archive.time.calendar)
        times = np.array([cftime.datetime(*d.timetuple()[:6], d.microsecond, calendar=calendar) for d in dates])
    return archive.step_of(pd.Index(times), series)


def _steps_of(latents: xr.Dataset, archive: Archive) -> np.ndarray:
    steps = _positions(latents["time"].values, archive, _series_numbers(latents, archive))
    if (steps < 0).any() or not len(steps):
        raise UserError(
            f"{int((steps < 0).sum())} of {len(steps)} latent times are not times of {archive.source}; embed that "
            "archive, or pass the one that the latents come from."
        )
    return steps


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
    return _with_outcome(train, archive, horizon), _with_outcome(chosen, archive, horizon)


def _ranges_of(steps: np.ndarray, archive: Archive, before: int, after: int) -> Ranges:
    """For each series with any of the steps, from `before` the first of them to `after` the last."""
    length = archive.steps_per_series
    ranges = []
    for number in np.unique(steps // length).tolist():
        own = steps[steps // length == number]
        start, stop = max(number * length, int(own.min()) - before), int(own.max()) + after + 1
        ranges.append((start, min(stop, (number + 1) * length)))
    return tuple(ranges)


def _with_outcome(steps: np.ndarray, archive: Archive, horizon: int) -> np.ndarray:
    """The issue steps that are followed by `horizon` steps without a gap."""
    inside = steps[steps + horizon < len(archive)]
    breaks = np.cumsum(~contiguous(archive))
    return inside[breaks[inside + horizon] == breaks[inside]]


def latest_tokens(latents: xr.Dataset) -> xr.DataArray:
    """The tokens that end at the issue time: the state from which a forecast starts."""
    offset = latents["token_offset"].values
    return latents["latents"].isel(token=np.flatnonzero(offset == offset.max()))


def _latent_rows(parts: Sequence[xr.Dataset], archive: Archive) -> Rows:
    """Rows of latents by issue step, read from whichever part holds the step."""
    arrays = [latest_tokens(part) for part in parts]
    position = np.full((2, len(archive)), -1)
    for number, part in enumerate(parts):
        where = _steps_of(part, archive)
        position[:, where] = np.array([np.full(len(where), number), np.arange(len(where))])

    def read(steps: np.ndarray) -> np.ndarray:
        rows = np.empty((len(steps), arrays[0].shape[1] * arrays[0].shape[2]), dtype=np.float32)
        for number, array in enumerate(arrays):
            mine = position[0, steps] == number
            if mine.any():
                rows[mine] = array.isel(time=position[1, steps[mine]]).values.reshape(int(mine.sum()), -1)
        return rows

    return Rows(read, arrays[0].shape[1] * arrays[0].shape[2])
