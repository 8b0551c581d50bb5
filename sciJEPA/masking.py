"""Tokens -> mask: which tokens are context, which are targets.

Arrives: the token grid and a seed per sample. Leaves: a MaskPlan of exact size, so that a batch needs no padding and no
cutting. We decided against drawing rectangles and cutting the batch to its smallest (index lists are in raster order,
so the cut starves the last rows and the latest times), and against masks from a shared random stream (they would depend
on the number of workers).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sciJEPA.errors import UserError

Strategy = Literal["forecast", "blocks", "random"]


@dataclass(frozen=True)
class TokenGrid:
    """Shape of the tokens of one window; tokens are numbered time-major, then latitude, then longitude."""

    times: int
    rows: int
    columns: int
    context_times: int
    periodic: bool = False

    @property
    def per_time(self) -> int:
        """Tokens of one time."""
        return self.rows * self.columns

    @property
    def count(self) -> int:
        """Tokens of the window."""
        return self.times * self.per_time


@dataclass(frozen=True)
class MaskPlan:
    """Token numbers that are visible, and those to be predicted, for each sample of a batch."""

    context: Int[Tensor, "B C"]
    target: Int[Tensor, "B M"]
    strategy: str


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How targets are drawn; weights need not sum to one, a weight of zero turns a strategy off."""

    forecast: float = 1.0
    """Weight of past -> future: context is the issue window, targets are tokens after it."""
    blocks: float = 0.0
    """Weight of spatial blocks hidden through the whole issue window."""
    random: float = 0.0
    """Weight of tokens hidden independently at random."""
    forecast_share: float = 1.0
    """Share of the future tokens that are targets (drawn at random when below one)."""
    context_share: float = 1.0
    """Share of the issue window's tokens that past -> future shows; below one it augments a small archive."""
    hidden_share: float = 0.5
    """Share of the tokens that blocks and random hide."""
    block_rows: int = 2
    """Height of a block in tokens."""
    block_columns: int = 2
    """Width of a block in tokens."""

    def __post_init__(self) -> None:
        weights = (self.forecast, self.blocks, self.random)
        if min(weights) < 0 or sum(weights) == 0:
            raise UserError(
                f"masking needs weights of at least zero with one above it, got forecast={self.forecast}, "
                f"blocks={self.blocks}, random={self.random}; set one of them to 1."
            )
        for name in ("forecast_share", "context_share", "hidden_share"):
            share = getattr(self, name)
            if not 0 < share <= 1 or (name == "hidden_share" and share == 1):
                raise UserError(f"masking.{name} must lie between 0 and 1, got {share}; a usual value is 0.5.")
        if min(self.block_rows, self.block_columns) < 1:
            raise UserError(
                f"masking blocks need at least one row and column, got {self.block_rows} x {self.block_columns}."
            )

    @property
    def mixture(self) -> dict[Strategy, float]:
        """Strategies in use and their probability."""
        weights: dict[Strategy, float] = {"forecast": self.forecast, "blocks": self.blocks, "random": self.random}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items() if weight > 0}


def forecast_mask(grid: TokenGrid, config: MaskingConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Past -> future: fixed numbers of the issue window's tokens are context and of the later tokens are targets."""
    past = grid.context_times * grid.per_time
    context = _share_of(np.arange(past), config.context_share, rng)
    return context, _share_of(np.arange(past, grid.count), config.forecast_share, rng)


def _share_of(tokens: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A fixed share of the tokens, at least one, in order."""
    count = max(1, round(share * len(tokens)))
    return tokens if count == len(tokens) else np.sort(rng.permutation(tokens)[:count])


def random_mask(grid: TokenGrid, config: MaskingConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A fixed share of the tokens of the issue window, drawn without replacement."""
    tokens = rng.permutation(grid.context_times * grid.per_time)
    count = _hidden_count(len(tokens), config)
    return np.sort(tokens[count:]), np.sort(tokens[:count])


def block_mask(grid: TokenGrid, config: MaskingConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles in space, hidden through the whole issue window (tubes), until a fixed share of the places is hidden.

    Rectangles wrap around both axes; one that leaves through a wall comes in at the opposite one, in two pieces. So no
    place differs from another, and all are hidden equally often. (Cut at the walls, rectangles are smaller there and
    lose less in the thinning: places beside a wall were hidden up to 1.6 times as often as others.) The last rectangle
    is thinned at random to the exact size.
    """
    count = _hidden_count(grid.per_time, config)
    hidden = np.zeros((grid.rows, grid.columns), dtype=bool)
    while (missing := count - int(hidden.sum())) > 0:
        fresh = _block(grid, config, rng) & ~hidden
        places = np.flatnonzero(fresh)
        hidden.ravel()[rng.permutation(places)[:missing]] = True
    times = np.arange(grid.context_times)[:, None] * grid.per_time
    places = hidden.ravel()
    return (times + np.flatnonzero(~places)).ravel(), (times + np.flatnonzero(places)).ravel()


def _block(grid: TokenGrid, config: MaskingConfig, rng: np.random.Generator) -> np.ndarray:
    """One rectangle as a boolean (rows, columns), uniform over all offsets."""
    rows, columns = np.zeros(grid.rows, dtype=bool), np.zeros(grid.columns, dtype=bool)
    rows[(rng.integers(grid.rows) + np.arange(config.block_rows)) % grid.rows] = True
    columns[(rng.integers(grid.columns) + np.arange(config.block_columns)) % grid.columns] = True
    return rows[:, None] & columns[None, :]


def _hidden_count(tokens: int, config: MaskingConfig) -> int:
    return min(max(1, round(config.hidden_share * tokens)), tokens - 1)


STRATEGIES: dict[str, Callable[[TokenGrid, MaskingConfig, np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "forecast": forecast_mask,
    "blocks": block_mask,
    "random": random_mask,
}


@dataclass(frozen=True)
class Masker:
    """Draws the MaskPlan of a batch; a sample's mask depends on seed, epoch and sample number and on nothing else."""

    grid: TokenGrid
    config: MaskingConfig = field(default_factory=MaskingConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.config.forecast > 0 and self.grid.times <= self.grid.context_times:
            raise UserError(
                f"masking.forecast needs steps after the issue window, but the window of {self.grid.times} token steps "
                f"has {self.grid.context_times} of them in the issue window; make data.window longer than data.context "
                "or set masking.forecast to 0."
            )
        if self.config.blocks > 0 and self.grid.per_time < 2:
            raise UserError("masking.blocks needs at least 2 patches in space; use smaller patches.")
        if self.config.random > 0 and self.grid.context_times * self.grid.per_time < 2:
            raise UserError("masking.random needs at least 2 tokens in the issue window; use smaller patches.")

    def strategy(self, step: int) -> str:
        """The strategy of a whole batch (one per batch keeps sizes equal), from seed and step."""
        names = list(self.config.mixture)
        rng = np.random.default_rng([self.seed, 1, step])
        return str(rng.choice(names, p=list(self.config.mixture.values())))

    def __call__(self, samples: Sequence[int], *, epoch: int, step: int) -> MaskPlan:
        """The masks of the samples of one batch.

        Parameters
        ----------
        samples
            Sample numbers (window starts), length B.
        epoch, step
            Where the run stands: the epoch enters each sample's seed, the step chooses the strategy.
        """
        name = self.strategy(step)
        pairs = [
            STRATEGIES[name](self.grid, self.config, np.random.default_rng([self.seed, 2, epoch, int(sample)]))
            for sample in samples
        ]
        context, target = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
        return MaskPlan(context=context, target=target, strategy=name)
