"""A forecast and the truth -> scores beside persistence and climatology: the verb `score`.

Arrives: a forecast of ours or of anybody else in the layout of WeatherBench 2, and the archive that came true. Leaves:
tidy rows. Climatology is that of the times before the first forecast, or of the forecast's own training times where it
says so, and a forecast of its own training times is refused. We decided against reading a climatology from a file: then
nobody knows which years it has seen.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.archive import Archive, open_archive
from sciJEPA.errors import UserError
from sciJEPA.folders import refuse_existing
from sciJEPA.forecast import issue_and_leads, trained_steps
from sciJEPA.forecasting.labelling import (
    label_fields,
    lead_label,
    place_weights,
    positions,
    series_numbers,
    to_dataset,
    valid_times,
)
from sciJEPA.forecasting.layout import read_forecast
from sciJEPA.judging.baselines import Climatology, Persistence
from sciJEPA.loader import WindowReader
from sciJEPA.normalize import fit_normalizer
from sciJEPA.samples import Ranges
from sciJEPA.scores import (
    MethodErrors,
    absolute_error,
    anomaly_correlation,
    area_mean,
    fair_crps,
    score_rows,
    signed_error,
    squared_error,
)
from sciJEPA.scoring.comparison import COLUMNS
from sciJEPA.scoring.intervals import block_bootstrap, block_length
from sciJEPA.scoring.parts import SCALES, Parts, power_rows, region_rows, season_rows, seasons_of

BLOCK_VALUES = 2**25
"""Values of a forecast read at once."""
CONTROLS = ("persistence", "climatology")
LEAST_BEFORE = 30
"""Steps before the first forecast that a climatology needs."""


def score(
    forecast: str | os.PathLike | xr.Dataset,
    truth: str | os.PathLike | xr.Dataset | Archive,
    *,
    out: str | os.PathLike | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores of a forecast, of persistence and of climatology at the same issue times.

    Parameters
    ----------
    forecast
        A store in the layout of WeatherBench 2 (time, prediction_timedelta, and realization for an ensemble) or a
        dataset; in the units, names and places of the truth.
    truth
        The archive. Issue times without an outcome there are left out.
    out
        A CSV file to write; must not exist.
    seed
        Seed of the bootstrap.

    Returns
    -------
    pd.DataFrame
        The columns of scores.csv. Beside the metrics of the panel `mae` and `bias`; for an ensemble, whose mean the
        others are about, `crps` (fair) and `spread_skill`. Regions, seasons and scales have metrics of their own, as in
        `rmse@tropics` (see `scoring.parts`).

    Raises
    ------
    UserError
        If names, units, places or times do not match, or the forecasts are of times that they were made with.
    """
    if out is not None:
        refuse_existing(out)
    given = read_forecast(forecast)
    archive = open_archive(truth, variables=[str(name) for name in given.data_vars])
    given = _with_outcome(given, archive)
    steps, leads = issue_and_leads(given, archive)
    reader = WindowReader(archive, fit_normalizer(archive, _climatology_steps(given, archive, steps)))
    _refuse_units(given, archive)
    check = _Verification(given, archive, reader, steps, leads)
    rows = check.rows(str(given.attrs.get("method", "forecast")), str(given.attrs.get("probe", "none")), seed)
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        rows.to_csv(out, index=False)
    return rows


