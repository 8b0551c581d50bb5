"""The protocol of the long-horizon benchmarks on series: ETT and its kin.

Arrives: an archive of series, and a run if its latents are to be judged. Leaves: tidy rows with the errors that the
literature prints. Rows 0 to 8640 train, 2880 validate and 2880 test (for steps of 15 minutes four times as many);
errors are in units of the training scatter; every window of the test rows counts, with stride 1, and the look-back may
reach into the rows before them. One linear map serves all series. We decided against batches: a last one that is
dropped flatters long horizons.

Source: Zhou et al. 2021 (Informer), https://arxiv.org/abs/2012.07436; Nie et al. 2023 (PatchTST),
https://arxiv.org/abs/2211.14730.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.archive import Archive, open_archive
from sciJEPA.errors import UserError
from sciJEPA.forecasting.labelling import time_labels
from sciJEPA.hub import Domain, Model, load
from sciJEPA.judging.baselines import cycle_steps
from sciJEPA.judging.leakage import refuse_statistics
from sciJEPA.judging.panel_cache import Cache, open_cache
from sciJEPA.panel import run_folder
from sciJEPA.probes import Ridge, Rows, row_blocks
from sciJEPA.scoring.comparison import COLUMNS
from sciJEPA.scoring.intervals import block_bootstrap, block_length

HORIZONS = (24, 48, 96, 168, 336, 720)
LOOK_BACK = 512
ROWS = (8640, 2880, 2880)
"""Training, validation and test rows of hourly series."""
SCALE_FLOOR = 0.1
PLAIN = ("persistence", "seasonal_naive", "raw_ridge")
OF_RUN = ("random_init", "jepa_online", "jepa_target", "jepa_target_window")


@dataclass(frozen=True)
class Series:
    """Series in units of the training scatter, and where the splits begin.

    Attributes
    ----------
    values : shape (rows, series).
    borders : first rows of training, validation, test, and of what follows them.
    """

    values: np.ndarray
    borders: tuple[int, int, int, int]

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
        return cls((values - train.mean(axis=0)) / scatter, (0, first, second, total))

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


Features = Callable[[np.ndarray], np.ndarray]
"""Features (issues, series, width) of issues."""


def ett(
    archive: str | os.PathLike | xr.Dataset | Archive,
    run: str | os.PathLike | Model | None = None,
    *,
    horizons: Sequence[int] = HORIZONS,
    look_back: int = LOOK_BACK,
    rows: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    out: str | os.PathLike | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """MSE and MAE of simple forecasts and, with a run, of a linear probe on its frozen latents.

    Parameters
    ----------
    archive
        A table or archive of series, hourly for the usual rows.
    run
        A run or model of sensors with a token for each channel, trained on nothing later than the training rows; its
        look-back is its own issue window.
    horizons
        Rows ahead; an error is a mean over all of them, all series and all windows.
    look_back
        Rows that the ridge on the raw window sees, its last value subtracted.
    rows
        Training, validation and test rows, where they are not the usual ones.
    methods
        Names among persistence (the last value), seasonal_naive, raw_ridge and, with a run, random_init, jepa_online,
        jepa_target, jepa_target_window (latents beside the window); all of them if not given.

    Returns
    -------
    pd.DataFrame
        The columns of scores.csv; metrics `mse` and `mae`, n the number of windows.
    """
    opened = open_archive(archive)
    series = Series.of(opened, rows)
    known = PLAIN + (OF_RUN if run is not None else ())
    wanted = known if methods is None else tuple(methods)
    if set(wanted) - set(known):
        name = next(name for name in wanted if name not in known)
        raise UserError(f"there is no method '{name}' here; choose from {', '.join(known)}, or pass a run.")
    cycle = cycle_steps(opened)
    if methods is None and cycle is None:
        wanted = tuple(name for name in wanted if name != "seasonal_naive")
    folder = run_folder(run) if run is not None else None
    tables = []
    with open_cache(folder / "cache" if folder is not None else None, opened, None) as cache:
        encoders = _Encoders.of(run, opened, series, cache, progress) if run is not None else None
        for name in wanted:
            for horizon in horizons:
                found = _errors(name, series, horizon, look_back, cycle, encoders)
                tables += _rows(found, name, horizon, Path(opened.source).name, seed)
    table = pd.DataFrame(tables, columns=COLUMNS)
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(out, index=False)
    return table


def _errors(
    name: str, series: Series, horizon: int, look_back: int, cycle: int | None, encoders: "_Encoders | None"
) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared and absolute error of every test window."""
    if name == "persistence":
        return _window_errors(series, horizon, lambda issues: series.past(issues, 1))
    if name == "seasonal_naive":
        if cycle is None:
            raise UserError("the calendar of this archive promises no cycle; leave seasonal_naive out.")
        order = np.arange(horizon) % cycle
        return _window_errors(series, horizon, lambda issues: series.past(issues, cycle)[..., order])
    if name == "raw_ridge":
        return linear_errors(series, horizon, _window_features(series, look_back), look_back)
    assert encoders is not None
    if name == "jepa_target_window":
        latents, window = encoders.features("jepa_target"), _window_features(series, look_back)
        both: Features = lambda issues: np.concatenate([latents(issues), window(issues)], axis=2)  # noqa: E731
        return linear_errors(series, horizon, both, max(look_back, encoders.context))
    return linear_errors(series, horizon, encoders.features(name), encoders.context)


