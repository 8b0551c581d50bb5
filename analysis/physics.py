"""Kolmogorov flow and Gray-Scott: do frozen latents tell the parameters of a simulation, and what follows?

    python analysis/physics.py --archive kolmogorov=kolmogorov.nc --archive gray_scott=gray_scott.nc --out runs/physics

The archives come from the solver Exponax (MIT): 64 x 64 cells, 40 frames, a viscosity and a drag (or a feed and a kill
rate) of each trajectory's own. Whole trajectories make up the splits, and no model is told a parameter. A sample is one
window of `data.context` frames; every method gets the same ones, `SPACING` frames apart. Probes are fitted on training
trajectories, tuned on validation trajectories, judged on test trajectories; intervals draw whole trajectories.
Forecasts are those of the panel's local ridge: from each token and its neighbours beside the raw window there.
Writes `scores.csv` (every number) and `table.md` into the output folder; the committed ones are in
`analysis/results/physics`. What was chosen (`SETTINGS`) was chosen on validation trajectories.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import sciJEPA
from sciJEPA.archive import Archive
from sciJEPA.forecasting.rollout import Carrier
from sciJEPA.hub import random_model
from sciJEPA.judging.baselines import Climatology, DampedPersistence, Persistence, fields, patch_components
from sciJEPA.judging.field_statistics import moments_and_spectrum
from sciJEPA.judging.local_ridge import LocalRidge
from sciJEPA.judging.parameters import r2_draws, split_numbers, trajectory_parameters
from sciJEPA.judging.problem import Problem
from sciJEPA.judging.protocols import WELL_WINDOWS, vrmse_of
from sciJEPA.probes import Rows
from sciJEPA.probing.index import RegressionProbe

SETTINGS: dict[str, Any] = {
    "data.window": 16,
    "tokenizer.stem": "linear",
    "masking.forecast_share": 0.33,
    "training.batch_size": 8,
}
KINDS: dict[str, dict[str, Any]] = {"jepa": {}, "mae": {"objective.target": "mae", "objective.reconstruction": 0}}
SPACING = 8
PROBES = ("ridge", "attentive", "knn", "mlp")
DRAWS = 1000
ROLLOUTS = ([1, 6, 9, 12], [1, 13, 21, 30])
"""Leads that stand for The Well's spans 6:12 and 13:30, as `sciJEPA.judging.protocols.well_leads` has them."""


def train(path: str, out: Path, changes: Mapping[str, Any], seed: int, steps: int) -> sciJEPA.Model:
    """A run, or the finished one of before."""
    if (out / "model").exists():
        return sciJEPA.load(out)
    told = {"data.archive": path, "data.memory_mb": 1024, "training.steps": steps, "seed": seed, "training.threads": 1}
    config = sciJEPA.load_config("simulation-tiny", {**SETTINGS, **told, **changes})
    return sciJEPA.pretrain(config, out, resume=out.exists(), progress=False)


def issue_windows(archive: Archive, context: int) -> tuple[xr.Dataset, np.ndarray]:
    """Windows, each as a trajectory of its own, and the steps at which they end."""
    fields = archive.ds[list(archive.variables)]
    (trajectory,), time = archive.series, archive.axes["time"]
    starts = range(0, archive.steps_per_series - context + 1, SPACING)
    parts = [fields.isel({time: slice(start, start + context)}) for start in starts]
    first = parts[0][time]
    windows = xr.concat([part.assign_coords({time: first}) for part in parts], trajectory, join="override")
    ends = [np.arange(archive.repeats) * archive.steps_per_series + start + context - 1 for start in starts]
    return windows.assign_attrs(archive.ds.attrs), np.concatenate(ends)


