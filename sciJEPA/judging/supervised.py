"""The same architecture, trained from scratch on the forecast itself: a ceiling for what a frozen encoder may reach.

Arrives: a problem and a run's configuration. Leaves: a `Forecaster` whose weights are those of the step with the
smallest validation error. Each token of the issue time answers for its own patch at every lead, so that the head adds
few parameters. Batches are a function of the step, so a killed training goes on. We decided against a learning rate of
its own: a ceiling that is tuned further than the model below it would hide how near they are.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sciJEPA.config import RunConfig
from sciJEPA.encoder import Encoder
from sciJEPA.hub import Model, build_jepa
from sciJEPA.judging.problem import Problem
from sciJEPA.tokenizers.base import Batch, Tokenizer

CHECKS = 20
"""The validation error is looked at so many times in a training."""
CHECK_TIMES = 512
"""At most so many validation times, evenly spaced."""
LAST, BEST = "last.pt", "best.pt"


class PatchHead(nn.Module):
    """Latents of the issue time's tokens -> their patches at every lead, zero (climatology, or the level) at first."""

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, leads: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = list(channels)
        self.encoder, self.tokenizer, self.leads = encoder, tokenizer, leads
        self.norm = nn.LayerNorm(encoder.width)
        self.shape = (tokenizer.channels_per_token, tokenizer.patch_size)
        self.out = nn.Linear(encoder.width, leads * self.shape[0] * self.shape[1])
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, batch: Batch) -> Tensor:
        """Fields (B, leads, V, *space) of the channels that are forecast."""
        tokens = self.tokenizer(batch)
        places = self.tokenizer.grid.per_time
        latest = self.norm(self.encoder(tokens)[:, -places:])
        patches = self.out(latest).unflatten(-1, (self.leads, *self.shape))
        if tokens.instance is not None:
            location, scale = tokens.instance[:, -places:, :, None, None, None].unbind(2)
            patches = patches * scale + location
        # A patch may hold several steps; its last one is the forecast.
        fields = [self.tokenizer.unpatchify(patches[:, :, lead])[:, :, -1] for lead in range(self.leads)]
        return torch.stack(fields, dim=1)[:, :, self.channels]


