"""Forecasts -> scores, beside the controls: the control panel.

Arrives: a run and an archive. Leaves: the tidy table of scores.csv, the figure, and the forecasts of the JEPA probe.
Every method is fitted on the same training times, tuned on the same validation times and judged on the same test times,
which are read once. We decided against an option to leave out persistence and climatology: no skill without them.
"""

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from tqdm import tqdm

from sciJEPA.archive import Archive
from sciJEPA.baselines import Climatology, DampedPersistence, EOFRidge, Forecaster, Persistence, fields, windows
from sciJEPA.errors import UserError
from sciJEPA.folders import complete_folder, refuse_existing
from sciJEPA.forecast import (
    _latent_rows,
    issue_steps,
    lead_label,
    lead_steps,
    place_weights,
    target_weights,
    time_labels,
    to_dataset,
)
from sciJEPA.hub import Model, load, random_model
from sciJEPA.latents import MEMORY_LIMIT, embed, time_encoding
from sciJEPA.loader import WindowReader
from sciJEPA.probes import Ridge, Rows, row_blocks
from sciJEPA.samples import Splits, split_steps, splits_series
from sciJEPA.scores import MethodErrors, anomaly_correlation, score_rows, squared_error

ALWAYS = ("persistence", "climatology")
CONTROLS = ("persistence", "climatology", "damped_persistence", "eof_ridge", "raw_ridge", "random_init")
DEFAULT_LEADS = (1, 2, 3, 5)
JUDGED = ("jepa_online", "jepa_target")
LEAST_TIMES = 10