def representations(
    archive: Archive, models: Mapping[str, sciJEPA.Model], problem: Problem
) -> tuple[dict[str, xr.DataArray], np.ndarray]:
    """What every method knows of each window, dims (sample, token, latent), and the steps at which these end."""
    context = problem.context
    windows, ends = issue_windows(archive, context)
    found = {}
    for name, model in models.items():
        encoder = "online" if name == "random_init" else "target"
        latents = sciJEPA.embed(model, windows, encoder=encoder, progress=False)["latents"]
        found[name] = latents.rename(time="sample").drop_vars("sample").drop_vars(archive.series, errors="ignore")
    jepa = models["jepa_target"]
    tokenizer, width = problem.domain.tokenizer, jepa.jepa.encoder.latent_width
    trained = np.intersect1d(ends, problem.unlabelled)
    controls = {
        "pca": (patch_components(problem.reader, tokenizer, context, trained, width), tokenizer.grid.per_time),
        "moments_and_spectrum": (moments_and_spectrum(problem.reader, context), context),
    }
    for name, (rows, tokens) in controls.items():
        values = np.concatenate([rows.read(part) for part in np.array_split(ends, 20)])
        found[name] = xr.DataArray(values.reshape(len(ends), tokens, -1), dims=("sample", "token", "latent"))
    return found, ends


def parameters_of(archive: Archive, ends: np.ndarray) -> xr.DataArray:
    """The logarithm of what spans a decade, the number itself of what does not; dims (sample, parameter)."""
    names = trajectory_parameters(archive)
    values = np.stack([archive.ds[name].values.astype(float) for name in names], axis=-1)
    wide = values.min(axis=0) > 0
    wide &= values.max(axis=0) > 5 * np.abs(values).min(axis=0)
    values = np.where(wide, np.log(np.where(wide, values, 1)), values)
    labels = [f"log {name}" if log else name for name, log in zip(names, wide, strict=True)]
    series = ends // archive.steps_per_series
    return xr.DataArray(values[series], {"parameter": labels}, ("sample", "parameter"), name="parameters")