@dataclass(frozen=True)
class Supervised:
    """A trained network as a method of the panel."""

    problem: Problem
    network: PatchHead

    @classmethod
    def fit(
        cls, problem: Problem, config: RunConfig, model: Model, out: str | os.PathLike, *, progress: bool = True
    ) -> "Supervised":
        """Train, or go on with a training in the folder `out`, or read the finished one.

        As many steps, windows a step and the same schedule as the run's. What is minimised is the weighted squared
        error of standardised anomalies at all leads; missing outcomes weigh nothing.
        """
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        network = cls._network(problem, config, model)
        training = _Training(problem, config, network, folder)
        training.run(progress)
        network.load_state_dict(torch.load(folder / BEST, map_location="cpu", weights_only=True))
        return cls(problem, network.cpu().eval())

    @staticmethod
    def _network(problem: Problem, config: RunConfig, model: Model) -> PatchHead:
        tokenizer = problem.inputs[0].tokenizer
        tokenizers = {problem.domain.name: tokenizer}
        encoder = build_jepa(config, {**model.jepa.tokenizers, **tokenizers}).encoder
        channels = [tokenizer.channels.index(channel.name) for channel in problem.archive.channels]
        return PatchHead(encoder, tokenizer, len(problem.leads), channels)

    def predict(self, times: np.ndarray) -> list[np.ndarray]:
        """Forecasts of each lead."""
        with torch.inference_mode():
            blocks = [
                self.network(_windows(self.problem, part)) for part in np.array_split(times, len(times) // 64 + 1)
            ]
        fields = torch.cat(blocks).flatten(2).numpy()
        return [fields[:, lead] for lead in range(len(self.problem.leads))]


def _windows(problem: Problem, steps: np.ndarray) -> Batch:
    context = problem.context
    batch = problem.input_reader.read(steps - context + 1, context)
    return dataclasses.replace(batch, domain=problem.domain.name)


class _Training:
    """Optimizer steps from a batch of issue times each."""

    def __init__(self, problem: Problem, config: RunConfig, network: PatchHead, folder: Path) -> None:
        from sciJEPA.pretrain import learning_rate_factor

        self.problem, self.training, self.folder = problem, config.training, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(self.device)
        self.size = min(problem.domain.config.batch_size or self.training.batch_size, len(problem.train))
        matrices = [p for p in network.parameters() if p.ndim > 1]
        vectors = [p for p in network.parameters() if p.ndim <= 1]
        decay = [
            {"params": matrices, "weight_decay": self.training.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(decay, lr=self.training.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, self.training.steps, self.training.warmup)
        )
        validation = problem.validation
        self.checked = validation[:: -(-len(validation) // CHECK_TIMES)]
        weights = problem.weights.reshape(len(problem.archive.channels), *problem.archive.shape)
        self.weights = torch.from_numpy(weights / weights.mean()).float().to(self.device)
        self.step, self.best = 0, float("inf")

    def run(self, progress: bool) -> None:
        """All steps that are left."""
        last = self.folder / LAST
        if last.is_file():
            self._restore(torch.load(last, map_location=self.device, weights_only=True))
        else:
            self._check()
        every = max(1, self.training.steps // CHECKS)
        shown, total = None if progress else True, self.training.steps
        with tqdm(total=total, initial=self.step, desc="supervised", disable=shown, file=sys.stderr) as bar:
            while self.step < self.training.steps:
                self._advance()
                bar.update(1)
                if self.step % every == 0 or self.step == self.training.steps:
                    self._check()

    def _advance(self) -> None:
        per_epoch = max(1, len(self.problem.train) // self.size)
        epoch, place = divmod(self.step, per_epoch)
        order = np.random.default_rng([self.problem.seed, 4, epoch]).permutation(len(self.problem.train))
        self.network.train()
        self.optimizer.zero_grad()
        loss = self._loss(self.problem.train[order[place * self.size : (place + 1) * self.size]])
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.training.clip)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1

    def _loss(self, steps: np.ndarray) -> Tensor:
        steps = np.sort(steps)
        predicted = self.network(_windows(self.problem, steps).to(self.device))
        truth, seen = self._outcomes(steps)
        weights = self.weights if seen is None else self.weights * seen
        return ((predicted - truth) ** 2 * weights).sum() / weights.expand_as(predicted).sum().clamp_min(1e-6)

    def _outcomes(self, steps: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Fields (B, leads, V, *space) and where they were observed."""
        batches = [self.problem.reader.read(steps + lead, 1) for lead in self.problem.leads]
        truth = torch.stack([batch.values[:, :, 0] for batch in batches], dim=1).to(self.device)
        if all(batch.observed is None for batch in batches):
            return truth, None
        flags = [
            torch.ones_like(b.values[:, :, 0]) if b.observed is None else b.observed[:, :, 0].float() for b in batches
        ]
        return truth, torch.stack(flags, dim=1).to(self.device)

    @torch.no_grad()
    def _check(self) -> None:
        """Validation error; keep the weights if they are the best so far, and the state to go on from."""
        self.network.eval()
        parts = _parts(self.checked, self.size)
        error = sum(float(self._loss(part)) * len(part) for part in parts) / len(self.checked)
        if error < self.best:
            self.best = error
            _save(self.network.state_dict(), self.folder / BEST)
        _save(self._state(), self.folder / LAST)

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "best": self.best,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.best = state["step"], state["best"]


def _parts(steps: np.ndarray, size: int) -> Sequence[np.ndarray]:
    return np.array_split(steps, max(1, len(steps) // size))


def _save(state: dict[str, Any], path: Path) -> None:
    partial = path.with_suffix(".partial")
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()
    torch.save(state, partial)
    os.replace(partial, path)
