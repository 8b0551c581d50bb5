"""Objective, masks and half-life, one at a time: is the default what wins, and does it beat what it has to?

    python analysis/ablation.py --archive pressure=ncep_slp_natl_daily_2001_2010.nc --archive flow=kolmogorov.nc \
        --archive transformer=ETTh1.csv --out runs/ablation --seeds 0 1 2 --steps 600

Every variant differs from the preset of the archive's kind in one thing (and from that of simulations in the patches
that won here: `BASE`) and has the same number of steps. A cell is a variant, an archive and a seed: a frozen encoder,
judged by ridge on its latents of the issue time. Variants are to be chosen by their validation error; the test error
stands beside it. `--only default mae` leaves the others out, and what is finished is not done again, so that several
processes can share the work. `analysis/results/ablation_ten_times` was made with --steps 6000 on a GPU.

Writes `scores.csv` (every number) and `table.md` into the output folder; the committed ones are in
`analysis/results/ablation`. The archives: datasets/ncep-slp-north-atlantic, datasets/ett, and Kolmogorov flow from the
solver Exponax (MIT).
"""

import argparse
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import sciJEPA
from sciJEPA.forecasting.labelling import latent_rows
from sciJEPA.hub import random_model
from sciJEPA.judging.baselines import Climatology
from sciJEPA.panel import opened_problem
from sciJEPA.probes import Ridge
from sciJEPA.scoring.intervals import block_bootstrap, block_length
from sciJEPA.training.monitor import effective_rank

# Preset and leads in steps of the archive, by kind.
SETTINGS: dict[str, tuple[str, list[int]]] = {
    "grid": ("slp-north-atlantic", [1, 2, 3, 5]),
    "box": ("simulation-tiny", [1, 2, 4, 8]),
    "stations": ("sensors-tiny", [1, 6, 12, 24]),
}
MASKS = {"masking.forecast": 0, "masking.blocks": 0, "masking.random": 0}
BASE: dict[str, Any] = {"objective.reconstruction": 0}
"""What all variants share beside their preset: that of simulations has patches since they won on the flow."""
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "untrained": {},
    "mae": {"objective.target": "mae"},
    "mae, random masks": {"objective.target": "mae", **MASKS, "masking.random": 1},
    "ema, no regulariser": {"objective.variance": 0, "objective.covariance": 0},
    "ema, strong regulariser": {"objective.variance": 1, "objective.covariance": 0.04},
    "ema and patches": {"objective.reconstruction": 1},
    "vicreg": {"objective.target": "vicreg"},
    "sigreg": {"objective.target": "sigreg"},
    "salt": {"objective.target": "salt", "objective.teacher_steps": "half"},
    "masks: blocks": {**MASKS, "masking.blocks": 1},
    "masks: random": {**MASKS, "masking.random": 1},
    "masks: half forecast, half blocks": {"masking.blocks": 1},
    "masks: twice as far ahead": {"data.window": "far"},
    "half-life 0.02": {"training.half_life": 0.02},
    "half-life 0.4": {"training.half_life": 0.4},
}
"""What differs from the preset. Hiding channels is not among them: in these archives no two channels share a token."""
RANKS = ("rank", "rank_target")
RANKED_VALUES = 2**22
"""Numbers among the latents from which the rank is taken, at most: every few times are enough."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One archive, variant and seed, and where what is computed for it is kept."""

    name: str
    path: str
    variant: str
    seed: int
    folder: Path

    @property
    def errors(self) -> Path:
        """Per-time squared errors of the finished cell."""
        return self.folder / "errors.npz"

    def config(self, training: Mapping[str, Any]) -> Any:
        """The preset with what the variant changes."""
        preset, _ = SETTINGS[sciJEPA.open_archive(self.path).space.kind]
        changes = {"data.archive": self.path, "seed": self.seed, **training, **BASE, **VARIANTS[self.variant]}
        if changes.get("objective.teacher_steps") == "half":
            changes["objective.teacher_steps"] = training["training.steps"] // 2
        if changes.get("data.window") == "far":
            data = sciJEPA.load_config(preset).data
            changes["data.window"] = 2 * data.window - data.context
        return sciJEPA.load_config(preset, changes)

    def run(self, training: Mapping[str, Any]) -> None:
        """Train, embed, probe; nothing where it is finished."""
        if self.errors.exists():
            return
        config = self.config(training if self.variant != "untrained" else {**training, "training.steps": 1})
        run = self.folder / "run"
        model = sciJEPA.pretrain(config, run, resume=run.exists(), progress=False)
        if self.variant == "untrained":
            model = random_model(model)
        judge(model, self)