def probe(
    run: str | os.PathLike | Model,
    archive: str | os.PathLike | xr.Dataset | Archive,
    *,
    lead: str | Sequence[str] | None = None,
    controls: Sequence[str] | str = "all",
    out: str | os.PathLike | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Forecast skill of a model's latents and of every control.

    Parameters
    ----------
    run
        A run folder, a model folder or a loaded model.
    archive
        The archive to forecast, split in time as the model's configuration says.
    lead
        Lead times such as ["1D", "3D"]; 1, 2, 3 and 5 steps if not given.
    controls
        "all", or names among persistence, climatology, damped_persistence, eof_ridge, raw_ridge, random_init;
        persistence and climatology are always there.
    out
        A new folder for scores.csv, skill.png and forecasts.zarr (the target encoder's).
    seed
        Seed of the bootstrap.

    Returns
    -------
    pd.DataFrame
        One row a number: archive, variable, lead, method, probe, metric, value, low, high, n, seed.

    Raises
    ------
    UserError
        If the archive does not fit, a split has too few issue times, `out` exists, or the split would let the probe be
        judged on times that the model was trained on.
    """
    chosen = (
        CONTROLS
        if controls == "all"
        else tuple(dict.fromkeys((*ALWAYS, *([controls] if isinstance(controls, str) else controls))))
    )
    unknown = [name for name in chosen if name not in CONTROLS]
    if unknown:
        raise UserError(f"there is no control '{unknown[0]}'; choose from {', '.join(CONTROLS)}.")
    if out is not None:
        refuse_existing(out)
    model = run if isinstance(run, Model) else load(run)
    archive = model.open(archive)
    lead = [lead] if isinstance(lead, str) else lead
    leads = [lead_steps(text, archive) for text in lead] if lead else list(DEFAULT_LEADS)
    labels = list(lead) if lead else [lead_label(steps, archive) for steps in leads]
    parent = Path(out).absolute().parent if out is not None else None
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".latents-", dir=parent) as spill:
        panel = _Panel.of(model, archive, leads, labels, Path(spill), progress)
        errors: list[MethodErrors] = []
        bar = tqdm((*chosen, *JUDGED), desc="probe", unit="method", disable=None if progress else True)
        for name in bar:
            bar.set_postfix_str(name)
            method = panel.make(name)
            errors += panel.judge(name, method)
        rows = score_rows(errors, archive=Path(archive.source).name, seed=seed, controls=chosen)
        if out is not None:
            with complete_folder(out) as folder:
                panel.write_forecasts(method, folder / "forecasts.zarr")
                rows.to_csv(folder / "scores.csv", index=False)
                _draw(rows, folder / "skill.png")
    return rows


def refuse_leakage(model: Model, archive: Archive, splits: Splits) -> None:
    """Refuse to judge a model on times from which its weights or statistics come."""
    if splits_series(archive, model.config.data):
        return  # whole series: those of training are never those of validation or test
    labels = time_labels(archive)
    judged_from = labels[splits.validation[0][0]]
    trained_from, trained_until = model.normalizer.trained_on
    if _is_number(trained_until) != _is_number(judged_from):
        return  # dates and plain numbers: other times altogether
    order: Callable[[str], Any] = float if _is_number(judged_from) else str  # as text, dates compare like dates
    if order(trained_until) >= order(judged_from) and order(trained_from) <= order(labels[-1]):
        raise UserError(
            f"the model was trained on times until {trained_until}, but the validation split of {archive.source} "
            f"begins at {judged_from}: its skill would be hindsight. Judge it on later times, or retrain with this "
            "archive's split."
        )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def units_of(archive: Archive) -> Mapping[str, str]:
    """Units by channel name, for the printed table."""
    return {channel.name: channel.units for channel in archive.channels}


@dataclass(frozen=True)
class _Panel:
    """One forecasting problem: what every method is fitted on and judged on."""

    model: Model
    archive: Archive
    reader: WindowReader
    leads: Sequence[int]
    labels: Sequence[str]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    spill: Path
    progress: bool

    @classmethod
    def of(
        cls, model: Model, archive: Archive, leads: Sequence[int], labels: Sequence[str], spill: Path, progress: bool
    ) -> "_Panel":
        """Issue steps of the three splits, the same for every lead and method."""
        splits = split_steps(archive, model.config.data)
        refuse_leakage(model, archive, splits)
        context, horizon = model.config.data.context, max(leads)
        steps = {
            name: issue_steps(archive, getattr(splits, name), context, horizon)
            for name in ("train", "validation", "test")
        }
        for name, found in steps.items():
            if len(found) < LEAST_TIMES:
                raise UserError(
                    f"the {name} split of {archive.source} has {len(found)} issue times with {context} steps up to "
                    f"them and {horizon} after them, at least {LEAST_TIMES} are needed; use shorter leads or a longer "
                    "archive."
                )
        reader = WindowReader(archive, model.normalizer, memory_mb=model.config.data.memory_mb)
        return cls(model, archive, reader, leads, labels, **steps, spill=spill, progress=progress)

    def make(self, name: str) -> Forecaster:
        """The method of that name, fitted on training times and tuned on validation times."""
        reader, leads = self.reader, self.leads
        makers: dict[str, Callable[[], Forecaster]] = {
            "persistence": lambda: Persistence(reader, leads),
            "climatology": lambda: Climatology(reader, leads),
            "damped_persistence": lambda: DampedPersistence.fit(reader, leads, self.train),
            "eof_ridge": lambda: EOFRidge.fit(reader, leads, self.train, self.validation, target_weights(self.archive)),
            "raw_ridge": lambda: self.ridge(windows(reader, self.model.config.data.context)),
            "random_init": lambda: self.latent_ridge(random_model(self.model), "online"),
            "jepa_online": lambda: self.latent_ridge(self.model, "online"),
            "jepa_target": lambda: self.latent_ridge(self.model, "target"),
        }
        return makers[name]()

    def ridge(self, features: Rows) -> Ridge:
        """Ridge from these features to every lead."""
        return Ridge().fit(
            features,
            [fields(self.reader, lead) for lead in self.leads],
            self.train,
            self.validation,
            weights=target_weights(self.archive),
            groups=len(self.archive.channels),
        )

    def latent_ridge(self, model: Model, encoder: str) -> Ridge:
        """Ridge from latents, which go to disk where they are too large for memory."""
        grid = model.jepa.tokenizer.grid
        size = len(self.archive) * grid.context_times * grid.per_time * model.jepa.encoder.latent_width * 4
        store = self.spill / f"{model.id}-{encoder}.zarr" if size > MEMORY_LIMIT else None
        latents = embed(model, self.archive, encoder=encoder, out=store, progress=self.progress)
        return self.ridge(_latent_rows([latents], self.archive))

    def judge(self, name: str, method: Forecaster) -> list[MethodErrors]:
        """Per-time statistics of one method, block by block of issue times, in physical units."""
        archive, normalizer = self.archive, self.model.normalizer
        space, weights = archive.space.dims, place_weights(archive)
        shape = (-1, len(archive.channels), *archive.shape)
        squares: list[list[np.ndarray]] = [[] for _ in self.leads]
        ratios: list[list[np.ndarray]] = [[] for _ in self.leads]

        def labelled(values: np.ndarray) -> xr.DataArray:
            return xr.DataArray(values.reshape(shape), dims=("init_time", "channel", *space))

        for steps in row_blocks(self.test):
            for number, (lead, prediction) in enumerate(zip(self.leads, method.predict(steps), strict=True)):
                time = archive.time[steps + lead]
                truth = labelled(archive.read(int(steps[0]) + lead, int(steps[-1]) + lead + 1)[steps - steps[0]])
                forecast = labelled(normalizer.invert(prediction.reshape(shape), time))
                normal = labelled(normalizer.climatology(time))
                squares[number].append(squared_error(forecast, truth, weights, over=space).values)
                ratios[number].append(anomaly_correlation(forecast, truth, normal, weights, over=space).values)
        return [
            MethodErrors(
                method=name,
                variable=channel.name,
                lead=label,
                probe="ridge" if isinstance(method, Ridge | EOFRidge) else "none",
                squared_error=np.concatenate(squares[number])[:, column],
                anomaly_correlation=None if name == "climatology" else np.concatenate(ratios[number])[:, column],
            )
            for number, label in enumerate(self.labels)
            for column, channel in enumerate(archive.channels)
        ]

    def write_forecasts(self, method: Forecaster, path: Path) -> None:
        """Forecasts of the test times in physical units, block by block."""
        attributes = {"model_id": self.model.id, "method": JUDGED[-1], "probe": "ridge"}
        for number, steps in enumerate(row_blocks(self.test)):
            block = to_dataset(method.predict(steps), self.archive, self.model.normalizer, steps, self.leads)
            block = block.assign_attrs(attributes, archive=Path(self.archive.source).name)
            options: Any = {"append_dim": "init_time"} if number else {"mode": "w", "encoding": time_encoding(block)}
            block.to_zarr(path, consolidated=False, **options)


def _draw(rows: pd.DataFrame, path: Path) -> None:
    try:
        from sciJEPA.plots import plot_skill
    except UserError as error:
        tqdm.write(f"no figure: {error}")
        return
    plot_skill(rows, path)
