"""Forecasts -> scores, beside the controls: the control panel.

Arrives: a run and an archive. Leaves: the tidy table of scores.csv, the figure, and the forecasts of the JEPA probe.
Every method is fitted on the same training times, tuned on the same validation times and judged on the same test times,
which are read once. We decided against an option to leave out persistence and climatology: no skill without them.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from tqdm import tqdm

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.folders import complete_folder, refuse_existing
from sciJEPA.forcings import without_forcings
from sciJEPA.forecasting.labelling import lead_label, lead_steps, to_dataset
from sciJEPA.forecasting.rollout import LatentRollout
from sciJEPA.hub import Domain, Model, load
from sciJEPA.judging.baselines import Forecaster
from sciJEPA.judging.controls import (
    CEILINGS,
    CONTROLS,
    JUDGED,
    PROBES,
    QUICK,
    Methods,
    chosen_controls,
    chosen_probes,
    judged_methods,
    run_configuration,
)
from sciJEPA.judging.panel_cache import open_cache
from sciJEPA.judging.problem import Errors, Problem
from sciJEPA.latents import time_encoding
from sciJEPA.scores import MethodErrors, score_rows
from sciJEPA.scoring.comparison import COLUMNS
from sciJEPA.scoring.parts import power_rows, region_rows, season_rows, seasons_of
from sciJEPA.scoring.score_table import LATENTS
from sciJEPA.scoring.significance import p_value_rows

__all__ = ["CONTROLS", "JUDGED", "PROBES", "QUICK", "opened_problem", "probe", "units_of"]

DEFAULT_LEADS = (1, 2, 3, 5)


def probe(
    run: str | os.PathLike | Model,
    archive: str | os.PathLike | xr.Dataset | Archive,
    *,
    domain: str | None = None,
    lead: str | Sequence[str] | None = None,
    controls: Sequence[str] | str = "all",
    probes: Sequence[str] | str | None = None,
    labels: Sequence[float] | float = 1.0,
    out: str | os.PathLike | None = None,
    cache: str | os.PathLike | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Forecast skill of a model's latents and of every control.

    Parameters
    ----------
    run
        A run folder, a model folder or a loaded model.
    archive
        The archive to forecast, split as the model's configuration says; its forcings are read, but not forecast.
    domain
        Which domain of a joint model the archive belongs to; found from the archive if not given.
    lead
        Lead times such as ["1D", "3D"]; 1, 2, 3 and 5 steps if not given.
    controls
        "all", "quick" (those that train no network), or names among persistence, climatology, damped_persistence,
        seasonal_naive, eof_ridge, pca, raw_ridge, random_init, mae, supervised; persistence and climatology are always
        there. The last two train as long as the run did, once: they are kept in the folder of the run.
    probes
        Kinds of probes on latents: ridge, local, knn, attentive, mlp; ridge if not given, and local where places have
        neighbours. A local one is a ridge that all places share, on features of a place and its neighbours beside the
        raw window there; its own control is raw_ridge with the window alone.
    labels
        Shares of the training labels that probes are fitted on, such as [0.01, 0.1, 1]; validation keeps all of its
        own. The table then has a column `labels`.
    out
        A new folder for scores.csv, skill.png and forecasts.zarr (the target encoder's; the student's of salt).
    cache
        A folder for latents and finished methods, from which the same probe is repeated in seconds; `RUN/cache` where
        `run` is the folder of a run. What comes from an archive in memory is not kept.
    seed
        Seed of the bootstrap, of probes that draw at random, and of which labels are kept.

    Returns
    -------
    pd.DataFrame
        One row a number: archive, variable, lead, method, probe, metric, value, low, high, n, seed. Regions, seasons
        and scales have metrics of their own, as in `rmse@tropics` (see `scoring.parts`).

    Raises
    ------
    UserError
        If the archive does not fit, a split has too few issue times, `out` exists, or the split would let the probe be
        judged on times that the model was trained on.
    """
    shares = [float(share) for share in np.atleast_1d(labels)]
    if out is not None:
        refuse_existing(out)
    folder = run_folder(run)
    model = run if isinstance(run, Model) else load(run)
    problems = [opened_problem(model, archive, domain, lead, share=share, seed=seed) for share in shares]
    kinds = chosen_probes(probes, problems[0])
    name = problems[0].domain
    kept = Path(cache) if cache is not None else folder / "cache" if folder is not None else None
    beside = Path(out).absolute().parent if out is not None else None
    tables: list[pd.DataFrame] = []
    with open_cache(kept, problems[0].inputs[1], beside) as store:
        trained = (folder if folder is not None else store.folder) / "controls"
        for problem in problems:
            methods = Methods(problem, model, store, trained, run_configuration(folder, model), progress)
            table, forecasts = _Panel(methods, name).table(chosen_controls(controls, problem), kinds)
            tables.append(table if len(shares) == 1 and shares[0] == 1 else table.assign(labels=problem.share))
        rows = pd.concat(tables, ignore_index=True)
        if out is not None:
            with complete_folder(out) as partial:
                shutil.copytree(forecasts, partial / "forecasts.zarr")
                rows.to_csv(partial / "scores.csv", index=False)
                _draw(tables[-1], partial / "skill.png")
    return rows


