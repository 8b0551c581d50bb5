"""A run folder -> one HTML page: what data, what model, how it trained, what it is worth, and how that looks.

Arrives: the folder of a run, with or without a probe, and its archive where it can be found. Leaves: a file that opens
anywhere, without a network. What is missing is said together with the command that adds it; we decided against leaving
such sections out, and against computing scores here: every number comes from a file of the run.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.archive import Archive
from sciJEPA.config import config_to_yaml
from sciJEPA.errors import UserError
from sciJEPA.hub import CARD, Domain, Model, load
from sciJEPA.report.page import GENERATOR, Cell, folded, missing, page, picture, table, text
from sciJEPA.samples import split_steps
from sciJEPA.scoring.score_table import method_title, ordered_methods, sorted_leads

SCORES = {
    "rmse": "RMSE",
    "rmse_over_climatology": "RMSE / climatology",
    "skill": "skill",
    "acc": "ACC",
    "difference_to_best_control": "against best control",
}
"""Metrics of scores.csv that get a column, and its heading."""


@dataclass(frozen=True)
class _Run:
    """What a report is made from."""

    folder: Path
    model: Model
    domain: Domain
    archive: Archive | None
    why: str
    """Why there is no archive."""


def report(
    run: str | os.PathLike,
    *,
    out: str | os.PathLike | None = None,
    archive: str | os.PathLike | xr.Dataset | Archive | None = None,
    domain: str | None = None,
) -> Path:
    """Write the report of a run; an older report in its place is replaced, any other file is left alone.

    Parameters
    ----------
    run
        The folder of a finished run.
    out
        The file; `report.html` in the run's folder if not given.
    archive
        The run's archive, where it has moved since; maps and dates come from it.
    domain
        Which domain of a joint model; the first if not given.

    Examples
    --------
    >>> report("runs/demo")  # doctest: +SKIP
    PosixPath('runs/demo/report.html')
    """
    folder = Path(run)
    model = load(folder)
    path = Path(out) if out is not None else folder / "report.html"
    if path.is_dir() or (path.exists() and GENERATOR not in path.read_text(encoding="utf-8", errors="replace")[:2000]):
        raise UserError(f"{path} exists and is no report of ours, so it is left alone; choose another --out.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path.absolute().parent} is no folder; create it first, or choose another --out.")
    it = _open(folder, model, archive, domain)
    name = folder.resolve().name
    sections = [
        ("Data", _data(it)),
        ("Model", _model(it)),
        ("Training", _training(it)),
        ("Skill", _skill(it)),
        ("Maps", _maps(it)),
        ("Card", f"<pre>{_escaped((_model_folder(folder) / CARD).read_text(encoding='utf-8'))}</pre>"),
        ("Versions", _versions(it)),
    ]
    html = page(f"Run {name}", f"model {model.id}, sciJEPA {model.provenance.get('sciJEPA', '')}", sections)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, path)
    return path


def _open(folder: Path, model: Model, archive: Any, domain: str | None) -> _Run:
    """The run with its archive, or with the reason why there is none."""
    name = domain or next(iter(model.domains))
    if name not in model.domains:
        raise UserError(f"the model has no domain '{name}'; its domains are {', '.join(model.domains)}.")
    chosen = model.domains[name]
    source = archive if archive is not None else chosen.config.data.archive
    if not isinstance(source, xr.Dataset | Archive) and not str(source):
        return _Run(folder, model, chosen, None, "the configuration names no archive")
    try:
        opened, met = model.open(source, name)
    except (UserError, OSError) as error:
        if archive is not None:
            raise
        return _Run(folder, model, chosen, None, str(error))
    return _Run(folder, model, met, opened, "")


def _data(it: _Run) -> str:
    domain, archive = it.domain, it.archive
    facts = {
        "archive": Path(archive.source).name if archive else str(it.model.provenance.get("archive", "unknown")),
        "domain": domain.name,
        "channels": ", ".join(
            f"{c} ({u})" if u else c for c, u in zip(domain.spec.channels, domain.units, strict=True)
        ),
        "time step": f"{domain.spec.cadence:g} hours",
        "window": f"{domain.config.data.window} steps, of which {domain.config.data.context} up to the issue time",
        "statistics from": " to ".join(map(_date, domain.normalizer.trained_on)),
    }
    if archive is not None:
        length = archive.steps_per_series
        facts["places"] = archive.space.describe()
        facts["times"] = f"{length} from {_date(archive.time[0])} to {_date(archive.time[length - 1])}"
    parts = [_facts("What the model has seen", facts)]
    if archive is None:
        parts.append(missing(f"no archive: {it.why}", f"scijepa report {it.folder} --archive PATH"))
        return "\n".join(parts)
    rows = []
    splits = split_steps(archive, domain.config.data)
    for name in ("train", "validation", "test"):
        ranges = getattr(splits, name)
        steps = sum(stop - start for start, stop in ranges)
        first, last = archive.time[ranges[0][0]], archive.time[ranges[-1][1] - 1]
        series = len({number for start, stop in ranges for number in range(start // length, (stop - 1) // length + 1)})
        row = [name, _date(first), _date(last), Cell(str(steps), steps)]
        rows.append([*row, Cell(str(series), series)] if archive.series else row)
    header = ["split", "first", "last", "steps", *(["members or trajectories"] if archive.series else [])]
    parts.append(table("Splits: windows never cross from one into another", header, rows))
    return "\n".join(parts)


def _model(it: _Run) -> str:
    encoder, predictor = it.model.jepa.encoder, it.model.jepa.predictor
    grid = it.domain.tokenizer.grid
    facts = {
        "encoder": f"{sum(p.numel() for p in encoder.parameters()):,} parameters, latents of width "
        f"{encoder.latent_width}",
        "predictor": f"{sum(p.numel() for p in predictor.parameters()):,} parameters",
        "tokens": f"{grid.context_times * grid.per_time} in the issue window, {grid.count} in the whole window",
        "objective": f"targets: {it.model.config.objective.target}; distance: {it.model.config.objective.distance}",
        "training": f"{it.model.config.training.steps} steps of {it.model.config.training.batch_size} windows, seed "
        f"{it.model.config.seed}",
    }
    return _facts("What was trained", facts) + folded("The whole configuration", config_to_yaml(it.model.config))


def _training(it: _Run) -> str:
    path = it.folder / "metrics.csv"
    if not path.is_file():
        return missing("there is no metrics.csv in this folder, so there are no training curves")
    from sciJEPA.plots import plot_training

    metrics = pd.read_csv(path)
    last = {name: metrics[name].dropna().iloc[-1] for name in metrics if metrics[name].notna().any()}
    rank = last.get("rank_target", float("nan"))
    width = it.model.jepa.encoder.width
    said = (
        f"The effective rank of the targets ends at {rank:.3g} of {width} directions. The loss is no measure of "
        "quality: a falling loss beside a falling rank is a collapse."
    )
    alternative = (
        f"Training curves over {int(last.get('step', 0))} steps: prediction loss ends at "
        f"{last.get('loss_prediction', float('nan')):.3g}, effective rank of the target encoder at {rank:.3g}."
    )
    rows = [[name, Cell(f"{value:.4g}", float(value))] for name, value in last.items()]
    figure = picture(plot_training(metrics), alternative, "Loss, effective rank and spread during training.")
    return text(said) + figure + table("At the last step", ["quantity", "value"], rows)


def _skill(it: _Run) -> str:
    path = it.folder / "probe" / "scores.csv"
    if not path.is_file():
        source = it.domain.config.data.archive or "ARCHIVE"
        return missing(
            "no probe yet: nothing is known of what the latents are worth", f"scijepa probe {it.folder} {source}"
        )
    from sciJEPA.plots import plot_skill

    rows = pd.read_csv(path, dtype={"lead": str}, keep_default_na=False, na_values=["", "nan"])
    rows["probe"] = rows["probe"].fillna("none")
    parts = [text("RMSE / climatology on the test split, with 95 % block-bootstrap intervals. Lower is better.")]
    if (rows["metric"] == "rmse_over_climatology").any():
        best = rows[rows["metric"] == "rmse_over_climatology"].sort_values("value").iloc[0]
        alternative = (
            f"RMSE over climatology against lead time for {rows['method'].nunique()} methods and "
            f"{rows['variable'].nunique()} variables; the smallest is {best['value']:.3f} by "
            f"{method_title(best['method'], best['probe'])} at {best['lead']}. The tables below hold every number."
        )
        parts.append(picture(plot_skill(rows), alternative, "Skill against lead, beside the controls."))
    known = rows["metric"].isin(SCORES)
    for variable, part in rows[known].groupby("variable", sort=False):
        parts += [_skill_table(str(variable), lead, part[part["lead"] == lead]) for lead in sorted_leads(part["lead"])]
    if not known.all():
        parts.append(_other_table(rows[~known]))
    return "\n".join(parts)


def _skill_table(variable: str, lead: str, rows: pd.DataFrame) -> str:
    """One table a variable and lead: methods down, metrics across, the smallest RMSE in bold."""
    metrics = [name for name in SCORES if (rows["metric"] == name).any()]
    numbers = {
        (row.method, row.probe, row.metric): (row.value, row.low, row.high) for row in rows.itertuples(index=False)
    }
    lines, errors = [], []
    for method, probe in ordered_methods(rows):
        line: list[Cell | str] = [method_title(method, probe)]
        for metric in metrics:
            value, low, high = (float(part) for part in numbers.get((method, probe, metric), (np.nan,) * 3))
            line.append(Cell(_number(value, low, high, metric), value))
        errors.append(numbers.get((method, probe, "rmse"), (np.nan,))[0])
        lines.append(line)
    best = [number for number, error in enumerate(errors) if np.isfinite(error) and error == np.nanmin(errors)]
    return table(f"{variable}, lead {lead}", ["method", *(SCORES[name] for name in metrics)], lines, best)


def _other_table(rows: pd.DataFrame) -> str:
    """Numbers of another kind that the probe left in scores.csv, one a line."""
    lines: list[list[Cell | str]] = []
    for row in rows.itertuples(index=False):
        value = float(row.value)
        shown = Cell(_number(value, float(row.low), float(row.high), ""), value)
        measure = str(row.metric).replace("_", " ")
        lines.append([str(row.variable), str(row.lead), method_title(row.method, row.probe), measure, shown])
    return table("Further numbers", ["variable", "lead", "method", "measure", "value"], lines)


def _number(value: float, low: float, high: float, metric: str) -> str:
    """A score, with its interval where it is one to compare by; a dot where it is not defined."""
    if np.isnan(value):
        return "."
    if metric in ("rmse", "acc"):
        return f"{value:#.4g}" if metric == "rmse" else f"{value:.3f}"
    shown = f"{value + 0.0:.3f}" if abs(value) >= 0.0005 else "0.000"
    return shown if not high - low > 1e-9 else f"{shown} [{low:.3f}, {high:.3f}]"


def _maps(it: _Run) -> str:
    if it.archive is None:
        return missing(f"no maps, since there is no archive: {it.why}", f"scijepa report {it.folder} --archive PATH")
    from sciJEPA.report.figures import case_figure, component_figure, mask_figure

    parts = []
    for draw in (mask_figure, component_figure):
        parts.append(_drawn(lambda draw=draw: draw(it.model, it.domain, it.archive)))
    store = it.folder / "probe" / "forecasts.zarr"
    if not store.is_dir():
        source = it.domain.config.data.archive or "ARCHIVE"
        parts.append(missing("no forecasts yet to lay beside the truth", f"scijepa probe {it.folder} {source}"))
    else:
        parts.append(_drawn(lambda: case_figure(store, it.archive)))
    return "\n".join(parts)


def _drawn(draw: Any) -> str:
    """The picture, or one sentence where this archive has no such map."""
    try:
        return picture(*draw())
    except UserError as error:
        return missing(str(error))


def _versions(it: _Run) -> str:
    path = it.folder / "versions.json"
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else it.model.provenance
    return _facts("The run was made with", {str(name): str(value) for name, value in found.items()})


def _date(time: Any) -> str:
    """A date without its midnight."""
    return str(time).removesuffix(" 00:00:00")


def _facts(caption: str, facts: Mapping[str, str]) -> str:
    return table(caption, ["what", "value"], [[name, value] for name, value in facts.items()])


def _model_folder(folder: Path) -> Path:
    return folder if (folder / CARD).is_file() and (folder / "config.json").is_file() else folder / "model"


def _escaped(words: str) -> str:
    from html import escape

    return escape(words)
