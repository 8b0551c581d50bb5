"""A date -> the days that resemble it in latent space, and what followed them.

Arrives: labelled latents, a date, the archive. Leaves: the analogs with their distances, and a composite with its
spread. `probe_analogs.py` scores such forecasts; this module is for looking at one of them. We decided against dates
themselves as weights: all analogs count alike.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.explore.fields import Fields, Source
from sciJEPA.explore.states import Latents, elapsed, length_of, state, state_rows, step_at
from sciJEPA.forecasting.labelling import lead_steps, with_outcome
from sciJEPA.probes import row_blocks


def analogs(
    latents: Latents, date: object, number: int = 10, exclude: str = "10D", *, apart: str | None = None
) -> xr.Dataset:
    """The times whose latents are nearest to those of a date.

        d(t)^2 = sum_n a_n |z_n(t) - z_n(date)|^2,   a_n the area share of token n

    Source: Lorenz 1969, "Atmospheric predictability as revealed by naturally occurring analogues",
    https://doi.org/10.1175/1520-0469(1969)26<636:APARBN>2.0.CO;2.

    Parameters
    ----------
    latents
        From `embed`, or pooled.
    date
        One of the issue times.
    number
        How many.
    exclude
        Times within this of the date do not count: they are the same weather.
    apart
        Analogs are at least this far from each other; as `exclude` if not given.

    Returns
    -------
    xr.Dataset
        Along `analog`, nearest first: `distance` (units of the latents), `relative` (over the median distance of all
        candidates: near 1 it is no analog at all), and the coordinate `time`.

    Examples
    --------
    >>> values = np.array([0.0, 9.0, 5.0, 9.0, 1.0])[:, None]
    >>> latents = xr.DataArray(values, dims=("time", "latent"), coords={"time": np.arange(5)})
    >>> analogs(latents, 0, number=1, exclude="1")["time"].values.tolist()
    [4]
    """
    array, rows = state(latents), state_rows(latents)
    index = array.indexes["time"]
    here, hours = step_at(index, date), elapsed(index)
    gap, between = length_of(exclude, index), length_of(exclude if apart is None else apart, index)
    wanted = rows.read(np.array([here]))
    blocks = row_blocks(np.arange(len(index)))
    distance = np.concatenate([np.linalg.norm(rows.read(block) - wanted, axis=1) for block in blocks])
    allowed = np.abs(hours - hours[here]) > gap
    if not allowed.any():
        raise UserError(f"no time is more than {exclude} from {date}; give a shorter exclude, or more latents.")
    chosen: list[int] = []
    for step in np.argsort(distance, kind="stable"):
        if allowed[step] and all(abs(hours[step] - hours[other]) >= between for other in chosen):
            chosen.append(int(step))
        if len(chosen) == number:
            break
    along = {name: ("analog", c.to_numpy()[chosen]) for name, c in array.coords.items() if c.dims == ("time",)}
    attributes = latents.attrs if isinstance(latents, xr.Dataset) else {}
    return xr.Dataset(
        {
            "distance": ("analog", distance[chosen], {"units": "1", "long_name": "distance of latents"}),
            "relative": ("analog", distance[chosen] / np.median(distance[allowed]), {"units": "1"}),
        },
        coords={"analog": np.arange(1, len(chosen) + 1), **along},
        attrs={**attributes, "date": str(index[here])},
    )


def followed(
    found: xr.Dataset, archive: Source, lead: str | Sequence[str] = ("1D", "3D", "5D"), *, anomaly: bool = True
) -> xr.Dataset:
    """What followed the analogs in the archive: the mean over them and their spread, from the analogs themselves on.

    Parameters
    ----------
    found
        From `analogs`.
    archive
        Where the fields are.
    lead
        Lead times; the analogs' own time (lead 0) comes first in any case.
    anomaly
        Departures from the archive's mean and seasonal cycle, or the fields themselves.

    Returns
    -------
    xr.Dataset
        For every variable the mean over analogs and `NAME_spread`, their standard deviation (n - 1), with dims
        (lead_time, ...), in the archive's units. The attribute `analogs` counts those whose outcome is known.

    Examples
    --------
    >>> from sciJEPA.synthetic import travelling_waves
    >>> waves = travelling_waves(40)
    >>> z = waves["z"].stack(latent=("latitude", "longitude")).drop_vars(["latent", "latitude", "longitude"])
    >>> after = followed(analogs(z, waves["time"].values[5], 3, "4D"), waves, lead="2D")
    >>> dict(after.sizes), after.attrs["analogs"]
    ({'lead_time': 2, 'latitude': 8, 'longitude': 16}, 3)
    """
    fields = Fields(archive, anomaly)
    leads = [0, *(lead_steps(text, fields.archive) for text in ([lead] if isinstance(lead, str) else lead))]
    steps = with_outcome(fields.steps_of(found), fields.archive, max(leads))
    if len(steps) < 2:
        raise UserError(
            f"{len(steps)} of {found.sizes['analog']} analogs are followed by {max(leads)} steps without a "
            "gap, at least 2 are needed for a spread; ask for more analogs or a shorter lead."
        )
    values = np.stack([fields.read(steps + ahead) for ahead in leads], axis=1)
    mean, spread = (
        fields.label(part[None].astype(np.float32), "analog").isel(analog=0)
        for part in (values.mean(axis=0), values.std(axis=0, ddof=1))
    )
    for name in spread.data_vars:
        spread[name].attrs["long_name"] = f"spread of {spread[name].attrs.get('long_name', name)}"
    after = mean.merge(spread.rename({name: f"{name}_spread" for name in spread.data_vars}))
    return after.assign_coords(lead_time=fields.lead_time(leads)).assign_attrs(found.attrs, analogs=len(steps))
