"""Scores of a part of the world or of the year.

Arrives: forecasts and truth, or per-time statistics. Leaves: the same with a dimension `region` or `season` more. The
pieces are weights and means, so that every score of `scores` can be taken of them. We decided against cutting the
arrays: a region then keeps the grid, and a season its place in the block bootstrap.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from sciJEPA.errors import UserError

SEASONS = ("DJF", "MAM", "JJA", "SON")


@dataclass(frozen=True)
class Region:
    """A box in degrees, edges included; it may cross the seam of the longitudes, as in (330, 40) or (-30, 40)."""

    latitude: tuple[float, float] = (-90.0, 90.0)
    longitude: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        south, north = self.latitude
        if not -90 <= south < north <= 90:
            raise UserError(f"a region needs latitudes from south to north within -90 to 90, got {self.latitude}.")

    def contains(self, latitude: xr.DataArray, longitude: xr.DataArray) -> xr.DataArray:
        """True inside; dims of both coordinates.

        Examples
        --------
        >>> degrees = xr.DataArray([350.0, 0.0, 60.0], dims="longitude")
        >>> Region(longitude=(-20, 30)).contains(xr.DataArray(0.0), degrees).values.tolist()
        [True, True, False]
        """
        inside = (latitude >= self.latitude[0]) & (latitude <= self.latitude[1])
        if self.longitude is None:
            return inside & xr.ones_like(longitude, dtype=bool)
        west, east = self.longitude
        # A little slack: degrees in single precision must not fall off the edge.
        width = 360.0 if east - west >= 360 else (east - west) % 360
        return inside & ((longitude - west + 1e-4) % 360 <= width + 2e-4)


REGIONS: dict[str, Region] = {
    "globe": Region(),
    "tropics": Region((-20, 20)),
    "northern_extratropics": Region((20, 90)),
    "southern_extratropics": Region((-90, -20)),
}
"""The parts of the globe that WeatherBench 2 prints."""


def regional(
    score: Callable[..., xr.DataArray],
    *fields: xr.DataArray,
    weights: xr.DataArray,
    regions: Mapping[str, Region] = REGIONS,
    latitude: str = "latitude",
    longitude: str = "longitude",
    **options: object,
) -> xr.DataArray:
    """A score of each region: `score(*fields, weights=..., **options)` with weight zero outside.

    Parameters
    ----------
    score
        Any of `scores` with weights: `squared_error`, `rmse`, `anomaly_correlation`, ...
    fields
        What it takes before the weights: forecast, truth, climatology.
    latitude, longitude
        Names of the coordinates, in degrees.

    Returns
    -------
    xarray.DataArray
        With the dimension `region` first. A region without a grid point is refused.

    Examples
    --------
    >>> from sciJEPA.scores import bias
    >>> grid = {"latitude": [-45.0, 45.0], "longitude": [0.0]}
    >>> truth = xr.DataArray(np.zeros((1, 2, 1)), dims=("init_time", "latitude", "longitude"), coords=grid)
    >>> halves = {"south": Region((-90, 0)), "north": Region((0, 90))}
    >>> regional(bias, truth + truth.latitude, truth, weights=xr.ones_like(truth.latitude), regions=halves).values
    array([-45.,  45.])
    """
    field = fields[0]
    scores = []
    for name, region in regions.items():
        inside = region.contains(field[latitude], field[longitude])
        if not bool(inside.any()):
            raise UserError(f"the region '{name}' ({region}) holds no grid point of {field.name or 'the forecast'}.")
        scores.append(score(*fields, weights=weights * inside, **options))
    names = xr.DataArray(list(regions), dims="region", name="region")
    return xr.concat(scores, dim=names, coords="minimal", compat="override")


def season_of(time: xr.DataArray) -> xr.DataArray:
    """DJF, MAM, JJA or SON of each time, in any calendar.

    Examples
    --------
    >>> times = np.array(["2001-12-31", "2001-07-01"], dtype="datetime64[ns]")
    >>> season_of(xr.DataArray(times, dims="time")).values.tolist()
    ['DJF', 'JJA']
    """
    try:
        month = time.dt.month
    except (AttributeError, TypeError) as error:
        raise UserError(f"{time.name or 'these times'} have no calendar, so they have no seasons.") from error
    return xr.DataArray(np.array(SEASONS)[month.to_numpy() % 12 // 3], dims=time.dims, coords=time.coords)


def seasonal(
    statistic: xr.DataArray,
    valid_time: xr.DataArray,
    formula: Callable[[xr.DataArray], xr.DataArray] = lambda mean: mean,
    *,
    seasons: Sequence[str] = SEASONS,
    time: str = "init_time",
) -> xr.DataArray:
    """A score of each season: the formula of the mean of a per-time statistic over the season's times.

    The season is that of the valid time, so that a time issued in February and valid in March counts in spring.

    Parameters
    ----------
    statistic
        Per time (and lead, region, ...), such as `squared_error`; NaN in a season makes the season's score NaN.
    valid_time
        Dims `time`, or (`time`, lead_time).
    formula
        `np.sqrt` for an RMSE.

    Returns
    -------
    xarray.DataArray
        `season` first, with `n`, the number of times, as a coordinate; NaN where a season has none.

    Examples
    --------
    >>> times = np.array(["2001-01-01", "2001-02-01", "2001-07-01"], dtype="datetime64[ns]")
    >>> squares, times = (xr.DataArray(values, dims="init_time") for values in ([1.0, 7.0, 9.0], times))
    >>> rmse = seasonal(squares, times, np.sqrt, seasons=["DJF", "JJA"])
    >>> rmse.values.tolist(), rmse.n.values.tolist()
    ([2.0, 3.0], [2, 1])
    """
    found = season_of(valid_time).drop_vars(list(valid_time.coords))
    parts, counts = [], []
    for season in seasons:
        inside = found == season
        count = inside.sum(time)
        total = statistic.where(inside, 0.0).sum(time, skipna=False)
        parts.append(formula(total / count.where(count > 0)))
        counts.append(count)
    names = xr.DataArray(list(seasons), dims="season", name="season")
    scores = xr.concat(parts, dim=names, coords="minimal", compat="override")
    return scores.assign_coords(n=xr.concat(counts, dim=names, coords="minimal", compat="override"))
