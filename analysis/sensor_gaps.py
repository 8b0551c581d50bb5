"""Sensors with gaps: how a probe degrades as points go missing, and whether filling them in first would be better.

    python analysis/sensor_gaps.py ETTh1.csv --out runs/gaps --seeds 0 1 2

Points of the series are dropped at random (each channel on its own), the same share from the windows that the probe is
fitted on, tuned on and judged on; the outcomes are complete. The encoder is given what is left with its flags, or the
window is filled in first, by the last value carried on or by straight lines, and then passes for complete. A line is
drawn between values of the issue window alone: what has not been observed since is carried on. Either way is judged
with an encoder that never saw a gap, and with one from which points were hidden in training (`masking.points`). The
probe reads the latents of the last day of eight: those of all days are more than there are issue times to fit them on.
Writes `scores.csv` and `table.md` (RMSE / climatology, mean over channels and over draws of the points; mean of the
seeds and their range) into the output folder; the committed ones are in `analysis/results/sensor_gaps`.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import sciJEPA
from sciJEPA.loader import WindowReader
from sciJEPA.probes import Ridge, rows_of
from sciJEPA.tokenizers.base import Batch
from sciJEPA.tokenizers.sensors import bridged

SHARES = [0.0, 0.25, 0.5, 0.75]
LEADS = [6, 24]
EVERY = 3
"""Issue times are so many hours apart."""
ENCODERS = {"complete series": 0.0, "hidden points": 0.75}
"""What an encoder is trained on, and `masking.points`."""
WAYS = ["masked", "interpolated", "last value"]
DRAWS = 3
"""How often the points that are missing are drawn, for each seed: which ones these are matters as much as the seed."""
BATCH = 64


def train(archive: str, out: Path, points: float, seed: int, training: dict[str, Any]) -> sciJEPA.Model:
    """A run of its own; a finished one is kept."""
    tree = {
        "seed": seed,
        "data": {"archive": archive, "window": 288, "context": 192},
        "tokenizer": {"kind": "sensors", "patch_time": 24},
        "masking": {"points": points},
        "training": training,
    }
    return sciJEPA.pretrain(sciJEPA.config_from_dict(tree), out, resume=out.exists(), progress=False)


def given(batch: Batch, observed: torch.Tensor, way: str) -> Batch:
    """The batch of issue windows with what is left of its values, as it is or filled in."""
    left = batch.values.masked_fill(~observed, 0)
    if way == "masked":
        return dataclasses.replace(batch, values=left, observed=observed)
    filled = bridged(left, observed)
    if way == "last value":
        step = torch.arange(left.shape[-1]).expand(left.shape).masked_fill(~observed, -1)
        last = step.cummax(dim=-1).values
        # Before the first observed value its own, which `bridged` has there.
        filled = torch.where(last >= 0, left.gather(-1, last.clamp(min=0)), filled)
    return dataclasses.replace(batch, values=filled)


class Problem:
    """Issue times of an archive, their splits and outcomes, and the latents of a model."""

    def __init__(self, model: sciJEPA.Model, archive: str) -> None:
        self.model = model
        opened, self.domain = model.open(archive)
        self.reader = WindowReader(opened, self.domain.normalizer)
        self.context = self.domain.config.data.context
        ends = [int(round(share * len(opened), 6)) for share in (0.7, 0.8, 1.0)]
        self.issue = np.arange(self.context - 1, len(opened) - max(LEADS), EVERY)
        known = self.issue + max(LEADS)  # when the last outcome is
        self.train, self.validation = known < ends[0], (self.issue >= ends[0]) & (known < ends[1])
        self.test = self.issue >= ends[1]
        self.truth = self.reader.steps(0, len(opened))[0]

    def latents(self, share: float, way: str, seed: tuple[int, int]) -> np.ndarray:
        """Latents of the last day of all issue windows with this share of points missing, (times, token and latent)."""
        observed = np.random.default_rng(seed).random(self.truth.shape) >= share
        return np.concatenate([latents.numpy() for latents in self._batches(observed, way, share == 0)])

    def _batches(self, observed: np.ndarray, way: str, complete: bool) -> Iterator[torch.Tensor]:
        for first in range(0, len(self.issue), BATCH):
            starts = self.issue[first : first + BATCH] + 1 - self.context
            batch = dataclasses.replace(self.reader.read(starts, self.context), domain=self.domain.name)
            flags = np.stack([observed[start : start + self.context].T for start in starts])
            with torch.inference_mode():
                batch = batch if complete else given(batch, torch.from_numpy(flags), way)
                latents = self.model.jepa.encode(batch, tokenizer=self.domain.tokenizer).float()
                yield latents[:, -self.domain.tokenizer.grid.per_time :].flatten(1)

    def score(self, latents: np.ndarray) -> list[float]:
        """RMSE over that of the mean of the training outcomes, for each lead; mean over channels."""
        targets = [rows_of(self.truth[self.issue + lead]) for lead in LEADS]
        train, validation, test = map(np.flatnonzero, (self.train, self.validation, self.test))
        channels = self.truth.shape[1]
        probe = Ridge().fit(rows_of(latents), targets, train, validation, weights=np.ones(channels), groups=channels)
        scores = []
        for target, forecast in zip(targets, probe.predict(test), strict=True):
            truth = target.read(test)
            usual = ((truth - target.read(train).mean(axis=0)) ** 2).mean(axis=0)
            scores.append(float(np.sqrt(((truth - forecast) ** 2).mean(axis=0) / usual).mean()))
        return scores


def compare(archive: str, out: Path, seed: int, training: dict[str, Any]) -> pd.DataFrame:
    """Scores of one seed: every encoder, share and way of giving what is left. What was computed once is kept."""
    rows = []
    for encoder, points in ENCODERS.items():
        run = out / f"{encoder.replace(' ', '-')}-{seed}"
        file = run / "gaps.csv"
        if not file.exists():
            problem = Problem(train(archive, run, points, seed, training), archive)
            cells = [(0.0, WAYS[0], 0), *itertools.product(SHARES[1:], WAYS, range(DRAWS))]
            scores = [
                (share, way, draw, *problem.score(problem.latents(share, way, (seed, draw))))
                for share, way, draw in cells
            ]
            wide = pd.DataFrame(scores, columns=["missing", "way", "draw", *LEADS])
            wide.melt(["missing", "way", "draw"], var_name="lead_hours").to_csv(file, index=False)
        rows.append(pd.read_csv(file).assign(encoder=encoder, seed=seed))
    return pd.concat(rows, ignore_index=True)


def table(scores: pd.DataFrame) -> str:
    """One line an encoder, way and lead, one column a share, as Markdown."""
    head = ["lead", "trained on", "input", *(f"{share:.0%} missing" for share in SHARES)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    order = ["lead_hours", "encoder", "way"]
    means = scores.groupby([*order, "missing", "seed"])["value"].mean().unstack("missing")
    for (lead, encoder), both in means.groupby(level=order[:2]):
        rows = {way: both.xs((lead, encoder, way)) for way in WAYS}
        rows["masked less interpolated"] = rows["masked"] - rows["interpolated"]
        for way, values in rows.items():
            cells = [_cell(values[share].dropna(), "+" if "less" in way else "") for share in SHARES]
            lines.append("| " + " | ".join([f"{lead} h", str(encoder), way, *cells]) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: pd.Series, sign: str = "") -> str:
    return f"{values.mean():{sign}.3f} ({values.min():{sign}.3f} to {values.max():{sign}.3f})" if len(values) else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("--out", type=Path, default=Path("runs/gaps"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    training = {"steps": arguments.steps, "batch_size": arguments.batch_size}
    tables = [compare(arguments.archive, arguments.out, seed, training) for seed in arguments.seeds]
    scores = pd.concat(tables, ignore_index=True)
    scores.to_csv(arguments.out / "scores.csv", index=False)
    (arguments.out / "table.md").write_text(table(scores))
    print(table(scores))