def _window_features(series: Series, look_back: int) -> Features:
    """The look-back with its last value subtracted."""

    def read(issues: np.ndarray) -> np.ndarray:
        window = series.past(issues, look_back)
        return window - window[..., -1:]

    return read


def linear_errors(series: Series, horizon: int, features: Features, look_back: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors of a ridge from features of each series to its course after the last value, shared by all series.

    The strength is chosen on the validation windows. There is no intercept: over long horizons it would carry the trend
    of the training rows on.
    """
    count = series.values.shape[1]

    def rows(of: Features) -> Callable[[np.ndarray], np.ndarray]:
        def read(numbers: np.ndarray) -> np.ndarray:
            issues, where = np.unique(numbers // count, return_inverse=True)
            return of(issues)[where, numbers % count]

        return read

    def course(issues: np.ndarray) -> np.ndarray:
        return series.future(issues, horizon) - series.past(issues, 1)

    train, validation = (
        (series.issues(split, look_back, horizon)[:, None] * count + np.arange(count)).ravel() for split in (0, 1)
    )
    if not len(train):
        raise UserError(f"the training rows hold no window of {look_back} rows and {horizon} ahead; use shorter ones.")
    width = features(train[:1] // count).shape[2]
    ridge = Ridge(intercept=False)
    ridge.fit(Rows(rows(features), width), [Rows(rows(course), horizon)], train, validation, weights=np.ones(horizon))

    def forecast(issues: np.ndarray) -> np.ndarray:
        numbers = (issues[:, None] * count + np.arange(count)).ravel()
        return ridge.predict(numbers)[0].reshape(len(issues), count, horizon) + series.past(issues, 1)

    return _window_errors(series, horizon, forecast)


def _window_errors(series: Series, horizon: int, forecast: Features) -> tuple[np.ndarray, np.ndarray]:
    squares, absolutes = [], []
    # The look-back reaches back across the border; the rows that are forecast do not.
    for issues in row_blocks(series.issues(2, 0, horizon)):
        error = forecast(issues) - series.future(issues, horizon)
        squares.append((error**2).mean(axis=(1, 2)))
        absolutes.append(np.abs(error).mean(axis=(1, 2)))
    return np.concatenate(squares), np.concatenate(absolutes)


def _rows(errors: tuple[np.ndarray, np.ndarray], name: str, horizon: int, archive: str, seed: int) -> list[dict]:
    rows = []
    for metric, values in zip(("mse", "mae"), errors, strict=True):
        low, high = block_bootstrap(values, block=min(len(values), block_length(values)), seed=seed)
        probe = "none" if name in PLAIN[:2] else "ridge"
        labels = {"archive": archive, "variable": "all", "lead": str(horizon), "method": name, "probe": probe}
        rows.append(labels | {"metric": metric, "value": float(values.mean()), "low": float(low), "high": float(high),
                              "n": len(values), "seed": seed})  # fmt: skip
    return rows


@dataclass(frozen=True)
class _Encoders:
    """Latents of a run as features of each series."""

    model: Model
    domain: Domain
    archive: Archive
    series: Series
    cache: Cache
    progress: bool

    @classmethod
    def of(
        cls, run: str | os.PathLike | Model, archive: Archive, series: Series, cache: Cache, progress: bool
    ) -> "_Encoders":
        """Of a run that has seen nothing of the validation and test rows."""
        model = run if isinstance(run, Model) else load(run)
        opened, domain = model.open(archive)
        if opened.channels != archive.channels:
            raise UserError(f"the run has {len(opened.channels)} of the {len(archive.channels)} series; open those.")
        tokenizer = domain.tokenizer
        if tokenizer.grid.per_time != series.values.shape[1]:
            raise UserError(
                f"the run has {tokenizer.grid.per_time} tokens at a time for {series.values.shape[1]} series; train "
                "one with tokenizer.tokens set to channel."
            )
        refuse_statistics(domain.normalizer.trained_on, time_labels(opened)[series.borders[1] : series.borders[3]])
        return cls(model, domain, opened, series, cache, progress)

    @property
    def context(self) -> int:
        """Rows of the issue window."""
        return self.domain.config.data.context

    def features(self, name: str) -> Features:
        """All latents of a series side by side, times its scatter in the window, which the tokenizer takes out."""
        from sciJEPA.hub import random_model

        model = random_model(self.model) if name == "random_init" else self.model
        encoder = "target" if name == "jepa_target" else "online"
        latents = self.cache.latents(model, self.domain, self.archive, encoder, progress=self.progress)["latents"]
        count, context = self.series.values.shape[1], self.context

        def read(issues: np.ndarray) -> np.ndarray:
            # The latents of number i are of the window that ends with row i + context - 1.
            values = latents.isel(time=issues - context).values
            values = values.reshape(len(issues), -1, count, values.shape[-1]).swapaxes(1, 2)
            scale = np.maximum(self.series.past(issues, context).std(axis=2, keepdims=True), SCALE_FLOOR)
            return np.concatenate([values.reshape(len(issues), count, -1) * scale, scale], axis=2)

        return read
