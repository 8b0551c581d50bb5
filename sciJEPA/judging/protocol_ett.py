"""The protocol of the long-horizon benchmarks on series: ETT and its kin.

Arrives: an archive of series, and a run if its latents are to be judged. Leaves: tidy rows with the errors that the
literature prints. Rows 0 to 8640 train, 2880 validate and 2880 test (for steps of 15 minutes four times as many);
errors are in units of the training scatter; every window of the test rows counts, with stride 1, and the look-back may
reach into the rows before them. A probe is linear, one for each horizon, and serves all series: it goes from all tokens
of a series side by side to its course after the last value (`series_ridge.py`). We decided against batches: a last one
that is dropped flatters long horizons.

Source: Zhou et al. 2021 (Informer), https://arxiv.org/abs/2012.07436; Nie et al. 2023 (PatchTST),
https://arxiv.org/abs/2211.14730.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

from sciJEPA.archive import Archive, open_archive
from sciJEPA.errors import UserError
from sciJEPA.forecasting.labelling import time_labels
from sciJEPA.hub import Domain, Model, load, random_model
from sciJEPA.judging.controls import run_configuration, train_masked_autoencoder
from sciJEPA.judging.leakage import refuse_statistics
from sciJEPA.judging.series_ridge import Course, Features
from sciJEPA.judging.series_windows import Errors, Series, linear_errors, naive_errors
from sciJEPA.loader import WindowReader
from sciJEPA.panel import run_folder
from sciJEPA.scoring.comparison import COLUMNS
from sciJEPA.scoring.intervals import block_bootstrap, block_length

HORIZONS = (24, 48, 96, 168, 336, 720)
LOOK_BACK = 512
SCALE_FLOOR = 0.1
PLAIN = ("persistence", "seasonal_naive", "raw_ridge")
LATENT = ("random_init", "mae", "jepa_online", "jepa_target")
WINDOW = "_window"
"""Ending of the methods whose probe sees latents beside the window that the ridge on the raw window sees."""
METRICS = ("mse", "mae", "mase")
SPLITS = {"validation": 1, "test": 2}


def ett(
    archive: str | os.PathLike | xr.Dataset | Archive,
    run: str | os.PathLike | Model | None = None,
    *,
    horizons: Sequence[int] = HORIZONS,
    look_back: int = LOOK_BACK,
    rows: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    split: str = "test",
    out: str | os.PathLike | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """MSE, MAE and MASE of simple forecasts and, with a run, of a linear probe on its frozen latents.

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
        Names among persistence (the last value), seasonal_naive (the cycle before), raw_ridge and, with a run,
        random_init, mae, jepa_online, jepa_target, and each of these four with _window (latents beside the raw window).
        If not given: all of them for the folder of a run, whose masked autoencoder is trained once and kept there; of a
        model all but that.
    split
        "test", or "validation": where a configuration is chosen, so that the test rows are read once. Strengths of
        probes are chosen there too.

    Returns
    -------
    pd.DataFrame
        The columns of scores.csv; metrics `mse`, `mae` and `mase` (in units of the mean absolute difference of training
        rows that are a cycle apart), n the number of windows.
    """
    if split not in SPLITS:
        raise UserError(f"split must be {' or '.join(SPLITS)}, got '{split}'.")
    opened = open_archive(archive)
    series = Series.of(opened, rows)
    wanted = _methods(methods, run, series)
    tables: list[dict] = []
    encoders = _Encoders.of(run, opened, series, progress) if run is not None else None
    for group in _groups(wanted):
        found = _errors(group, series, horizons, look_back, encoders, SPLITS[split])
        for name in group:
            for horizon in horizons:
                tables += _rows(found[name][horizon], series, name, horizon, Path(opened.source).name, seed)
    table = pd.DataFrame(tables, columns=COLUMNS)
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(out, index=False)
    return table


def _methods(methods: Sequence[str] | None, run: str | os.PathLike | Model | None, series: Series) -> tuple[str, ...]:
    """Names of the methods that were asked for, in their order."""
    latent = () if run is None else tuple(name + end for name in LATENT for end in ("", WINDOW))
    known = PLAIN + latent
    if methods is not None:
        for name in methods:
            if name not in known:
                raise UserError(f"there is no method '{name}' here; choose from {', '.join(known)}, or pass a run.")
        return tuple(methods)
    here = known if run is not None and run_folder(run) is not None else [n for n in known if not n.startswith("mae")]
    return tuple(name for name in here if series.cycle is not None or name != "seasonal_naive")


def _groups(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The names, those together that share one pass over the latents of an encoder.

    >>> _groups(["raw_ridge", "jepa_target", "jepa_online", "jepa_target_window"])
    [('raw_ridge',), ('jepa_target', 'jepa_target_window'), ('jepa_online',)]
    """
    encoders = dict.fromkeys(name.removesuffix(WINDOW) for name in names)
    return [tuple(name for name in names if name.removesuffix(WINDOW) == encoder) for encoder in encoders]


