"""Tokens -> mask: which tokens are context, which are targets.

Arrives: the token grid and a seed per sample. Leaves: a MaskPlan of exact size, so that a batch needs no padding and no
cutting. We decided against drawing rectangles and cutting the batch to its smallest (index lists are in raster order,
so the cut starves the last rows and the latest times), and against masks from a shared random stream (they would depend
on the number of workers).
"""

import math
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
    """Shape of the tokens of one window; tokens are numbered time-major, then as in an array of shape `space`.

    Attributes
    ----------
    times, context_times : token steps of the window, and of the issue window that it begins with.
    space : tokens along each dimension of space: rows and columns of a grid, stations, or any number of dimensions.
    periodic : the last dimension closes a circle.
    ordered : neighbours in `space` are neighbours in the world; stations have no such order.
    """

    times: int
    space: tuple[int, ...]
    context_times: int
    periodic: bool = False
    ordered: bool = True

    @property
    def per_time(self) -> int:
        """Tokens of one time."""
        return math.prod(self.space)

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
    """Weight of blocks of places (or of stations) hidden through the whole issue window."""
    random: float = 0.0
    """Weight of tokens hidden independently at random."""
    forecast_share: float = 1.0
    """Share of the future tokens that are targets (drawn at random when below one)."""
    context_share: float = 1.0
    """Share of the issue window's tokens that past -> future shows; below one it augments a small archive."""
    hidden_share: float = 0.5
    """Share of the tokens that blocks and random hide."""
    block_rows: int = 2
    """Length of a block in tokens, along all dimensions of space but the last."""
    block_columns: int = 2
    """Length of a block in tokens along the last dimension of space."""

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
    """Boxes in space, hidden through the whole issue window (tubes), until a fixed share of the places is hidden.

    Places without an order (stations) are hidden one by one. Boxes wrap around all axes; one that leaves through a wall
    comes in at the opposite one, in two pieces. So no place differs from another, and all are hidden equally often.
    (Cut at the walls, boxes are smaller there and lose less in the thinning: places beside a wall were hidden up to 1.6
    times as often as others.) The last box is thinned at random to the exact size.
    """
    count = _hidden_count(grid.per_time, config)
    hidden = np.zeros(grid.space, dtype=bool)
    while (missing := count - int(hidden.sum())) > 0:
        fresh = _block(grid, config, rng) & ~hidden
        places = np.flatnonzero(fresh)
        hidden.ravel()[rng.permutation(places)[:missing]] = True
    times = np.arange(grid.context_times)[:, None] * grid.per_time
    places = hidden.ravel()
    return (times + np.flatnonzero(~places)).ravel(), (times + np.flatnonzero(places)).ravel()


def _block(grid: TokenGrid, config: MaskingConfig, rng: np.random.Generator) -> np.ndarray:
    """One box as a boolean of shape `space`, uniform over all offsets; a single place where there is no order."""
    lengths = [config.block_rows] * (len(grid.space) - 1) + [config.block_columns]
    block = np.ones(grid.space, dtype=bool)
    for axis, (size, length) in enumerate(zip(grid.space, lengths, strict=True)):
        inside = np.zeros(size, dtype=bool)
        inside[(rng.integers(size) + np.arange(length if grid.ordered else 1)) % size] = True
        block &= np.expand_dims(inside, [other for other in range(len(grid.space)) if other != axis])
    return block


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