def judge(model: sciJEPA.Model, cell: Cell) -> None:
    """Errors of ridge on frozen latents, on validation and on test times, and the effective rank of these latents."""
    archive = sciJEPA.open_archive(cell.path)
    _, steps = SETTINGS[archive.space.kind]
    leads = [f"{step * archive.cadence:g}H" if archive.calendar != "none" else str(step) for step in steps]
    problem = opened_problem(model, cell.path, None, leads)
    latents = sciJEPA.embed(model, problem.archive, lazy=False, progress=False)
    ridge = problem.fit(Ridge(), latent_rows([latents], problem.archive))
    climatology = Climatology(problem.reader, problem.leads)
    series = len(np.unique(problem.test // problem.archive.steps_per_series))
    kept: dict[str, Any] = {"leads": leads, "series": series}
    for split, times in (("validation", problem.validation), ("test", problem.test)):
        part = dataclasses.replace(problem, test=times)
        kept[split], kept[f"{split}_climatology"] = (part.judge(m).squared_error for m in (ridge, climatology))
    width = model.jepa.encoder.width
    some = latents["latents"].values[:: 1 + latents["latents"].size // RANKED_VALUES, :, -width:]
    kept |= {"width": width, "rank": effective_rank(torch.from_numpy(some.reshape(-1, width)))}
    if cell.variant != "untrained":
        last = pd.read_csv(cell.folder / "run" / "metrics.csv").iloc[-1]
        kept |= {name: last[name] for name in ("rank_online", "probe_error")}
        if model.config.objective.target != "mae":
            kept["rank_target"] = last["rank_target"]
    partial = cell.folder / "partial.npz"
    np.savez(partial, **kept)
    os.replace(partial, cell.errors)


def tidy(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row a number of these cells: the error at each lead (mean over variables), and the ranks."""
    rows = []
    for cell in cells:
        labels = {"archive": cell.name, "variant": cell.variant, "seed": cell.seed}
        with np.load(cell.errors) as kept:
            for split in ("validation", "test"):
                for lead, value in zip(kept["leads"], _ratios(kept[split], kept[f"{split}_climatology"]), strict=True):
                    rows.append(labels | {"metric": f"{split}_rmse_over_climatology", "lead": lead, "value": value})
            for name in ("width", "rank", "rank_target", "rank_online", "probe_error"):
                if name in kept:
                    rows.append(labels | {"metric": name, "lead": "", "value": float(kept[name])})
    return pd.DataFrame(rows)


def _ratios(errors: np.ndarray, climatology: np.ndarray) -> np.ndarray:
    """RMSE / climatology of each lead, mean over variables, from squared errors (leads, variables, times)."""
    return np.sqrt(errors.mean(axis=-1) / climatology.mean(axis=-1)).mean(axis=1)


def difference(cells: Sequence[Cell], others: Sequence[Cell]) -> tuple[float, float, float]:
    """Test error of these cells less that of the others, and its 95 % interval from a paired block bootstrap.

    An error is RMSE / climatology, mean over leads and variables, of the squared errors' mean over the seeds that both
    sides have. Where the times are those of several trajectories, whole trajectories are drawn.
    """
    shared = {cell.seed for cell in cells} & {cell.seed for cell in others}
    sides = []
    for side in (cells, others):
        squared = [np.load(cell.errors)["test"] for cell in side if cell.seed in shared]
        sides.append(np.mean(squared, axis=0).reshape(-1, squared[0].shape[-1]))
    first = np.load(cells[0].errors)
    climatology, series = first["test_climatology"].reshape(sides[0].shape), int(first["series"])
    statistics = np.concatenate([*sides, climatology])
    statistics = statistics[:, np.isfinite(statistics).all(axis=0)]

    def formula(means: np.ndarray) -> np.ndarray:
        own, other, normal = np.split(means, 3)
        return (np.sqrt(own / normal) - np.sqrt(other / normal)).mean(axis=0)

    block = statistics.shape[1] // series if series > 1 else block_length(statistics)
    low, high = block_bootstrap(statistics, formula, block=block)
    return float(formula(statistics.mean(axis=1))), float(low), float(high)


def table(scores: pd.DataFrame, cells: Sequence[Cell]) -> str:
    """A line for each archive and variant as Markdown.

    Errors are means over leads, then over seeds, with their range; ranks are shares of the width: of the last block's
    outputs on issue windows, and of what the last training step predicted.
    """
    head = ["archive", "variant", "seeds", "validation", "test", "test, less the default", "rank: latents", "targets"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    errors = scores[scores["lead"] != ""].groupby(["archive", "variant", "metric", "seed"])["value"].mean()
    plain = scores[scores["lead"] == ""].groupby(["archive", "variant", "metric"])["value"].mean()
    for name, variant in dict.fromkeys((cell.name, cell.variant) for cell in cells):
        own = [cell for cell in cells if (cell.name, cell.variant) == (name, variant)]
        usual = [cell for cell in cells if (cell.name, cell.variant) == (name, "default")]
        parts = [errors[name, variant, f"{split}_rmse_over_climatology"] for split in ("validation", "test")]
        row = [name, variant, str(len(own)), *map(_with_range, parts)]
        shared = {cell.seed for cell in own} & {cell.seed for cell in usual}
        row.append("" if variant == "default" or not shared else _signed(difference(own, usual)))
        shares = [plain.get((name, variant, rank), np.nan) / plain[name, variant, "width"] for rank in RANKS]
        row += ["" if np.isnan(share) else f"{share:.2f}" for share in shares]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _signed(numbers: tuple[float, float, float]) -> str:
    return "{:+.4f} ({:+.4f} to {:+.4f})".format(*numbers)


def _with_range(values: pd.Series) -> str:
    spread = f" ({values.min():.4f} to {values.max():.4f})" if len(values) > 1 else ""
    return f"{values.mean():.4f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    arguments = parser.parse_args()
    archives = dict(part.split("=", 1) for part in arguments.archive)
    training = {"training.steps": arguments.steps, "training.batch_size": arguments.batch_size}
    cells = [
        Cell(name, path, variant, seed, arguments.out / name / f"{re.sub(r'[^a-z0-9.]+', '-', variant)}-{seed}")
        for name, path in archives.items()
        for variant in VARIANTS
        for seed in arguments.seeds
    ]
    for cell in cells:
        if cell.variant in arguments.only:
            cell.run(training)
    finished = [cell for cell in cells if cell.errors.exists()]
    scores = tidy(finished)
    scores.to_csv(arguments.out / "scores.csv", index=False)
    (arguments.out / "table.md").write_text(table(scores, finished))
    print(table(scores, finished))


if __name__ == "__main__":
    main()