def _errors(
    names: Sequence[str],
    series: Series,
    horizons: Sequence[int],
    look_back: int,
    encoders: "_Encoders | None",
    judged: int,
) -> dict[str, dict[int, Errors]]:
    """Errors of every window of a split by name and horizon."""
    first, window = names[0].removesuffix(WINDOW), _window_features(series, look_back)
    if first == "persistence":
        return {first: naive_errors(series, horizons, lambda issues, _: series.past(issues, 1), judged)}
    if first == "seasonal_naive":
        if series.cycle is None:
            raise UserError("the calendar of this archive promises no cycle; leave seasonal_naive out.")
        cycle = series.cycle
        repeated: Course = lambda issues, rows: series.past(issues, cycle)[..., np.arange(rows) % cycle]  # noqa: E731
        return {first: naive_errors(series, horizons, repeated, judged)}
    if first == "raw_ridge":
        alone: Features = lambda issues: [window(issues)]  # noqa: E731
        return {first: linear_errors(series, horizons, alone, look_back, judged=judged)[(0,)]}
    assert encoders is not None
    latents = encoders.features(first)
    both: Features = lambda issues: [latents(issues), window(issues)]  # noqa: E731
    parts = {name: (0, 1) if name.endswith(WINDOW) else (0,) for name in names}
    reach = max(look_back, encoders.context)
    found = linear_errors(series, horizons, both, reach, tuple(parts.values()), judged)
    return {name: found[part] for name, part in parts.items()}


def _window_features(series: Series, look_back: int) -> Callable[[np.ndarray], np.ndarray]:
    """The look-back with its last value subtracted."""

    def read(issues: np.ndarray) -> np.ndarray:
        window = series.past(issues, look_back)
        return window - window[..., -1:]

    return read


def _rows(errors: Errors, series: Series, name: str, horizon: int, archive: str, seed: int) -> list[dict]:
    squares, absolutes = errors
    probe = "none" if name in PLAIN[:2] else "ridge"
    labels = {"archive": archive, "variable": "all", "lead": str(horizon), "method": name, "probe": probe}
    rows = []
    for metric, each in zip(METRICS, (squares, absolutes, absolutes / series.naive), strict=True):
        values = each.mean(axis=1)
        low, high = block_bootstrap(values, block=min(len(values), block_length(values)), seed=seed)
        rows.append(labels | {"metric": metric, "value": float(values.mean()), "low": float(low), "high": float(high),
                              "n": len(values), "seed": seed})  # fmt: skip
    return rows


def ett_table(rows: pd.DataFrame) -> str:
    """Methods down, horizons across: MSE / MAE / MASE."""
    wide = rows.pivot_table("value", ["method", "lead"], "metric")
    cells = wide.apply(lambda row: " / ".join(f"{row[metric]:.3f}" for metric in METRICS), axis=1).unstack("lead")
    leads, methods = (list(dict.fromkeys(rows[name])) for name in ("lead", "method"))
    return cells.loc[methods, leads].rename_axis(index=None, columns="mse / mae / mase").to_string()


@dataclass(frozen=True)
class _Encoders:
    """Latents of a run as features of each series."""

    model: Model
    domain: Domain
    archive: Archive
    series: Series
    run: Path | None
    progress: bool

    @classmethod
    def of(cls, run: str | os.PathLike | Model, archive: Archive, series: Series, progress: bool) -> "_Encoders":
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
        return cls(model, domain, opened, series, run_folder(run), progress)

    @property
    def context(self) -> int:
        """Rows of the issue window."""
        return self.domain.config.data.context

    def features(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        """All latents of a series side by side, times its scatter in the window, which the tokenizer takes out."""
        model, domain = self._model(name), self.domain
        encoder = "target" if name in ("jepa_target", "mae") else "online"
        reader = WindowReader(self.archive, domain.normalizer, memory_mb=domain.config.data.memory_mb)
        count, context = self.series.values.shape[1], self.context

        def read(issues: np.ndarray) -> np.ndarray:
            batch = dataclasses.replace(reader.read(issues - context, context), domain=domain.name)
            with torch.inference_mode():
                latents = model.jepa.encode(batch.to(device), encoder=encoder, tokenizer=domain.tokenizer)
            values = latents.float().cpu().numpy()
            values = values.reshape(len(issues), -1, count, values.shape[-1]).swapaxes(1, 2)
            scale = np.maximum(self.series.past(issues, context).std(axis=2, keepdims=True), SCALE_FLOOR)
            return np.concatenate([values.reshape(len(issues), count, -1) * scale, scale], axis=2)

        device = next(model.jepa.parameters()).device
        return read

    def _model(self, name: str) -> Model:
        """The run's model, the same untrained, or a masked autoencoder of the same architecture, data and steps."""
        if name == "random_init":
            return random_model(self.model)
        if name != "mae":
            return self.model
        if self.run is None:
            raise UserError("the masked autoencoder is trained once and kept in the folder of a run; pass that folder.")
        config = run_configuration(self.run, self.model)
        return train_masked_autoencoder(config, self.run / "controls", progress=self.progress)
