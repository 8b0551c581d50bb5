"""Scores of the parts: regions, seasons and scales, from per-time statistics to tidy rows beside those of the whole.

Arrives: fields of a block of times. Leaves: statistics small enough to keep, and rows whose metric names the part, as
in `rmse@tropics`, `rmse_over_climatology@DJF` or `power_ratio@small`. We decided against a column for parts: whoever
selects a metric by its name would then get several numbers for one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.scores import squared_error
from sciJEPA.scoring.comparison import COLUMNS, MethodErrors, score_rows
from sciJEPA.scoring.intervals import block_bootstrap, block_length
from sciJEPA.scoring.regions import REGIONS, SEASONS, season_of
from sciJEPA.scoring.spectra import zonal_spectrum
from sciJEPA.space import Space

SCALES = ("large", "medium", "small")
"""Thirds of the wavenumbers on a logarithmic axis; for 96 columns around the globe 1 to 3, 4 to 13 and 14 to 48."""
LEAST_COLUMNS = 8
"""Points along the last dimension that a spectrum needs."""
LEAST_TIMES = 10
"""Times that a season needs."""
OF_REGIONS = ("rmse", "rmse_over_climatology")
"""Metrics that regions and seasons get."""


@dataclass(frozen=True)
class Parts:
    """The parts of a space in which scores are taken too.

    Attributes
    ----------
    space : where the values lie; weights and dimensions come from it.
    """

    space: Space

    @cached_property
    def regions(self) -> dict[str, xr.DataArray]:
        """Area weight of every place by region: those of `REGIONS` that hold some of the places and not all."""
        space = self.space
        if space.kind == "box" or not space.latitude.size:
            return {}
        whole = xr.DataArray(space.weights, dims=space.dims)
        flat = space.curvilinear or space.kind == "stations"
        north = xr.DataArray(space.latitude, dims=space.dims if flat else space.dims[:1])
        east = xr.DataArray(space.longitude, dims=space.dims if flat else space.dims[1:])
        inside = {name: region.contains(north, east) for name, region in REGIONS.items()}
        return {name: whole * found for name, found in inside.items() if found.any() and not found.all()}

    @cached_property
    def waves(self) -> np.ndarray | None:
        """Number of the scale of each wavenumber along the last dimension, -1 for the mean; None without a spectrum."""
        space = self.space
        if space.kind == "stations" or space.curvilinear or space.shape[-1] < LEAST_COLUMNS:
            return None
        steps = np.diff(self._points)
        if np.ptp(steps) > 1e-3 * abs(steps[0]):
            return None
        highest = space.shape[-1] // 2
        number = np.arange(1, highest + 1)
        scale = np.ceil(len(SCALES) * np.log(number) / np.log(highest) - 1e-9).clip(1) - 1
        return np.concatenate([[-1], scale]).astype(int)

    def squared_error(self, forecast: xr.DataArray, truth: xr.DataArray) -> np.ndarray:
        """Weighted mean squared error of each region, shape (regions, ...) with the dimensions that remain."""
        over = self.space.dims
        rest = tuple(size for dim, size in forecast.sizes.items() if dim not in over)
        found = [squared_error(forecast, truth, weights, over=over).values for weights in self.regions.values()]
        return np.stack(found) if found else np.empty((0, *rest))

    def power(self, forecast: xr.DataArray, truth: xr.DataArray) -> np.ndarray:
        """Power of forecast and truth at each scale, shape (2, scales, ...): area-weighted over the other dimensions.

        Both are anomalies, for the mean state is no skill. NaN where a value of the truth is missing; without
        wavenumbers, the scales have length 0.
        """
        rest = tuple(size for dim, size in truth.sizes.items() if dim not in self.space.dims)
        if self.waves is None:
            return np.empty((2, 0, *rest))
        *over, along = self.space.dims
        periodic = self.space.periodic[-1] if self.space.sides else False
        steps = np.diff(self._points)
        extent = float(abs(steps.mean()) * len(self._points))
        weights = xr.DataArray(self.space.weights, dims=self.space.dims).mean(along)
        missing = truth.isnull().any(self.space.dims).values
        powers = []
        for field in (forecast, truth):
            placed = field.fillna(0.0).assign_coords({along: self._points})
            found = zonal_spectrum(placed, along, period=extent, window=None if periodic else "hann")
            mean = found.weighted(weights).mean(over) if over else found
            values = mean.transpose("wavenumber", ...).values
            powers.append(np.stack([values[self.waves == scale].sum(axis=0) for scale in range(len(SCALES))]))
        return np.where(missing, np.nan, np.stack(powers))

    @property
    def _points(self) -> np.ndarray:
        return self.space.longitude if self.space.kind == "grid" else self.space.coordinates[-1]


def seasons_of(times: Any) -> np.ndarray | None:
    """The season of each valid time; None where they have no calendar."""
    try:
        return season_of(xr.DataArray(np.asarray(times), dims="time")).values
    except UserError:
        return None


def region_rows(
    whole: Sequence[MethodErrors], regional: Mapping[str, Sequence[np.ndarray]], **labels: Any
) -> pd.DataFrame:
    """Rows of each region.

    Parameters
    ----------
    whole
        All methods, variables and leads.
    regional
        For each region, the squared error (n,) of each entry of `whole`.
    labels
        archive, seed and controls, as `score_rows` takes them.
    """
    tables = [
        _renamed([_changed(entry, values) for entry, values in zip(whole, parts, strict=True)], name, labels)
        for name, parts in regional.items()
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def season_rows(whole: Sequence[MethodErrors], seasons: Mapping[str, np.ndarray | None], **labels: Any) -> pd.DataFrame:
    """Rows of each season with enough times.

    Parameters
    ----------
    whole
        All methods, variables and leads.
    seasons
        For each lead, the season of each valid time, from `seasons_of`.
    """
    tables = []
    for season in SEASONS:
        entries = []
        for entry in whole:
            inside = seasons[entry.lead]
            kept = np.flatnonzero(inside == season) if inside is not None else np.arange(0)
            if LEAST_TIMES <= len(kept) < len(entry.squared_error):
                entries.append(_changed(entry, entry.squared_error[kept]))
        if entries:
            tables.append(_renamed(entries, season, labels))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def power_rows(whole: Sequence[MethodErrors], powers: Sequence[np.ndarray], *, archive: str, seed: int) -> pd.DataFrame:
    """Power of the forecast's anomalies over that of the truth's at each scale: below 1 where a forecast blurs.

    Parameters
    ----------
    whole
        All methods, variables and leads.
    powers
        For each entry of `whole`, the power of forecast and truth, shape (2, scales, n).
    """
    rows: list[dict[str, Any]] = []
    blocks: dict[tuple[str, str, int], int] = {}  # those of the truth, which all methods share
    for entry, power in zip(whole, powers, strict=True):
        kept = ~np.isnan(power).any(axis=(0, 1))
        if not power.size or not kept.any():
            continue
        for scale, name in enumerate(SCALES):
            both = power[:, scale, kept]
            if not both[1].mean() > 0:
                continue
            cell = (entry.variable, entry.lead, scale)
            if cell not in blocks:
                blocks[cell] = min(both.shape[1], block_length(both[1]))
            low, high = block_bootstrap(both, lambda means: means[0] / means[1], block=blocks[cell], seed=seed)
            labels = {"archive": archive, "variable": entry.variable, "lead": entry.lead, "method": entry.method}
            numbers = {"value": both[0].mean() / both[1].mean(), "low": float(low), "high": float(high)}
            further = {"probe": entry.probe, "metric": f"power_ratio@{name}", "n": int(kept.sum()), "seed": seed}
            rows.append(labels | further | numbers)
    return pd.DataFrame(rows, columns=COLUMNS)


def of_the_whole(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that are about no part.

    Examples
    --------
    >>> of_the_whole(pd.DataFrame({"metric": ["rmse", "rmse@tropics"]}))["metric"].tolist()
    ['rmse']
    """
    return rows[~rows["metric"].astype(str).str.contains("@")]


def _changed(entry: MethodErrors, squared_error: np.ndarray) -> MethodErrors:
    return replace(entry, squared_error=squared_error, anomaly_correlation=None)


def _renamed(entries: Sequence[MethodErrors], part: str, labels: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of `score_rows` under the name of the part; those about a part whose truth is never seen are left out."""
    seen = [entry for entry in entries if not np.isnan(entry.squared_error).all()]
    rows = score_rows(seen, **labels)
    rows = rows[rows["metric"].isin(OF_REGIONS)]
    return rows.assign(metric=rows["metric"] + f"@{part}")
