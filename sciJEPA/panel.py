"""Forecasts -> scores, beside the controls: the control panel.

Arrives: a run and an archive. Leaves: the tidy table of scores.csv, the figure, and the forecasts of the JEPA probe.
Every method is fitted on the same training times, tuned on the same validation times and judged on the same test times,
which are read once. We decided against an option to leave out persistence and climatology: no skill without them.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from tqdm import tqdm

from sciJEPA.archive import Archive
from sciJEPA.baselines import Climatology, DampedPersistence, EOFRidge, Forecaster, Persistence, fields, windows
from sciJEPA.errors import UserError
from sciJEPA.forecast import (
    _latent_rows,
    issue_steps,
    lead_label,
    lead_steps,
    row_weights,
    target_weights,
    time_labels,
    to_dataset,
)
from sciJEPA.hub import Model, load, random_model
from sciJEPA.latents import MEMORY_LIMIT, embed, time_encoding
from sciJEPA.probes import BLOCK_ROWS, Ridge
from sciJEPA.samples import Splits, WindowReader, split_steps
from sciJEPA.scores import MethodErrors, anomaly_correlation, score_rows, squared_error

ALWAYS = ("persistence", "climatology")
CONTROLS = ("persistence", "climatology", "damped_persistence", "eof_ridge", "raw_ridge", "random_init")
DEFAULT_LEADS = (1, 2, 3, 5)


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
    if out is not None and Path(out).exists():
        raise UserError(f"{out} exists already and nothing is written over; choose another --out.")
    model = run if isinstance(run, Model) else load(run)
    archive = model.open(archive)
    splits = split_steps(archive, model.config.data)
    refuse_leakage(model, archive, splits)
    lead = [lead] if isinstance(lead, str) else lead
    leads = [lead_steps(text, archive) for text in lead] if lead else list(DEFAULT_LEADS)
    labels = list(lead) if lead else [lead_label(steps, archive) for steps in leads]
    context = model.config.data.context
    train, validation, test = (
        issue_steps(archive, getattr(splits, name), context, max(leads)) for name in ("train", "validation", "test")
    )
    for name, steps in (("training", train), ("validation", validation), ("test", test)):
        if len(steps) < 10:
            raise UserError(
                f"the {name} split of {archive.source} has {len(steps)} issue times with {context} steps before and "
                f"{max(leads)} after them, at least 10 are needed; use shorter leads or a longer archive."
            )
    reader = WindowReader(archive, model.normalizer, memory_mb=model.config.data.memory_mb)
    weights = target_weights(archive)
    targets = [fields(reader, steps) for steps in leads]
    groups = len(archive.channels)

    def ridge(features: Any) -> Ridge:
        return Ridge().fit(features, targets, train, validation, weights=weights, groups=groups)

    def probe_latents(which: Model, encoder: str) -> Ridge:
        latents = embed(which, archive, encoder=encoder, out=_spill(which, archive, out, encoder), progress=progress)
        return ridge(_latent_rows([latents], archive))

    makers: dict[str, tuple[str, Callable[[], Forecaster]]] = {
        "persistence": ("none", lambda: Persistence(reader, leads)),
        "climatology": ("none", lambda: Climatology(reader, leads)),
        "damped_persistence": ("none", lambda: DampedPersistence.fit(reader, leads, train)),
        "eof_ridge": ("ridge", lambda: EOFRidge.fit(reader, leads, train, validation, weights)),
        "raw_ridge": ("ridge", lambda: ridge(windows(reader, context))),
        "random_init": ("ridge", lambda: probe_latents(random_model(model), "online")),
        "jepa_online": ("ridge", lambda: probe_latents(model, "online")),
        "jepa_target": ("ridge", lambda: probe_latents(model, "target")),
    }
    wanted = [name for name in makers if name in chosen or name.startswith("jepa")]
    errors: list[MethodErrors] = []
    bar = tqdm(wanted, desc="probe", unit="method", disable=None if progress else True)
    for name in bar:
        bar.set_postfix_str(name)
        kind, make = makers[name]
        method = make()
        errors += _judge(name, kind, method, archive, model, test, leads, labels)
    rows = score_rows(errors, archive=Path(archive.source).name, seed=seed, controls=chosen)
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        _write_forecasts(method, archive, model, test, leads, folder / "forecasts.zarr")
        rows.to_csv(folder / "scores.csv", index=False)
        _draw(rows, folder / "skill.png")
    return rows


def refuse_leakage(model: Model, archive: Archive, splits: Splits) -> None:
    """Refuse to judge a model on times from which its weights or statistics come."""
    labels = time_labels(archive)
    judged_from = labels[splits.validation[0]]
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


def _judge(
    name: str,
    kind: str,
    method: Forecaster,
    archive: Archive,
    model: Model,
    test: np.ndarray,
    leads: Sequence[int],
    labels: Sequence[str],
) -> list[MethodErrors]:
    """Per-time statistics of one method, block by block of issue times, in physical units."""
    space = (archive.axes["latitude"], archive.axes["longitude"])
    weights = row_weights(archive)
    squares: dict[tuple[int, int], list[np.ndarray]] = {}
    ratios: dict[tuple[int, int], list[np.ndarray]] = {}
    shape = (-1, len(archive.channels), len(archive.latitude), len(archive.longitude))

    def labelled(values: np.ndarray) -> xr.DataArray:
        return xr.DataArray(values, dims=("init_time", "channel", *space))

    for first in range(0, len(test), BLOCK_ROWS):
        steps = test[first : first + BLOCK_ROWS]
        for number, (lead, prediction) in enumerate(zip(leads, method.predict(steps), strict=True)):
            time = archive.time[steps + lead]
            truth = labelled(_read_steps(archive, steps + lead))
            forecast = labelled(model.normalizer.invert(prediction.reshape(shape), time))
            normal = labelled(model.normalizer.climatology(time))
            square = squared_error(forecast, truth, weights, over=space).values
            ratio = anomaly_correlation(forecast, truth, normal, weights, over=space).values
            for channel in range(len(archive.channels)):
                squares.setdefault((number, channel), []).append(square[:, channel])
                ratios.setdefault((number, channel), []).append(ratio[:, channel])
    return [
        MethodErrors(
            method=name,
            variable=archive.channels[channel].name,
            lead=labels[number],
            probe=kind,
            squared_error=np.concatenate(squares[number, channel]),
            anomaly_correlation=None if name == "climatology" else np.concatenate(ratios[number, channel]),
        )
        for number, channel in squares
    ]


def _read_steps(archive: Archive, steps: np.ndarray) -> np.ndarray:
    """Fields of increasing steps, read as one stretch."""
    return archive.read(int(steps[0]), int(steps[-1]) + 1)[steps - steps[0]]


def _spill(model: Model, archive: Archive, out: str | os.PathLike | None, encoder: str) -> Path | None:
    """Where latents go that are too large for memory."""
    grid = model.jepa.tokenizer.grid
    size = len(archive) * grid.context_times * grid.per_time * model.jepa.encoder.width * 4
    if size <= MEMORY_LIMIT or out is None:
        return None
    return Path(out) / f"latents-{encoder}-{model.id}.zarr"


def _write_forecasts(
    method: Forecaster, archive: Archive, model: Model, test: np.ndarray, leads: Sequence[int], path: Path
) -> None:
    attributes = {"model_id": model.id, "method": "jepa_target", "probe": "ridge", "archive": Path(archive.source).name}
    for first in range(0, len(test), BLOCK_ROWS):
        steps = test[first : first + BLOCK_ROWS]
        block = to_dataset(method.predict(steps), archive, model.normalizer, steps, leads).assign_attrs(attributes)
        if first == 0:
            block.to_zarr(path, mode="w", encoding=time_encoding(block), consolidated=False)
        else:
            block.to_zarr(path, append_dim="init_time", consolidated=False)


def _draw(rows: pd.DataFrame, path: Path) -> None:
    try:
        from sciJEPA.plots import plot_skill
    except UserError as error:
        tqdm.write(f"no figure: {error}")
        return
    plot_skill(rows, path)
