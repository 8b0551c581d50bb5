"""Latents -> states: one row a time, the pooled state, and tokens laid out on a map.

Arrives: labelled latents from `embed`, or anything else with a value for each token. Leaves: labelled data again, or
`Rows` for the arithmetic of the other modules of exploration. A state is the tokens of the issue time; older tokens of
the window are left out, since neighbouring windows share them. We decided against standardising latents feature by
feature: their relative size is part of the representation.
"""

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.probes import Rows
from sciJEPA.scoring.score_table import lead_days

Latents = xr.Dataset | xr.DataArray
NO_PLACE = ("token_area", "token_offset", "token_observed")
"""Coordinates of tokens that do not say where they are."""


def state(latents: Latents) -> xr.DataArray:
    """The tokens of the issue time, dims (time, token, latent), or (time, latent) where they are pooled."""
    array = latents["latents"] if isinstance(latents, xr.Dataset) else latents
    absent = [name for name in ("time", "latent") if name not in array.dims]
    if absent:
        raise UserError(f"latents need the dimensions time and latent, found {array.dims}; pass what embed() returns.")
    if "token_offset" in array.coords and "token" in array.dims:
        offset = array["token_offset"].to_numpy()
        array = array.isel(token=np.flatnonzero(offset == offset.max()))
    return array.transpose("time", ..., "latent")


def state_rows(latents: Latents) -> Rows:
    """One row a time, so that the squared distance of two rows is the area-weighted mean over tokens of |z - z'|^2."""
    array = state(latents)
    between = [name for name in array.dims if name not in ("time", "latent")]
    scale = np.ones(1)
    if between == ["token"]:
        area = array["token_area"].to_numpy() if "token_area" in array.coords else np.ones(array.sizes["token"])
        scale = np.sqrt(np.repeat(area / area.sum(), array.sizes["latent"]))
    elif between:
        raise UserError(f"latents have the further dimensions {between}; select one entry of each first.")

    def read(times: np.ndarray) -> np.ndarray:
        values = array.isel(time=times).to_numpy().reshape(len(times), -1) * scale
        missing = int(np.isnan(values).any(axis=1).sum())
        if missing:
            raise UserError(f"{missing} of {len(times)} times have tokens without latents; pool(latents) first.")
        return values

    return Rows(read, int(np.prod(array.shape[1:])))


def pool(latents: Latents, over: str = "token") -> xr.Dataset:
    """Mean over the tokens of the issue time, weighted by area and by the observed share of each token.

        z(t) = sum_n a_n o_n(t) z_n(t) / sum_n a_n o_n(t)

    Tokens without a latent (NaN) do not count; where none counts, the mean is missing.

    Parameters
    ----------
    latents
        From `embed`: `latents`, and `observed` with dims (time, token) where there is one.
    over
        The dimension that goes.

    Returns
    -------
    xr.Dataset
        `latents` with dims (time, latent), lazy where they were, and the attributes of the latents.

    Examples
    --------
    >>> area = ("token", [0.25, 0.75])
    >>> latents = xr.DataArray([[[1.0], [5.0]]], dims=("time", "token", "latent"), coords={"token_area": area})
    >>> pool(latents)["latents"].values.tolist()  # 0.25 * 1 + 0.75 * 5
    [[4.0]]
    """
    array = state(latents)
    if over not in array.dims:
        raise UserError(f"there is no dimension '{over}' to pool over, found {array.dims}.")
    weights = array.notnull().all("latent").astype(float)
    if over == "token" and "token_area" in array.coords:
        weights = weights * array["token_area"]
    if isinstance(latents, xr.Dataset) and "observed" in latents:
        weights = weights * _like(latents["observed"], array)
    total = weights.sum(over)
    pooled = (array.fillna(0) * weights).sum(over) / total.where(total > 0)
    pooled = pooled.transpose("time", ..., "latent").assign_attrs(array.attrs)
    attributes = latents.attrs if isinstance(latents, xr.Dataset) else {}
    return pooled.rename("latents").to_dataset().assign_attrs(attributes)


def _like(observed: xr.DataArray, array: xr.DataArray) -> xr.DataArray:
    if "token_offset" not in observed.coords:
        return observed
    offset = observed["token_offset"].to_numpy()
    return observed.isel(token=np.flatnonzero(offset == offset.max())).drop_vars(set(observed.coords) - set(array.dims))


