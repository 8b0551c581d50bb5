"""Steps of an archive -> labels: leads, issue times, and predictions as fields in physical units.

Arrives: numbers of steps and arrays without labels. Leaves: what a user calls them, and an `xr.Dataset` with dims
(init_time, lead_time, ...) under the archive's own names and units. Labels of latents are turned back into steps here
too. We decided against looking up valid times in the archive alone: a forecast from its last step is valid after it.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import cftime
import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.latents import series_coordinates
from sciJEPA.normalize import Normalizer
from sciJEPA.probes import Rows
from sciJEPA.samples import Ranges, contiguous, window_starts
from sciJEPA.scoring.score_table import lead_days


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


def valid_times(archive: Archive, steps: np.ndarray, lead: int) -> pd.Index:
    """Times that lie `lead` steps after these; past the end of their series they are counted on by the cadence."""
    length = archive.steps_per_series
    beyond = steps % length + lead - (length - 1)
    times = archive.time[np.where(beyond > 0, steps - steps % length + length - 1, steps + lead)]
    if not (beyond > 0).any():
        return times
    beyond = np.maximum(beyond, 0)
    if archive.calendar == "none":
        return pd.Index(np.asarray(times, dtype=float) + beyond * np.median(np.diff(archive.time[:length])))
    if lead_label(1, archive) == "1M" and isinstance(times, pd.DatetimeIndex):
        return pd.DatetimeIndex([time + pd.DateOffset(months=int(n)) for time, n in zip(times, beyond, strict=True)])
    ahead = [timedelta(hours=float(hours)) for hours in beyond * archive.cadence]
    return type(times)([time + delta for time, delta in zip(times, ahead, strict=True)])


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
            normalizer.invert(p.reshape(shape), valid_times(archive, steps, lead))
            for p, lead in zip(predictions, leads, strict=True)
        ],
        axis=1,
    )
    return label_fields(physical, archive, steps, leads)


def label_fields(physical: np.ndarray, archive: Archive, steps: np.ndarray, leads: Sequence[int]) -> xr.Dataset:
    """Fields (n, leads, V, H, W) in physical units, `leads` steps after the issue steps, under the archive's names."""
    valid = np.stack([np.asarray(valid_times(archive, steps, lead)) for lead in leads], axis=1)
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


def series_numbers(labelled: xr.Dataset, archive: Archive) -> np.ndarray | None:
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


def positions(times: np.ndarray, archive: Archive, series: np.ndarray | None = None) -> np.ndarray:
    """Steps of the archive with these times; -1 for those that it lacks."""
    if isinstance(archive.time, xr.CFTimeIndex) and times.dtype.kind == "M":
        # Dates of the standard calendar come back from a store as datetime64.
        dates = pd.DatetimeIndex(times).to_pydatetime()
        calendar = str(archive.time.calendar)
        times = np.array([cftime.datetime(*d.timetuple()[:6], d.microsecond, calendar=calendar) for d in dates])
    return archive.step_of(pd.Index(times), series)


def steps_of(latents: xr.Dataset, archive: Archive) -> np.ndarray:
    """Steps of the archive with the times, and series, of labelled latents."""
    steps = positions(latents["time"].values, archive, series_numbers(latents, archive))
    if (steps < 0).any() or not len(steps):
        raise UserError(
            f"{int((steps < 0).sum())} of {len(steps)} latent times are not times of {archive.source}; embed that "
            "archive, or pass the one that the latents come from."
        )
    return steps


def ranges_of(steps: np.ndarray, archive: Archive, before: int, after: int) -> Ranges:
    """For each series with any of the steps, from `before` the first of them to `after` the last."""
    length = archive.steps_per_series
    ranges = []
    for number in np.unique(steps // length).tolist():
        own = steps[steps // length == number]
        start, stop = max(number * length, int(own.min()) - before), int(own.max()) + after + 1
        ranges.append((start, min(stop, (number + 1) * length)))
    return tuple(ranges)


def with_outcome(steps: np.ndarray, archive: Archive, horizon: int) -> np.ndarray:
    """The issue steps that are followed by `horizon` steps without a gap."""
    inside = steps[steps + horizon < len(archive)]
    breaks = np.cumsum(~contiguous(archive))
    return inside[breaks[inside + horizon] == breaks[inside]]


def latest_tokens(latents: xr.Dataset) -> xr.DataArray:
    """The tokens that end at the issue time: the state from which a forecast starts."""
    offset = latents["token_offset"].values
    return latents["latents"].isel(token=np.flatnonzero(offset == offset.max()))


def latent_rows(parts: Sequence[xr.Dataset], archive: Archive) -> Rows:
    """Rows of latents by issue step, read from whichever part holds the step."""
    arrays = [latest_tokens(part) for part in parts]
    position = np.full((2, len(archive)), -1)
    for number, part in enumerate(parts):
        where = steps_of(part, archive)
        position[:, where] = np.array([np.full(len(where), number), np.arange(len(where))])

    def read(steps: np.ndarray) -> np.ndarray:
        rows = np.empty((len(steps), arrays[0].shape[1] * arrays[0].shape[2]), dtype=np.float32)
        for number, array in enumerate(arrays):
            mine = position[0, steps] == number
            if mine.any():
                rows[mine] = array.isel(time=position[1, steps[mine]]).values.reshape(int(mine.sum()), -1)
        return rows

    return Rows(read, arrays[0].shape[1] * arrays[0].shape[2])
