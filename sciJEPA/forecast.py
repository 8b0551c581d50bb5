"""Predictions -> labelled forecasts in physical units, and the probe that makes them from latents.

Arrives: latents of issue times and an archive. Leaves: an `xr.Dataset` with dims (init_time, lead_time, latitude,
longitude) under the archive's own names and units.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.archive import Archive, open_archive
from sciJEPA.baselines import Climatology, DampedPersistence, Forecaster, Persistence, fields
from sciJEPA.errors import UserError
from sciJEPA.normalize import Normalizer, fit_normalizer
from sciJEPA.probes import STRENGTHS, Ridge, Rows
from sciJEPA.samples import WindowReader, contiguous
from sciJEPA.score_table import lead_days
from sciJEPA.scores import latitude_weights, rmse


def lead_steps(lead: str, archive: Archive) -> int:
    """Steps of a lead time such as "3D" or "6H"; it must be a whole number of the archive's steps."""
    days, unit = lead_days(lead)
    steps = days if unit == "step" else days * 24 / archive.cadence
    nearest = round(steps)
    # Months have 28 to 31 days; anything else has to fit.
    if nearest < 1 or abs(steps - nearest) > (0.1 * nearest if unit in ("m", "mo", "y") else 1e-6):
        raise UserError(
            f"a lead of {lead} is {steps:.3g} steps of {archive.source}, whose steps are {archive.cadence:g} hours; use a "
            f"multiple such as {lead_label(1, archive)} or {lead_label(3, archive)}."
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


def issue_steps(archive: Archive, split: tuple[int, int], context: int, horizon: int) -> np.ndarray:
    """Issue steps whose window of `context` steps and whose next `horizon` steps lie in the split without a gap."""
    from sciJEPA.samples import window_starts

    return window_starts(archive, split, context + horizon) + context - 1


def target_weights(archive: Archive) -> np.ndarray:
    """Area weight of every target (V, H, W), flattened; mean 1."""
    rows = latitude_weights(archive.latitude)
    return np.tile(np.repeat(rows, len(archive.longitude)), len(archive.channels))


def to_dataset(
    predictions: Sequence[np.ndarray], archive: Archive, normalizer: Normalizer, steps: np.ndarray, leads: Sequence[int]
) -> xr.Dataset:
    """Standardised anomalies of each lead, shape (n, V H W), as fields in physical units under the archive's names."""
    shape = (len(steps), len(archive.channels), len(archive.latitude), len(archive.longitude))
    physical = np.stack(
        [normalizer.invert(p.reshape(shape), archive.time[steps + lead]) for p, lead in zip(predictions, leads, strict=True)],
        axis=1,
    )
    valid = np.stack([np.asarray(archive.time[steps + lead]) for lead in leads], axis=1)
    space = (archive.axes["latitude"], archive.axes["longitude"])
    coords: dict[str, Any] = {
        "init_time": np.asarray(archive.time[steps]),
        "lead_time": ("lead_time", _lead_values(archive, leads), {"long_name": "time since issue"}),
        "valid_time": (("init_time", "lead_time"), valid),
        space[0]: archive.ds[space[0]],
        space[1]: archive.ds[space[1]],
    }
    variables: dict[str, Any] = {}
    for name in archive.variables:
        numbers = [i for i, channel in enumerate(archive.channels) if channel.variable == name]
        attrs = {key: archive.ds[name].attrs[key] for key in ("units", "long_name", "standard_name") if key in archive.ds[name].attrs}
        if archive.channels[numbers[0]].level is None:
            variables[name] = (("init_time", "lead_time", *space), physical[:, :, numbers[0]], attrs)
        else:
            level = archive.axes["level"]
            coords[level] = archive.ds[level]
            variables[name] = (("init_time", "lead_time", level, *space), physical[:, :, numbers], attrs)
    return xr.Dataset(variables, coords=coords)


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
            Latents on which the strength is chosen; without it, the last eighth of the training times.
        """
        archive = open_archive(archive)
        leads = [self.lead] if isinstance(self.lead, str) else list(self.lead)
        self.leads_ = [lead_steps(lead, archive) for lead in leads]
        steps = _steps_of(latents, archive)
        if validation is None:
            # The outcomes of the last training times may not reach into the validation times.
            cut = len(steps) - max(1, len(steps) // 8)
            held_out = steps[cut:]
            steps = steps[steps + max(self.leads_) < held_out[0]]
            held_latents = latents
        else:
            held_latents, held_out = validation, _steps_of(validation, archive)
            if len(np.intersect1d(steps, held_out)):
                raise UserError("validation shares times with the training latents; a strength chosen there is worthless.")
        last = min(steps[-1] + max(self.leads_), len(archive) - 1)
        first = max(0, steps[0] - int(latents.attrs.get("window_steps", 1)) + 1)
        self.normalizer_ = fit_normalizer(archive, first, last + 1)
        self.archive_ = archive
        self.reader_ = WindowReader(archive, self.normalizer_)
        train, chosen = (_with_outcome(s, archive, max(self.leads_)) for s in (steps, held_out))
        self.trained_until_ = archive.time[last]
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

        Issue times whose valid time lies beyond the archive are left out, since `init_time` and `valid_time` are labelled
        from the archive's own time axis.
        """
        if not hasattr(self, "ridge_"):
            raise UserError("the probe is not fitted; call fit(latents, archive) first.")
        steps = _steps_of(latents, self.archive_)
        steps = steps[steps + max(self.leads_) < len(self.archive_)]
        self.ridge_._features = _latent_rows([latents], self.archive_)
        forecast = to_dataset(self.ridge_.predict(steps), self.archive_, self.normalizer_, steps, self.leads_)
        forecast.attrs = {
            "model_id": latents.attrs.get("model_id", ""),
            "probe": "ridge",
            "trained_from": self.normalizer_.trained_on[0],
            "trained_until": self.normalizer_.trained_on[1],
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
    labels = archive.time.astype(str)
    first = int(labels.get_loc(forecast.attrs["trained_from"]))
    last = int(labels.get_loc(forecast.attrs["trained_until"]))
    steps = archive.time.get_indexer(pd.Index(forecast["init_time"].values))
    valid = forecast["valid_time"].values
    leads = [int(archive.time.get_indexer(pd.Index(valid[:1, i]))[0] - steps[0]) for i in range(valid.shape[1])]
    if steps[0] <= last:
        raise UserError(
            f"the forecasts begin at {labels[steps[0]]}, within the training times that end at {labels[last]}; skill there "
            "would be hindsight. Predict later times."
        )
    reader = WindowReader(archive, fit_normalizer(archive, first, last + 1))
    train = np.arange(first, last + 1 - max(leads))
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
    observed = _truth(archive, steps, leads, forecast)
    weights = latitude_weights(archive.ds[archive.axes["latitude"]])
    over = (archive.axes["latitude"], archive.axes["longitude"])
    rows = []
    for variable in forecast.data_vars:
        errors = {m: rmse(f[variable], observed[variable], weights, over=over) for m, f in methods.items()}
        for method_name, error in errors.items():
            table = error.rename("rmse").to_dataframe().reset_index()
            table["skill"] = 1 - errors["forecast"].values.ravel() / error.values.ravel()
            rows.append(table.assign(variable=variable, method=method_name))
    return pd.concat(rows, ignore_index=True)


def _truth(archive: Archive, steps: np.ndarray, leads: Sequence[int], like: xr.Dataset) -> xr.Dataset:
    time = archive.axes["time"]
    parts = []
    for number, lead in enumerate(leads):
        valid = archive.ds[list(like.data_vars)].isel({time: steps + lead}).load().drop_vars(time)
        parts.append(valid.rename({time: "init_time"}).assign_coords(init_time=like["init_time"], lead_time=like["lead_time"][number]))
    return xr.concat(parts, dim="lead_time").transpose("init_time", "lead_time", ...)


def _steps_of(latents: xr.Dataset, archive: Archive) -> np.ndarray:
    steps = archive.time.get_indexer(pd.Index(latents["time"].values) if archive.calendar != "none" else latents["time"].values)
    if (steps < 0).any() or not len(steps):
        raise UserError(
            f"{int((steps < 0).sum())} of {len(steps)} latent times are not times of {archive.source}; embed that archive, "
            "or pass the one that the latents come from."
        )
    return steps


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
