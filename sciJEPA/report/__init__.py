"""A run folder -> one HTML page: what data, what model, how it trained, what it is worth, and how that looks.

Arrives: the folder of a run, with or without a probe, and its archive where it can be found. Leaves: a file that opens
anywhere, without a network. What is missing is said together with the command that adds it; we decided against leaving
such sections out, and against computing scores here: every number comes from a file of the run.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from sciJEPA.archive import Archive
from sciJEPA.config import config_to_yaml
from sciJEPA.errors import UserError
from sciJEPA.hub import CARD, Model, load
from sciJEPA.report import sections
from sciJEPA.report.page import GENERATOR, folded, page, part
from sciJEPA.report.sections import Part, facts


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
        The run's archive, where it has moved since; maps and dates come from it. Of a joint run, one of its archives.
    domain
        One domain of a joint model; all of them if not given.

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
    parts = _parts(folder, model, archive, domain)
    name = folder.resolve().name
    told = [
        ("Data", _each(parts, sections.data)),
        ("Model", _model(parts)),
        ("Training", _each(parts, sections.training)),
        ("Skill", _each(parts, sections.skill)),
        ("Maps", _each(parts, sections.maps)),
        ("Card", f"<pre>{_escaped((_model_folder(folder) / CARD).read_text(encoding='utf-8'))}</pre>"),
        ("Versions", _versions(folder, model)),
    ]
    html = page(f"Run {name}", f"model {model.id}, sciJEPA {model.provenance.get('sciJEPA', '')}", told)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, path)
    return path


def _parts(folder: Path, model: Model, archive: Any, domain: str | None) -> list[Part]:
    """The domains to report on, each with its archive or the reason why there is none."""
    if domain is not None and domain not in model.domains:
        raise UserError(f"the model has no domain '{domain}'; its domains are {', '.join(model.domains)}.")
    given = {model.open(archive, domain)[1].name: archive} if archive is not None else {}
    names = list(model.domains) if domain is None else [domain]
    return [_part(folder, model, name, given.get(name)) for name in names]


def _part(folder: Path, model: Model, name: str, archive: Any) -> Part:
    chosen = model.domains[name]
    source = archive if archive is not None else chosen.config.data.archive
    if not isinstance(source, xr.Dataset | Archive) and not str(source):
        return Part(folder, model, chosen, None, "the configuration names no archive")
    try:
        opened, met = model.open(source, name)
    except (UserError, OSError) as error:
        return Part(folder, model, chosen, None, str(error))
    return Part(folder, model, met, opened, "")


def _each(parts: Sequence[Part], section: Callable[[Part], str]) -> str:
    """The section of every domain, under its name where there are several."""
    if not parts[0].joint:
        return section(parts[0])
    return "\n".join(part(it.domain.name, section(it)) for it in parts)


def _model(parts: Sequence[Part]) -> str:
    model = parts[0].model
    encoder, predictor, training = model.jepa.encoder, model.jepa.predictor, model.config.training
    tokens = {}
    for it in parts:
        grid = it.domain.tokenizer.grid
        said = f"{grid.context_times * grid.per_time} in the issue window, {grid.count} in the whole window"
        tokens[f"tokens of {it.domain.name}" if it.joint else "tokens"] = said
    windows = "windows of every domain" if parts[0].joint else f"{training.batch_size} windows"
    told = {
        "encoder": f"{sum(p.numel() for p in encoder.parameters()):,} parameters, latents of width "
        f"{encoder.latent_width}",
        "predictor": f"{sum(p.numel() for p in predictor.parameters()):,} parameters",
        **tokens,
        "objective": f"targets: {model.config.objective.target}; distance: {model.config.objective.distance}",
        "training": f"{training.steps} steps of {windows}, seed {model.config.seed}",
    }
    return facts("What was trained", told) + folded("The whole configuration", config_to_yaml(model.config))


def _versions(folder: Path, model: Model) -> str:
    path = folder / "versions.json"
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else model.provenance
    return facts("The run was made with", {str(name): str(value) for name, value in found.items()})


def _model_folder(folder: Path) -> Path:
    return folder if (folder / CARD).is_file() and (folder / "config.json").is_file() else folder / "model"


def _escaped(words: str) -> str:
    from html import escape

    return escape(words)
