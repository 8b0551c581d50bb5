"""Sections of a report that every domain has: data, training, skill, maps.

Arrives: a run's folder, and one domain of its model with the archive, where it was found. Leaves: HTML. Every number
comes from a file of the run; what is missing is said together with the command that adds it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.hub import Domain, Model
from sciJEPA.report.page import Cell, folded_part, missing, picture, table, text
from sciJEPA.samples import split_steps
from sciJEPA.scoring.parts import of_the_whole
from sciJEPA.scoring.score_table import method_title, ordered_methods, sorted_leads
from sciJEPA.training.course import length_advice

SCORES = {
    "rmse": "RMSE",
    "rmse_over_climatology": "RMSE / climatology",
    "skill": "skill",
    "acc": "ACC",
    "difference_to_best_control": "against best control",
}
"""Metrics of scores.csv that get a column, and its heading."""
OPEN_TABLES = 6
"""A domain with more tables of scores has them folded away, variable by variable."""


@dataclass(frozen=True)
class Part:
    """One domain of a run: what its sections are made from."""

    folder: Path
    model: Model
    domain: Domain
    archive: Archive | None
    why: str
    """Why there is no archive."""

    @property
    def joint(self) -> bool:
        """Whether the model has other domains too."""
        return len(self.model.domains) > 1

    @property
    def metrics(self) -> pd.DataFrame | None:
        """What was logged of this domain during training, under the names of a run with one domain."""
        path = self.folder / "metrics.csv"
        if not path.is_file():
            return None
        metrics, prefix = pd.read_csv(path), f"{self.domain.name}."
        if not self.joint:
            return metrics
        own = [name for name in metrics if name == "step" or str(name).startswith(prefix)]
        return metrics[own].rename(columns=lambda name: str(name).removeprefix(prefix))

    @property
    def probe(self) -> Path:
        """The folder of its probe: `probe`, or `probe-NAME` in a joint run, unless `probe` is of its archive."""
        plain, own = self.folder / "probe", self.folder / f"probe-{self.domain.name}"
        if not self.joint or (own / "scores.csv").is_file() or not (plain / "scores.csv").is_file():
            return own if self.joint else plain
        judged = pd.read_csv(plain / "scores.csv", usecols=["archive"])["archive"]
        return plain if (judged == Path(str(self.domain.config.data.archive)).name).any() else own

    @property
    def probe_command(self) -> str:
        """What to type to get a probe."""
        command = f"scijepa probe {self.folder} {self.domain.config.data.archive or 'ARCHIVE'}"
        return f"{command} --out {self.probe}" if self.joint else command

    @property
    def archive_command(self) -> str:
        """What to type where the archive has moved."""
        named = f" --domain {self.domain.name}" if self.joint else ""
        return f"scijepa report {self.folder}{named} --archive PATH"


def data(it: Part) -> str:
    """What the model has seen of this archive, and how it was split."""
    domain, archive = it.domain, it.archive
    told = {
        "archive": Path(archive.source).name if archive else str(it.model.provenance.get("archive", "unknown")),
        "kind": domain.config.tokenizer.kind,
        "channels": ", ".join(
            f"{c} ({u})" if u else c for c, u in zip(domain.spec.channels, domain.units, strict=True)
        ),
        "time step": _time_step(it),
        "window": f"{domain.config.data.window} steps, of which {domain.config.data.context} up to the issue time",
        "statistics from": " to ".join(map(_date, domain.normalizer.trained_on)),
    }
    if it.joint:
        windows = domain.config.batch_size or it.model.config.training.batch_size
        told["in a training step"] = f"{windows} windows, weight of the loss {domain.config.weight:g}"
    if archive is not None:
        length = archive.steps_per_series
        told["places"] = archive.space.describe()
        told["times"] = f"{length} from {_date(archive.time[0])} to {_date(archive.time[length - 1])}"
    parts = [facts("What the model has seen", told)]
    if archive is None:
        parts.append(missing(f"no archive: {it.why}", it.archive_command))
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


def training(it: Part) -> str:
    """Curves, and where they ended."""
    metrics = it.metrics
    if metrics is None:
        return missing("there is no metrics.csv in this folder, so there are no training curves")
    from sciJEPA.plots import plot_training

    last = {name: metrics[name].dropna().iloc[-1] for name in metrics if metrics[name].notna().any()}
    rank = last.get("rank_target", float("nan"))
    width = it.model.jepa.encoder.width
    said = (
        f"The effective rank of the targets ends at {rank:.3g} of {width} directions. The loss is no measure of "
        "quality: a falling loss beside a falling rank is a collapse."
    )
    for advice in length_advice(metrics).values():
        said += f" {advice[0].upper()}{advice[1:]}."
    alternative = (
        f"Training curves over {int(last.get('step', 0))} steps: prediction loss ends at "
        f"{last.get('loss_prediction', float('nan')):.3g}, effective rank of the target encoder at {rank:.3g}."
    )
    rows = [[name, Cell(f"{value:.4g}", float(value))] for name, value in last.items()]
    figure = picture(plot_training(metrics), alternative, "Loss, effective rank and spread during training.")
    return text(said) + figure + folded_part("Every quantity", table("At the last step", ["quantity", "value"], rows))


def skill(it: Part) -> str:
    """The table of the probe as a picture and as numbers."""
    path = it.probe / "scores.csv"
    if not path.is_file():
        return missing("no probe yet: nothing is known of what the latents are worth", it.probe_command)
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
    many = len(rows[known].groupby(["variable", "lead"])) > OPEN_TABLES
    for variable, part in rows[known].groupby("variable", sort=False):
        tables = [_skill_table(str(variable), lead, part[part["lead"] == lead]) for lead in sorted_leads(part["lead"])]
        parts += [folded_part(f"{variable}: every number", "\n".join(tables))] if many else tables
    further = of_the_whole(rows[~known])  # those of regions, seasons and scales are too many for a page
    if len(further):
        parts.append(folded_part("Further numbers", _other_table(further)))
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
        tiny = str(row.metric).startswith("p_value") and value < 0.001
        shown = Cell("< 0.001" if tiny else _number(value, float(row.low), float(row.high), ""), value)
        measure = str(row.metric).replace("_", " ")
        lines.append([str(row.variable), str(row.lead), method_title(row.method, row.probe), measure, shown])
    return table("Every other number of scores.csv", ["variable", "lead", "method", "measure", "value"], lines)


def _number(value: float, low: float, high: float, metric: str) -> str:
    """A score, with its interval where it is one to compare by; a dot where it is not defined."""
    if np.isnan(value):
        return "."
    if metric in ("rmse", "acc"):
        return f"{value:#.4g}" if metric == "rmse" else f"{value:.3f}"
    shown = f"{value + 0.0:.3f}" if abs(value) >= 0.0005 else "0.000"
    return shown if not high - low > 1e-9 else f"{shown} [{low:.3f}, {high:.3f}]"


def maps(it: Part) -> str:
    """A mask, latents, and forecasts beside the truth."""
    if it.archive is None:
        return missing(f"no maps, since there is no archive: {it.why}", it.archive_command)
    from sciJEPA.report.figures import case_figure, component_figure, mask_figure, refuse_without_map

    try:
        refuse_without_map(it.archive)
    except UserError as error:
        return missing(str(error))
    parts = []
    for draw in (mask_figure, component_figure):
        parts.append(_drawn(lambda draw=draw: draw(it.model, it.domain, it.archive)))
    store = it.probe / "forecasts.zarr"
    if not store.is_dir():
        parts.append(missing("no forecasts yet to lay beside the truth", it.probe_command))
    else:
        parts.append(_drawn(lambda: case_figure(store, it.archive)))
    return "\n".join(parts)


def _drawn(draw: Any) -> str:
    """The picture, or one sentence where this archive has no such map."""
    try:
        return picture(*draw())
    except UserError as error:
        return missing(str(error))


def _time_step(it: Part) -> str:
    """Length of a step; times that are numbers without dates count as days."""
    hours = it.domain.spec.cadence
    if it.archive is not None and it.archive.calendar == "none":
        return f"{hours / 24:g} on the time axis"
    return f"{hours:g} hour{'' if hours == 1 else 's'}"


def _date(time: Any) -> str:
    """A date without its midnight."""
    return str(time).removesuffix(" 00:00:00")


def facts(caption: str, told: Mapping[str, str]) -> str:
    """A table of two columns."""
    return table(caption, ["what", "value"], [[name, value] for name, value in told.items()])
