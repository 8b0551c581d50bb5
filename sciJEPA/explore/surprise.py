"""Prediction energy -> where and when the model is surprised.

Arrives: what `energy` gives. Leaves: labelled series and maps. We decided against thresholds: energy is not calibrated,
so that only comparisons within one archive mean anything.
"""

import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.explore.states import on_map


def surprise(energy: xr.Dataset) -> xr.Dataset:
    """Energy in time and on the map.

        in_time(t) = sum_n a_n e_n(t) / sum_n a_n,   on_map(n) = mean over t of e_n(t)

    Parameters
    ----------
    energy
        From `sciJEPA.latents.energy`, `model.energy` or `ds.jepa.energy`.

    Returns
    -------
    xr.Dataset
        `in_time` (time): how surprising what followed each issue time was, over all tokens after it; `rank` (time): its
        place among all times, 0 to 1; `on_map`: the mean over time, on the places of the tokens, with a dimension
        `offset` where several steps follow.

    Examples
    --------
    >>> places = {"token_x": ("token", [0.0, 1.0]), "token_area": ("token", [0.5, 0.5]), "time": [0, 1]}
    >>> energy = xr.Dataset({"energy": (("time", "token"), [[1.0, 3.0], [5.0, 3.0]])}, coords=places)
    >>> found = surprise(energy)
    >>> found["in_time"].values.tolist(), found["on_map"].values.tolist(), found["rank"].values.tolist()
    ([2.0, 4.0], [3.0, 3.0], [0.0, 1.0])
    """
    if "energy" not in energy:
        raise UserError(f"surprise needs what energy() returns, found the variables {list(energy.data_vars)}.")
    values = energy["energy"]
    in_time = values.weighted(energy["token_area"]).mean("token").assign_attrs(values.attrs)
    order = in_time.copy(data=in_time.to_numpy().argsort().argsort() / max(1, len(in_time) - 1))
    mean = on_map(values.mean("time").assign_attrs(values.attrs))
    return xr.Dataset(
        {
            "in_time": in_time,
            "rank": order.assign_attrs(units="1", long_name="place among all times"),
            "on_map": mean.assign_attrs(long_name="mean prediction energy"),
        },
        attrs=energy.attrs,
    )