def on_map(tokenwise: xr.DataArray) -> xr.DataArray:
    """Values of tokens on their places: `token` becomes the dimensions that its coordinates span.

    Tokens of a grid get (latitude, longitude), those of a box its dimensions, those of a network (station); with a
    dimension `offset` in front (hours from the issue time) where tokens have several times. Coordinates are the centres
    of the tokens, in the archive's order.

    Raises
    ------
    UserError
        If the places are no product of coordinates, as on a curvilinear grid.

    Examples
    --------
    >>> places = {"token_latitude": ("token", [50.0, 50.0, 40.0, 40.0]), "token_longitude": ("token", [0, 9, 0, 9])}
    >>> on_map(xr.DataArray([1, 2, 3, 4], dims="token", coords=places)).sel(latitude=40, longitude=9).item()
    4
    """
    places, lengths = _axes_of_tokens(tokenwise)
    if "token_area" in tokenwise.coords:
        tokenwise = tokenwise.drop_vars("token_area")
    keep = {name: tokenwise[f"token_{name}"] for name in places}
    dropped = [name for name in tokenwise.coords if "token" in tokenwise[name].dims]
    bare = tokenwise.drop_vars(dropped)
    axis, count = bare.dims.index("token"), bare.sizes["token"]
    numbers = np.ravel_multi_index([pd.factorize(c.to_numpy())[0] for c in keep.values()], lengths)
    if count != np.prod(lengths) or len(np.unique(numbers)) != count:
        raise UserError(
            f"the places of {count} tokens are no product of {' and '.join(places)} ({lengths} values), so they make "
            "no map; draw them at token_latitude and token_longitude instead."
        )
    ordered = bare.isel(token=np.argsort(numbers))
    dims = (*bare.dims[:axis], *places, *bare.dims[axis + 1 :])
    shape = (*bare.shape[:axis], *lengths, *bare.shape[axis + 1 :])
    coords: dict[Hashable, Any] = {name: coordinate for name, coordinate in bare.coords.items()}
    for name, coordinate in keep.items():
        coords[name] = (name, pd.unique(coordinate.to_numpy()), coordinate.attrs)
    return xr.DataArray(ordered.data.reshape(shape), coords, dims, name=tokenwise.name, attrs=tokenwise.attrs)


def _axes_of_tokens(tokenwise: xr.DataArray) -> tuple[list[str], tuple[int, ...]]:
    """Names of the coordinates that tell tokens apart, and how many values each has."""
    if "token" not in tokenwise.dims:
        raise UserError(f"a map needs the dimension 'token', found {tokenwise.dims}.")
    found = [str(n) for n, c in tokenwise.coords.items() if c.dims == ("token",) and str(n).startswith("token_")]
    places = [name for name in found if name not in NO_PLACE]
    if "token_station" in places:  # latitude and longitude follow from the station
        places = [name for name in places if name in ("token_station", "token_channel")]
    if not places:
        raise UserError("these tokens have no coordinates such as token_latitude; pass what embed() or energy() gave.")
    if "token_offset" in found and len(np.unique(tokenwise["token_offset"])) > 1:
        places.insert(0, "token_offset")
    # A store may give coordinates back in another order; that of the tokens is the slowest first.
    places.sort(key=lambda name: -_first_change(tokenwise[name].to_numpy()))
    lengths = tuple(len(pd.unique(tokenwise[name].to_numpy())) for name in places)
    return [name.removeprefix("token_") for name in places], lengths


def _first_change(values: np.ndarray) -> int:
    """Number of the first value that differs from the one at the start; beyond the last where none does."""
    changed = np.flatnonzero(values != values[0])
    return int(changed[0]) if len(changed) else len(values)


# --- times


def step_at(index: pd.Index, date: Any) -> int:
    """Number of the time with this label; refused where there is none, or more than one."""
    try:
        found = np.atleast_1d(np.arange(len(index))[index.get_loc(date)])
    except (KeyError, TypeError):
        found = np.empty(0, dtype=int)
    if len(found) != 1:
        what = "none" if not len(found) else f"{len(found)}"
        raise UserError(
            f"{date} is {what} of the {len(index)} issue times from {index[0]} to {index[-1]}; give one of them, with "
            "its hour where there are several a day, and select one member first where there are several."
        )
    return int(found[0])


def elapsed(index: pd.Index) -> np.ndarray:
    """Hours since the first time; plain numbers as they are."""
    if index.dtype.kind in "iuf":
        return index.to_numpy().astype(float)
    return np.asarray((index - index[0]) / np.timedelta64(1, "h"), dtype=float)


def cadence(index: pd.Index) -> float:
    """Median step between different times, in the unit of `elapsed`; NaN where there is one time."""
    steps = np.diff(np.unique(elapsed(index)))
    return float(np.median(steps)) if len(steps) else float("nan")


def length_of(text: str, index: pd.Index) -> float:
    """A length such as "10D", or "10" steps, in the unit of `elapsed`."""
    number, unit = lead_days(text)
    if unit == "step":
        return number * cadence(index)
    if index.dtype.kind in "iuf":
        raise UserError(f"times are plain numbers without dates, so {text} means nothing here; give steps, as in '10'.")
    return number * 24