def parameter_scores(
    found: Mapping[str, xr.DataArray], target: xr.DataArray, series: np.ndarray, part: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """R2 of every method, probe and parameter on test trajectories (part 2), by window and of trajectory means.

    `part` is 0, 1 or 2 for samples of training, validation and test trajectories; R2 on validation is to choose by.
    Metrics that end in `_gain` are R2 of the JEPA less that of a method, with paired intervals.
    """
    rows = []
    fitted = part < 2
    for kind in PROBES:
        guesses = {}
        for name, latents in found.items():
            pool = "flatten" if name == "moments_and_spectrum" else "moments"
            probe = RegressionProbe(kind=kind, pool=pool, standardise=True, seed=seed)
            probe.fit(latents[fitted], target[fitted], dim="sample", held_out=part[fitted] == 1)
            guesses[name] = probe.predict(latents[part > 0]).transpose("sample", "parameter").values
        for split, number in (("validation", 1), ("test", 2)):
            here = part[part > 0] == number
            predicted = {name: values[here] for name, values in guesses.items()}
            labels = {"probe": kind, "split": split, "seed": seed}
            rows += _r2_rows(target[part == number], predicted, series[part == number], labels)
    return rows


def _r2_rows(
    target: xr.DataArray, predicted: Mapping[str, np.ndarray], series: np.ndarray, labels: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """R2 with intervals over trajectories, of single windows and of the mean prediction of each trajectory."""
    numbers, first = np.unique(series, return_index=True)
    rows = []
    for column, parameter in enumerate(target["parameter"].values.tolist()):
        truth = target.values[:, column]
        draws: dict[str, dict[str, np.ndarray]] = {"r2": {}, "r2_trajectory": {}}
        for name, values in predicted.items():
            guess = values[:, column]
            means = np.array([guess[series == number].mean() for number in numbers])
            draws["r2"][name] = r2_draws(truth, guess, series, draws=DRAWS, seed=0)
            draws["r2_trajectory"][name] = r2_draws(truth[first], means, numbers, draws=DRAWS, seed=0)
        for metric, of in draws.items():
            gains = {name: of["jepa_target"] - own for name, own in of.items() if name != "jepa_target"}
            for suffix, each in (("", of), ("_gain", gains)):
                for name, drawn in each.items():
                    low, high = np.percentile(drawn[1:], [2.5, 97.5])
                    scores = {"metric": metric + suffix, "value": drawn[0], "low": low, "high": high, "n": len(numbers)}
                    rows.append({"variable": parameter, "lead": "0", "method": name, **labels, **scores})
    return rows


def forecast_scores(
    problem: Problem,
    found: Mapping[str, xr.DataArray],
    models: Mapping[str, sciJEPA.Model],
    ends: np.ndarray,
    seed: int,
) -> list[dict[str, Any]]:
    """VRMSE of forecasts by every method, in the manner of The Well."""
    train, validation, test = (np.intersect1d(p, ends) for p in (problem.train, problem.validation, problem.test))
    problem = dataclasses.replace(problem, train=train, validation=validation, test=test)
    shape, reader, leads = problem.domain.tokenizer.grid.space, problem.reader, problem.leads
    place = np.full(len(problem.archive), -1)
    place[ends] = np.arange(len(ends))

    def rows_of(latents: np.ndarray) -> Rows:
        latest = latents[:, -int(np.prod(shape)) :].reshape(len(latents), -1)
        return Rows(lambda steps: latest[place[steps]], latest.shape[1])

    def local(*parts: Rows) -> LocalRidge:
        return LocalRidge.beside_window(problem, parts, shape)

    methods: dict[str, Any] = {
        "persistence": lambda: Persistence(reader, leads),
        "climatology": lambda: Climatology(reader, leads),
        "damped_persistence": lambda: DampedPersistence.fit(reader, leads, problem.train),
        "raw_window": local,
    }
    for name, latents in found.items():
        if name != "moments_and_spectrum":
            methods[name] = lambda values=latents.values: local(rows_of(values))
    for name, own in (("mae_predicted", "mae"), ("jepa_predicted", "jepa_target")):
        methods[name] = lambda own=own: local(
            rows_of(found[own].values), Carrier.bare(problem, models[own]).foreseen_rows
        )
    rows, alive = [], living(problem)
    for name, make in methods.items():
        probe = "none" if name in ("persistence", "climatology", "damped_persistence") else "local"
        errors = vrmse_of(problem, make())
        for metric, counted in (("vrmse", np.ones_like(alive)), ("vrmse_alive", alive)):
            rows += _vrmse_rows(problem, np.where(counted, errors, np.nan), name, probe, metric)
    return [row | {"split": "test", "seed": seed} for row in rows]


def living(problem: Problem) -> np.ndarray:
    """Where the truth varies by more than a hundredth of its usual spread, shape (leads, channels, times).

    Patterns of Gray-Scott die out for some parameters. A field without variance has no VRMSE to speak of: it is the
    error over the constant in its denominator.
    """
    shape = (len(problem.test), len(problem.archive.channels), -1)
    return np.stack([
        fields(problem.reader, lead).read(problem.test).reshape(shape).std(axis=2).T > 0.01 for lead in problem.leads
    ])  # fmt: skip


def _vrmse_rows(problem: Problem, errors: np.ndarray, name: str, probe: str, metric: str) -> list[dict[str, Any]]:
    """The mean over test windows and the leads of a span, of what is not NaN; intervals over whole trajectories."""
    spans = {"1": [0]} | {
        label: [number for number, lead in enumerate(problem.leads) if lead in span]
        for label, span in WELL_WINDOWS.items()
    }
    series = problem.test // problem.archive.steps_per_series
    numbers = np.unique(series)
    draws = np.random.default_rng(0).multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=DRAWS)
    rows = []
    for label, leads in spans.items():
        for channel, own in zip(problem.archive.channels, errors[leads].swapaxes(0, 1), strict=True):
            total, count = (
                np.array([part[:, series == number].sum() for number in numbers])
                for part in (np.nan_to_num(own), np.isfinite(own))
            )
            if not count.any():
                continue
            low, high = np.nanpercentile(draws @ total / np.maximum(draws @ count, 1), [2.5, 97.5])
            scores = {"metric": metric, "value": total.sum() / count.sum(), "low": low, "high": high, "n": count.sum()}
            rows.append({"variable": channel.name, "lead": label, "method": name, "probe": probe, **scores})
    return rows


def judge(path: str, models: Mapping[str, sciJEPA.Model], seed: int, what: str) -> pd.DataFrame:
    """Scores of the models of one seed on one archive: of "forecasts" or of "parameters"."""
    archive, domain = models["jepa_target"].open(path)
    archive = dataclasses.replace(archive, ds=archive.ds.load())
    problems = [Problem.of(domain, archive, leads, [str(lead) for lead in leads], seed=seed) for leads in ROLLOUTS]
    found, ends = representations(archive, models, problems[0])
    if what == "parameters":
        series = ends // archive.steps_per_series
        part = split_numbers(problems[0])[series]
        return pd.DataFrame(parameter_scores(found, parameters_of(archive, ends), series, part, seed))
    near, far = (forecast_scores(problem, found, models, ends, seed) for problem in problems)
    return pd.DataFrame(near + [row for row in far if row["lead"] != "1"])


def compare(archives: Mapping[str, str], out: Path, seeds: list[int], steps: int) -> pd.DataFrame:
    """Train and judge for every archive and seed; what is finished is not done again."""
    tables = []
    for name, path in archives.items():
        for seed in seeds:
            home = out / f"{name}-{seed}"
            jepa, mae = (train(path, home / kind, changes, seed, steps) for kind, changes in KINDS.items())
            models = {"random_init": random_model(jepa), "mae": mae, "jepa_target": jepa}
            for what in ("parameters", "forecasts"):
                if not (home / f"{what}.csv").exists():
                    judge(path, models, seed, what).assign(archive=name).to_csv(home / f"{what}.csv", index=False)
                tables.append(pd.read_csv(home / f"{what}.csv"))
    return pd.concat(tables, ignore_index=True)


def table(scores: pd.DataFrame) -> str:
    """R2 by parameter, method and probe, then VRMSE by variable and lead, as Markdown; means over seeds.

    - and + mark what is worse and better than the JEPA's with the same probe, with an interval that excludes zero.
    """
    test = scores[scores["split"] == "test"]
    lines: list[str] = []
    for metric in ("r2", "r2_trajectory"):
        gains = test[test["metric"] == f"{metric}_gain"].groupby(["archive", "variable", "method", "probe"])
        ends = gains[["low", "high"]].mean()
        lines += _head(METRICS[metric], ["archive", "parameter", "method", *PROBES])
        told = test[test["metric"] == metric]
        for key, rows in told.groupby(["archive", "variable", "method"], sort=False):
            by = rows.groupby("probe")[["value", "low", "high"]].mean()
            cells = [f"{by.value[kind]:.3f} ({by.low[kind]:.3f} to {by.high[kind]:.3f})" for kind in PROBES]
            marks = [_mark(ends.loc[(*key, kind)]) if (*key, kind) in ends.index else "" for kind in PROBES]
            lines.append(_line([*key, *(cell + mark for cell, mark in zip(cells, marks, strict=True))]))
    for metric in ("vrmse", "vrmse_alive"):
        told = test[test["metric"] == metric]
        if told.empty:
            continue
        leads = list(dict.fromkeys(told["lead"].astype(str)))
        lines += _head(METRICS[metric], ["archive", "variable", "method", *leads])
        for key, rows in told.groupby(["archive", "variable", "method"], sort=False):
            by_lead = rows.groupby(rows["lead"].astype(str))["value"].mean()
            lines.append(_line([*key, *(f"{by_lead[lead]:.3f}" if lead in by_lead else "" for lead in leads)]))
    return "\n".join(lines[1:]) + "\n"


def _mark(gain: pd.Series) -> str:
    return " -" if gain["low"] > 0 else " +" if gain["high"] < 0 else ""


def _head(title: str, columns: list[str]) -> list[str]:
    return ["", f"**{title}**", "", _line(columns), "|" + " --- |" * len(columns)]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


METRICS = {
    "r2": "R2 of a parameter, from one window",
    "r2_trajectory": "R2 of a parameter, from the mean prediction over the windows of a trajectory",
    "vrmse": "VRMSE by steps ahead",
    "vrmse_alive": "VRMSE by steps ahead, where the truth varies by more than a hundredth of its usual spread",
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, default=Path("runs/physics"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=6000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    archives = dict(part.split("=", 1) for part in arguments.archive)
    scores = compare(archives, arguments.out, arguments.seeds, arguments.steps)
    scores.to_csv(arguments.out / "scores.csv", index=False)
    (arguments.out / "table.md").write_text(table(scores))
    print(table(scores))