@dataclass(frozen=True)
class _Verification:
    """Per-time statistics of the forecast and of the controls."""

    forecast: xr.Dataset
    archive: Archive
    reader: WindowReader
    steps: np.ndarray
    leads: Sequence[int]

    def rows(self, method: str, probe: str, seed: int) -> pd.DataFrame:
        """Tidy rows of all methods."""
        found: dict[tuple[str, str], list[np.ndarray]] = {}
        for statistics in self._statistics():
            for key, values in statistics.items():
                found.setdefault(key, []).append(values)
        joined = {key: np.concatenate(parts) for key, parts in found.items()}
        names = {"forecast": method if method not in CONTROLS else f"forecast_{method}"}
        names |= {control: control for control in CONTROLS}
        source = Path(self.archive.source).name
        errors, further = [], []
        for number, lead in enumerate(self.leads):
            text = lead_label(lead, self.archive)
            for column, channel in enumerate(self.archive.channels):
                for origin, name in names.items():
                    kind = probe if origin == "forecast" else "none"
                    own = {s: v[:, number, column] for (m, s), v in joined.items() if m == origin}
                    acc = None if name == "climatology" else own["acc"]
                    entry = MethodErrors(method=name, variable=channel.name, lead=text, probe=kind,
                                         squared_error=own["squared"], anomaly_correlation=acc)  # fmt: skip
                    errors.append(entry)
                    cell = {"variable": channel.name, "lead": text, "method": name, "probe": kind}
                    further += [cell | row | {"archive": source, "seed": seed} for row in _further(own, seed)]
        table = score_rows(errors, archive=source, seed=seed, controls=CONTROLS)
        tables = [table, pd.DataFrame(further, columns=COLUMNS), *self._part_rows(errors, joined, seed)]
        return pd.concat(tables, ignore_index=True)

    @cached_property
    def _parts(self) -> Parts:
        return Parts(self.archive.space)

    def _part_rows(
        self, errors: Sequence[MethodErrors], joined: Mapping[tuple[str, str], np.ndarray], seed: int
    ) -> list[pd.DataFrame]:
        """Rows of regions, seasons and scales of `errors`: leads, channels and methods, the last the fastest."""
        archive, source = self.archive, Path(self.archive.source).name
        origins = ("forecast", *CONTROLS)
        cells = [(origin, number, column) for number in range(len(self.leads))
                 for column in range(len(archive.channels)) for origin in origins]  # fmt: skip

        def of(statistic: str) -> list[np.ndarray]:
            return [joined[origin, statistic][:, number, column] for origin, number, column in cells]

        regional = {region: of(f"squared@{region}") for region in self._parts.regions}
        seasons = {lead_label(lead, archive): seasons_of(valid_times(archive, self.steps, lead)) for lead in self.leads}
        tables = [
            region_rows(errors, regional, archive=source, seed=seed, controls=CONTROLS),
            season_rows(errors, seasons, archive=source, seed=seed, controls=CONTROLS),
        ]
        if self._parts.waves is not None:
            # (forecast and truth, scales, entries, times) -> one array an entry
            powers = np.array([[of(f"{whose}@{scale}") for scale in SCALES] for whose in ("power", "truth")])
            tables.append(power_rows(errors, list(np.moveaxis(powers, 2, 0)), archive=source, seed=seed))
        return [table for table in tables if len(table)]

    def _statistics(self) -> Iterator[dict[tuple[str, str], np.ndarray]]:
        """For blocks of issue times, arrays (times, leads, channels) by method and statistic."""
        per_time = sum(int(np.prod(self.forecast[name].shape[1:])) for name in self.forecast.data_vars)
        rows = max(1, BLOCK_VALUES // per_time)
        for first in range(0, len(self.steps), rows):
            part = slice(first, first + rows)
            yield self._of_block(self.steps[part], self.forecast.isel(init_time=part).load())

    def _of_block(self, steps: np.ndarray, block: xr.Dataset) -> dict[tuple[str, str], np.ndarray]:
        archive, normalizer = self.archive, self.reader.normalizer
        truth = np.stack([_fields(archive, steps + lead) for lead in self.leads], axis=1)
        observed = label_fields(truth, archive, steps, self.leads)
        normal = label_fields(
            np.stack([normalizer.climatology(archive.time[steps + lead]) for lead in self.leads], axis=1),
            archive,
            steps,
            self.leads,
        )
        given = _aligned(block, observed)
        methods = {"forecast": given.mean("member", skipna=False) if "member" in given.dims else given}
        for control in (Persistence(self.reader, self.leads), Climatology(self.reader, self.leads)):
            predicted = to_dataset(control.predict(steps), archive, normalizer, steps, self.leads)
            methods[type(control).__name__.lower()] = predicted
        out: dict[tuple[str, str], np.ndarray] = {}
        weights, over = place_weights(archive), archive.space.dims
        for method, fields in methods.items():
            plain: dict[str, Callable[[xr.DataArray, xr.DataArray], xr.DataArray]] = {
                "squared": lambda f, o: squared_error(f, o, weights, over=over),
                "absolute": lambda f, o: absolute_error(f, o, weights, over=over),
                "signed": lambda f, o: signed_error(f, o, weights, over=over),
            }
            for statistic, of in plain.items():
                out[method, statistic] = self._columns(fields, observed, of)
            out[method, "acc"] = self._columns(
                fields, observed, lambda f, o: anomaly_correlation(f, o, normal[f.name], weights, over=over)
            )
            for region, inside in self._parts.regions.items():
                of_region = partial(squared_error, weights=inside, over=over)
                out[method, f"squared@{region}"] = self._columns(fields, observed, of_region)
            out |= {(method, name): values for name, values in self._powers(fields, observed, normal).items()}
        if "member" in given.dims:
            size = given.sizes["member"]
            out["forecast", "crps"] = self._columns(
                given, observed, lambda f, o: area_mean(fair_crps(f, o), weights, over=over)
            )
            out["forecast", "variance"] = self._columns(
                given,
                observed,
                lambda f, o: (
                    area_mean(f.var("member", ddof=1).where(o.notnull()), weights, over=over) * (size + 1) / size
                ),
            )
        return out

    def _powers(self, fields: xr.Dataset, observed: xr.Dataset, normal: xr.Dataset) -> dict[str, np.ndarray]:
        """Power of the anomalies of forecast and truth at each scale, shape (times, leads, channels)."""
        if self._parts.waves is None:
            return {}
        found = []
        for name in self.archive.variables:
            anomalies = (field[name] - normal[name].values for field in (fields, observed))
            power = self._parts.power(*(field.transpose("init_time", "lead_time", ...) for field in anomalies))
            found.append(power.reshape(*power.shape[:4], -1))
        both = np.concatenate(found, axis=4)
        return {f"{whose}@{scale}": both[number, place] for number, whose in enumerate(("power", "truth"))
                for place, scale in enumerate(SCALES)}  # fmt: skip

    def _columns(
        self, fields: xr.Dataset, observed: xr.Dataset, of: Callable[[xr.DataArray, xr.DataArray], xr.DataArray]
    ) -> np.ndarray:
        """A statistic of every channel, shape (times, leads, channels)."""
        parts = []
        for name in self.archive.variables:
            values = of(fields[name].rename(name), observed[name]).transpose("init_time", "lead_time", ...).values
            parts.append(values.reshape(*values.shape[:2], -1))
        return np.concatenate(parts, axis=2)


def _further(statistics: dict[str, np.ndarray], seed: int) -> list[dict[str, Any]]:
    """Metrics that the panel does not have, from per-time statistics of one cell."""
    kept = ~np.isnan(statistics["squared"])
    rows: list[dict[str, Any]] = []
    for metric, name in (("mae", "absolute"), ("bias", "signed"), ("crps", "crps")):
        if name in statistics:
            values = statistics[name][kept]
            low, high = block_bootstrap(values, block=min(len(values), block_length(values)), seed=seed)
            rows.append({"metric": metric, "value": values.mean(), "low": float(low), "high": float(high)})
    if "variance" in statistics:
        ratio = (statistics["variance"][kept].mean() / statistics["squared"][kept].mean()) ** 0.5
        rows.append({"metric": "spread_skill", "value": ratio, "low": np.nan, "high": np.nan})
    return [row | {"n": int(kept.sum())} for row in rows]


def _with_outcome(forecast: xr.Dataset, archive: Archive) -> xr.Dataset:
    """The issue times all of whose valid times are in the archive."""
    valid = forecast["valid_time"].transpose("init_time", "lead_time").values
    series = series_numbers(forecast, archive)
    repeated = None if series is None else np.repeat(series, valid.shape[1])
    known = (positions(valid.ravel(), archive, repeated).reshape(valid.shape) >= 0).all(axis=1)
    known &= positions(forecast["init_time"].values, archive, series) >= 0
    if not known.any():
        raise UserError(
            f"none of the {len(known)} forecasts has its issue time and all its valid times in {archive.source}; pass "
            "the archive that they are about."
        )
    return forecast.isel(init_time=np.flatnonzero(known))


def _climatology_steps(forecast: xr.Dataset, archive: Archive, steps: np.ndarray) -> Ranges:
    """The forecast's own training steps where it names them, else all before its first issue time."""
    if "trained_from" in forecast.attrs or "trained_steps" in forecast.attrs:
        return trained_steps(forecast, archive, steps)
    length = archive.steps_per_series
    until = int((steps % length).min())
    if until < LEAST_BEFORE:
        raise UserError(
            f"{archive.source} has {until} steps before the first forecast, at least {LEAST_BEFORE} are needed for a "
            "climatology that has not seen what is forecast; pass a longer archive."
        )
    return tuple((first, first + until) for first in range(0, len(archive), length))


def _refuse_units(forecast: xr.Dataset, archive: Archive) -> None:
    for name in archive.variables:
        given, own = forecast[name].attrs.get("units"), archive.ds[name].attrs.get("units")
        if given is not None and own is not None and str(given) != str(own):
            raise UserError(
                f"{name} is forecast in '{given}', but {archive.source} has it in '{own}'; convert one of them."
            )


def _fields(archive: Archive, steps: np.ndarray) -> np.ndarray:
    """Fields of these steps, read in one piece for each series."""
    out = np.empty((len(steps), len(archive.channels), *archive.shape), dtype=np.float32)
    for number in np.unique(steps // archive.steps_per_series):
        mine = steps // archive.steps_per_series == number
        first = int(steps[mine].min())
        out[mine] = archive.read(first, int(steps[mine].max()) + 1)[steps[mine] - first]
    return out


def _aligned(block: xr.Dataset, observed: xr.Dataset) -> xr.Dataset:
    """The forecast with the truth's labels, after a check that its places are the same; order may differ."""
    parts = {}
    for name in observed.data_vars:
        wanted = observed[name]
        absent = [dim for dim in wanted.dims if dim not in block[name].dims]
        if absent:
            raise UserError(f"the forecast of {name} lacks the dimension {absent[0]}; it has {block[name].dims}.")
        field = block[name].transpose("init_time", "lead_time", ..., *[d for d in block[name].dims if d == "member"])
        for dim in wanted.dims[2:]:
            if dim in wanted.indexes and dim in field.indexes:
                try:
                    field = field.reindex({dim: wanted[dim]}, method="nearest", tolerance=1e-4)
                except (TypeError, ValueError):
                    field = field.reindex({dim: wanted[dim]})
        order = [*wanted.dims, *(dim for dim in field.dims if dim == "member")]
        values = field.transpose(*order).values
        if values.shape[: wanted.ndim] != wanted.shape:
            raise UserError(f"the forecast of {name} has shape {values.shape}, the truth {wanted.shape}; regrid one.")
        parts[name] = xr.DataArray(values, dims=order, coords=wanted.coords)
    return xr.Dataset(parts)
