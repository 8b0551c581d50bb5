"""Series cut into windows, in units of the training scatter, and forecasts of them.

Arrives: an archive of series, and ways to forecast them. Leaves: the errors of every test window. We decided against
batches: a last one that is dropped flatters long horizons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.judging.baselines import cycle_steps
from sciJEPA.judging.series_ridge import Course, Features, LinearMap, blocks, fit_map, products

ROWS = (8640, 2880, 2880)
"""Training, validation and test rows of hourly series."""

Errors = tuple[np.ndarray, np.ndarray]
"""Squared and absolute errors of every window judged, a mean over the rows ahead, each (windows, series)."""


@dataclass(frozen=True)
class Series:
    """Series in units of the training scatter, and where the splits begin.

    Attributes
    ----------
    values : shape (rows, series).
    borders : first rows of training, validation, test, and of what follows them.
    cycle : rows of the cycle that the calendar promises (a day for hourly series); None where there is none.
    """

    values: np.ndarray
    borders: tuple[int, int, int, int]
    cycle: int | None = None

    @classmethod
    def of(cls, archive: Archive, rows: Sequence[int] | None = None) -> "Series":
        """The series of an archive, standardised by its training rows.

        Raises
        ------
        UserError
            If there are too few rows, or values are missing in them.
        """
        if rows is None:
            rows = [round(part / min(archive.cadence, 1.0)) for part in ROWS]
        total = sum(rows)
        if archive.repeats != 1 or len(archive) < total:
            raise UserError(
                f"the protocol needs {total} rows of one series of times, {archive.source} has {len(archive)}; pass "
                "rows=(training, validation, test)."
            )
        values = archive.read(0, total).reshape(total, -1).astype(np.float64)
        missing = int(np.isnan(values).sum())
        if missing:
            raise UserError(
                f"{missing} of {values.size} values of {archive.source} are missing, and the protocol says nothing of "
                "missing values; select series without gaps."
            )
        train = values[: rows[0]]
        scatter = train.std(axis=0)
        if not (scatter > 0).all():
            raise UserError(f"{int((scatter == 0).sum())} series of {archive.source} do not vary in the training rows.")
        first, second = rows[0], rows[0] + rows[1]
        return cls((values - train.mean(axis=0)) / scatter, (0, first, second, total), cycle_steps(archive))

    @property
    def naive(self) -> np.ndarray:
        """Mean absolute difference of training rows that are a cycle apart (neighbours without one): a unit of MASE."""
        step, train = self.cycle or 1, self.values[: self.borders[1]]
        return np.abs(train[step:] - train[:-step]).mean(axis=0)

    def issues(self, split: int, look_back: int, horizon: int) -> np.ndarray:
        """First rows to be forecast of every window of training (0), validation (1) or test (2)."""
        begin, end = self.borders[split], self.borders[split + 1]
        return np.arange(max(begin, look_back), end - horizon + 1)

    def past(self, issues: np.ndarray, rows: int) -> np.ndarray:
        """The rows before each issue, shape (issues, series, rows)."""
        return np.lib.stride_tricks.sliding_window_view(self.values, rows, axis=0)[issues - rows]

    def future(self, issues: np.ndarray, rows: int) -> np.ndarray:
        """The rows from each issue on, shape (issues, series, rows)."""
        return np.lib.stride_tricks.sliding_window_view(self.values, rows, axis=0)[issues]

    def course(self, issues: np.ndarray, rows: int) -> np.ndarray:
        """The rows from each issue on, less the last value before it."""
        return self.future(issues, rows) - self.past(issues, 1)


def linear_errors(
    series: Series,
    horizons: Sequence[int],
    features: Features,
    look_back: int,
    parts: Sequence[tuple[int, ...]] = ((0,),),
    judged: int = 2,
) -> dict[tuple[int, ...], dict[int, Errors]]:
    """Errors of linear maps from features of each series to its course, by parts and horizon.

    Parameters
    ----------
    features
        Parts of the features of issue times, as `series_ridge.py` takes them.
    look_back
        Rows before an issue that they are made of.
    parts
        Which of the parts a map sees, for each map.
    judged
        Number of the split whose windows are judged.
    """
    train, validation = ({h: series.issues(split, look_back, h) for h in horizons} for split in (0, 1))
    for horizon in horizons:
        if not len(train[horizon]) or not len(validation[horizon]):
            raise UserError(
                f"the training or validation rows hold no window of {look_back} rows and {horizon} ahead; use shorter "
                "ones."
            )
    held_out = dict(products(validation, features, series.course))
    maps: dict[tuple[int, ...], dict[int, LinearMap]] = {part: {} for part in parts}
    for horizon, fitted in products(train, features, series.course):
        for part in parts:
            maps[part][horizon] = fit_map(fitted.take(part), held_out[horizon].take(part))
    return _map_errors(series, maps, features, judged)


def _map_errors(
    series: Series, maps: Mapping[tuple[int, ...], Mapping[int, LinearMap]], features: Features, judged: int
) -> dict[tuple[int, ...], dict[int, Errors]]:
    """Errors of all maps on the windows of a split, whose features are read once."""
    horizons = list(next(iter(maps.values())))
    found: dict[tuple[int, ...], dict[int, list[Errors]]] = {part: {h: [] for h in horizons} for part in maps}
    for block in blocks(series.issues(judged, 0, min(horizons))):
        read = features(block)
        for part, of_horizon in maps.items():
            rows = np.concatenate([read[number] for number in part], axis=2)
            for horizon, fitted in of_horizon.items():
                inside = block <= series.borders[judged + 1] - horizon
                if inside.any():
                    course = series.course(block[inside], horizon)
                    found[part][horizon].append(_mean_errors(rows[inside] @ fitted.weights - course))
    return {part: {h: _joined(errors) for h, errors in own.items()} for part, own in found.items()}


def naive_errors(series: Series, horizons: Sequence[int], forecast: Course, judged: int = 2) -> dict[int, Errors]:
    """Errors of a forecast that nothing is fitted for, by horizon, on the windows of the split of that number."""

    def of(horizon: int) -> Errors:
        # The look-back reaches back across the border; the rows that are forecast do not.
        every = blocks(series.issues(judged, 0, horizon))
        return _joined([_mean_errors(forecast(issues, horizon) - series.future(issues, horizon)) for issues in every])

    return {horizon: of(horizon) for horizon in horizons}


def _mean_errors(error: np.ndarray) -> Errors:
    return (error**2).mean(axis=2), np.abs(error).mean(axis=2)


def _joined(errors: Sequence[Errors]) -> Errors:
    squares, absolutes = zip(*errors, strict=True)
    return np.concatenate(squares), np.concatenate(absolutes)
