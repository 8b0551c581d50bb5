"""Forecasts as files that other evaluators read: the layout of WeatherBench 2.

Arrives: forecasts with dims (init_time, lead_time, ...). Leaves: a Zarr store with dims (time, prediction_timedelta,
...), where `time` is the issue time, and with members along `realization`; variables keep their names and units. The
way back is here too. We decided against a file for each issue time: a store is appended to, block by block.

Source: WeatherBench 2 (Rasp et al. 2024), https://doi.org/10.1029/2023MS004019.
"""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.folders import complete_folder
from sciJEPA.latents import time_encoding

OURS = {"time": "init_time", "prediction_timedelta": "lead_time", "realization": "member"}
MEMBERS = ("realization", "member", "number", "ensemble")


def to_weatherbench(forecast: xr.Dataset) -> xr.Dataset:
    """The forecast under WeatherBench 2's names.

    Examples
    --------
    >>> ours = xr.Dataset({"z": (("init_time", "lead_time", "member"), np.zeros((2, 1, 3)))})
    >>> dict(to_weatherbench(ours).sizes)
    {'time': 2, 'prediction_timedelta': 1, 'realization': 3}
    """
    back = {ours: theirs for theirs, ours in OURS.items() if ours in forecast.dims}
    if "time" in forecast.variables and "init_time" in back:
        forecast = forecast.drop_vars("time")
    return forecast.rename(back)


def from_weatherbench(forecast: xr.Dataset) -> xr.Dataset:
    """A forecast in either layout under our names, with the coordinate `valid_time`.

    Raises
    ------
    UserError
        If it has no issue times or no leads.
    """
    members = [name for name in MEMBERS if name in forecast.dims]
    names = {theirs: ours for theirs, ours in OURS.items() if theirs in forecast.dims}
    names |= {name: "member" for name in members[:1] if name != "member"}
    renamed = forecast.rename(names)
    for name, theirs in (("init_time", "time"), ("lead_time", "prediction_timedelta")):
        if name not in renamed.dims and name in renamed.coords:
            renamed = renamed.expand_dims(name)
        if name not in renamed.dims:
            raise UserError(
                f"a forecast needs the dimension {theirs} (or {name}), found {', '.join(map(str, forecast.dims))}; "
                "write it in the layout of WeatherBench 2: time (issue time), prediction_timedelta."
            )
    if "valid_time" not in renamed.coords:
        renamed = renamed.assign_coords(valid_time=renamed["init_time"] + renamed["lead_time"])
    return renamed


def read_forecast(source: str | os.PathLike | xr.Dataset) -> xr.Dataset:
    """A forecast from a store, a NetCDF file or a dataset, in either layout."""
    if isinstance(source, xr.Dataset):
        return from_weatherbench(source)
    path = Path(source)
    if not path.exists() and "://" not in str(source):
        raise UserError(f"there is no forecast at {path}; write one with 'scijepa forecast RUN ARCHIVE --out {path}'.")
    if path.is_file():
        return from_weatherbench(xr.open_dataset(path, decode_timedelta=True))
    with warnings.catch_warnings():
        # Other people's stores have consolidated metadata, ours do not; xarray warns of those that lack it.
        warnings.filterwarnings("ignore", message="Failed to open Zarr store with consolidated metadata")
        return from_weatherbench(xr.open_zarr(str(source), chunks=None, decode_timedelta=True))


def write_forecasts(blocks: Iterable[xr.Dataset], out: str | os.PathLike) -> None:
    """Blocks of issue times, one after another, to a store that takes its name when it is complete."""
    with complete_folder(out) as partial:
        for number, block in enumerate(blocks):
            block = to_weatherbench(block)
            block.to_zarr(partial, consolidated=False, **_options(block, first=number == 0))


def _options(block: xr.Dataset, *, first: bool) -> dict[str, Any]:
    if not first:
        return {"append_dim": "time"}
    leads = block["prediction_timedelta"]
    encoding = time_encoding(block)
    if leads.dtype.kind == "m":
        whole = bool((leads.values % np.timedelta64(1, "h") == np.timedelta64(0)).all())
        encoding["prediction_timedelta"] = {"units": "hours" if whole else "seconds", "dtype": "int64"}
    return {"mode": "w", "encoding": encoding}