def opened_problem(
    model: Model,
    archive: str | os.PathLike | xr.Dataset | Archive,
    domain: str | None,
    lead: str | Sequence[str] | None,
    **options: Any,
) -> Problem:
    """The problem that a model, an archive and leads as a user writes them pose."""
    read, reading = model.open(archive, domain)
    opened, chosen, whole = without_forcings(read, reading.config.data.forcings), reading, None
    if opened is not read:
        chosen, whole = model.domains[reading.name].meet(opened), (reading, read)
    lead = [lead] if isinstance(lead, str) else lead
    leads = [lead_steps(text, opened) for text in lead] if lead else list(DEFAULT_LEADS)
    texts = list(lead) if lead else [lead_label(steps, opened) for steps in leads]
    return Problem.of(chosen, opened, leads, texts, whole=whole, **options)


def run_folder(run: str | os.PathLike | Model) -> Path | None:
    """The folder of a run, with its model in it; None for a loaded model or a model's own folder."""
    return Path(run) if not isinstance(run, Model) and (Path(run) / "model").is_dir() else None


def units_of(archive: Archive) -> Mapping[str, str]:
    """Units by channel name, for the printed table."""
    return {channel.name: channel.units for channel in archive.channels}


@dataclass(frozen=True)
class _Panel:
    """All methods on one problem."""

    methods: Methods
    domain: Domain

    def table(self, controls: Sequence[str], probes: Sequence[str]) -> tuple[pd.DataFrame, Path]:
        """Tidy rows, and where the forecasts of the target encoder lie."""
        problem, model = self.methods.problem, self.methods.model
        judged = judged_methods(problem, model)
        entries = self.methods.entries((*controls, *judged), probes)
        errors: list[MethodErrors] = []
        found: list[Errors] = []
        shown = None if self.methods.progress else True
        with tqdm(total=len(entries), desc="probe", unit="method", disable=shown) as bar:
            for name, kind in entries:
                bar.set_postfix_str(name if kind in ("none", "ridge") else f"{name} {kind}")
                found.append(self._errors(name, kind))
                errors += self._labelled(name, kind, found[-1])
                bar.update(1)
        of_table = {"archive": Path(problem.archive.source).name, "seed": problem.seed}
        competing = [name for name in controls if name not in CEILINGS]
        rows = [
            score_rows(errors, controls=competing, **of_table),  # type: ignore[arg-type]
            p_value_rows(errors, controls=competing, judged=judged, **of_table),  # type: ignore[arg-type]
            *self._part_rows(errors, found, competing),
        ]
        if "latent_rollout" in judged:
            rows.append(self._rank_rows(of_table))
        key = self.methods.key(self._shown, probes[0])
        forecasts = self.methods.cache.forecasts(f"{self._shown}-{probes[0]}", key)
        return pd.concat(rows, ignore_index=True), forecasts

    @property
    def _shown(self) -> str:
        """The method whose forecasts are kept: of the encoder that the run is for."""
        return f"jepa_{self.methods.model.jepa.objective.encoder}"

    def _errors(self, name: str, kind: str) -> Errors:
        """Errors of a method: those that were kept, or new ones."""
        cache, key = self.methods.cache, self.methods.key(name, kind)
        path = cache.forecasts(f"{name}-{kind}", key)
        wanted = name == self._shown
        found = cache.errors(f"{name}-{kind}", key)
        if found is not None and (path.is_dir() or not wanted):
            return found
        method = self.methods.make(name, kind)
        errors = self.methods.problem.judge(method)
        if wanted and not path.is_dir():
            write_forecasts(method, self.methods, path, method_name=name, kind=kind)
        if isinstance(method, LatentRollout):
            predicted, encoded, count = method.ranks(self.methods.problem.test)
            cache.keep_array("ranks", key, np.array([predicted, encoded, [count] * len(predicted)]))
        cache.keep_errors(f"{name}-{kind}", key, errors)
        return errors

    def _labelled(self, name: str, kind: str, errors: Errors) -> list[MethodErrors]:
        problem = self.methods.problem
        return [
            MethodErrors(
                method=name,
                variable=channel.name,
                lead=label,
                probe=kind,
                squared_error=errors.squared_error[number, column],
                anomaly_correlation=None if name == "climatology" else errors.anomaly_correlation[number, column],
            )
            for number, label in enumerate(problem.labels)
            for column, channel in enumerate(problem.archive.channels)
        ]

    def _part_rows(
        self, errors: Sequence[MethodErrors], found: Sequence[Errors], controls: Sequence[str]
    ) -> list[pd.DataFrame]:
        """Rows of regions, seasons and scales; `found` holds the statistics of each method in the order of `errors`."""
        problem, archive = self.methods.problem, self.methods.problem.archive
        name = Path(archive.source).name
        cells = [(leads, channels) for leads in range(len(problem.leads)) for channels in range(len(archive.channels))]
        regional = {
            region: [own.regional[(number, *cell)] for own in found for cell in cells]
            for number, region in enumerate(problem.parts.regions)
        }
        powers = [own.power[(slice(None), slice(None), *cell)] for own in found for cell in cells]
        seasons = {
            label: seasons_of(archive.time[problem.test + lead])
            for label, lead in zip(problem.labels, problem.leads, strict=True)
        }
        tables = (
            region_rows(errors, regional, archive=name, seed=problem.seed, controls=controls),
            season_rows(errors, seasons, archive=name, seed=problem.seed, controls=controls),
            power_rows(errors, powers, archive=name, seed=problem.seed),
        )
        return [table for table in tables if len(table)]

    def _rank_rows(self, labels: Mapping[str, Any]) -> pd.DataFrame:
        """Effective rank of the rollout's latents at each lead, and of those of the target encoder."""
        ranks = self.methods.cache.array("ranks", self.methods.key("latent_rollout", "ridge"))
        assert ranks is not None  # written beside the errors
        rows = [
            {"variable": LATENTS, "lead": lead, "method": name, "probe": "none", "metric": "rank", "value": value}
            | {"n": int(ranks[2, 0])}
            for name, values in zip(("latent_rollout", "jepa_target"), ranks[:2], strict=True)
            for lead, value in zip(self.methods.problem.labels, values, strict=True)
        ]
        return pd.DataFrame([row | dict(labels) for row in rows], columns=COLUMNS)


def write_forecasts(method: Forecaster, methods: Methods, path: Path, *, method_name: str, kind: str) -> None:
    """Forecasts of the test times in physical units, block by block."""
    problem = methods.problem
    attributes = {"model_id": methods.model.id, "method": method_name, "probe": kind}
    with complete_folder(path) as partial:
        for number, steps in enumerate(problem.blocks(problem.test)):
            block = to_dataset(method.predict(steps), problem.archive, problem.domain.normalizer, steps, problem.leads)
            block = block.assign_attrs(attributes, archive=Path(problem.archive.source).name)
            options: Any = {"append_dim": "init_time"} if number else {"mode": "w", "encoding": time_encoding(block)}
            block.to_zarr(partial, consolidated=False, **options)


def _draw(rows: pd.DataFrame, path: Path) -> None:
    try:
        from sciJEPA.plots import plot_skill
    except UserError as error:
        tqdm.write(f"no figure: {error}")
        return
    plot_skill(rows[rows["variable"] != LATENTS], path)
