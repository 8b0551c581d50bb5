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
from jaxtyping import Bool, Int
from torch import Tensor

from sciJEPA.errors import UserError
from sciJEPA.memory import moved

Strategy = Literal["forecast", "blocks", "random", "variable"]


@dataclass(frozen=True)
class TokenGrid:
    """Shape of the tokens of one window; tokens are numbered time-major, then as in an array of shape `space`.

    Attributes
    ----------
    times, context_times : token steps of the window, and of the issue window that it begins with.
    space : tokens along each dimension of space: rows and columns of a grid, stations, or any number of dimensions.
    periodic : the last dimension closes a circle.
    ordered : neighbours in `space` are neighbours in the world; stations have no such order.
    fixed : places of one time that are never targets.
    apart : tokens of a place attend to those of no other place.
    """

    times: int
    space: tuple[int, ...]
    context_times: int
    periodic: bool = False
    ordered: bool = True
    fixed: tuple[int, ...] = ()
    apart: bool = False

    @property
    def per_time(self) -> int:
        """Tokens of one time."""
        return math.prod(self.space)

    @property
    def count(self) -> int:
        """Tokens of the window."""
        return self.times * self.per_time

    @property
    def free(self) -> np.ndarray:
        """Places of one time that may be targets."""
        return np.setdiff1d(np.arange(self.per_time), self.fixed)


@dataclass(frozen=True)
class MaskPlan:
    """Token numbers that are visible, and those to be predicted, for each sample of a batch."""

    context: Int[Tensor, "B C"]
    target: Int[Tensor, "B M"]
    strategy: str
    channels: tuple[int, ...] | None = None
    """Numbers of the channels that the context shows, for all samples; all of them if None."""

    def to(self, device: torch.device | str) -> "MaskPlan":
        """The same plan on another device."""
        return MaskPlan(moved(self.context, device), moved(self.target, device), self.strategy, self.channels)


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How targets are drawn; weights need not sum to one, a weight of zero turns a strategy off."""

    forecast: float = 1.0
    """Weight of past -> future: context is the issue window, targets are tokens after it."""
    blocks: float = 0.0
    """Weight of blocks of places (or of stations) hidden through the whole issue window."""
    random: float = 0.0
    """Weight of tokens hidden independently at random."""
    variable: float = 0.0
    """Weight of channels hidden in the whole issue window; targets are all of its tokens with all channels."""
    forecast_share: float = 1.0
    """Share of the future tokens that are targets (drawn at random when below one)."""
    context_share: float = 1.0
    """Share of the issue window's tokens that past -> future shows; below one it augments a small archive."""
    hidden_share: float = 0.5
    """Share of the tokens that blocks and random hide, and of the channels that variable hides."""
    horizons: tuple[int, ...] = ()
    """Token steps ahead (1 follows the issue window) that past -> future asks for; all if none is given."""
    block_rows: int = 2
    """Length of a block in tokens, along all dimensions of space but the last."""
    block_columns: int = 2
    """Length of a block in tokens along the last dimension of space."""
    points: float = 0.0
    """Largest share of the issue window's single values that training hides, so that the encoder learns what a gap is;
    every window draws its own share between 0 and this."""

    def __post_init__(self) -> None:
        weights = self._weights
        if min(weights.values()) < 0 or sum(weights.values()) == 0:
            given = ", ".join(f"{name}={weight}" for name, weight in weights.items())
            raise UserError(
                f"masking needs weights of at least zero with one above it, got {given}; set one of them to 1."
            )
        if min(self.horizons, default=1) < 1 or len(set(self.horizons)) < len(self.horizons):
            raise UserError(
                f"masking.horizons must be different numbers of at least 1, got {list(self.horizons)}; 1 is the token "
                "step after the issue window."
            )
        for name in ("forecast_share", "context_share", "hidden_share"):
            share = getattr(self, name)
            if not 0 < share <= 1 or (name == "hidden_share" and share == 1):
                raise UserError(f"masking.{name} must lie between 0 and 1, got {share}; a usual value is 0.5.")
        if min(self.block_rows, self.block_columns) < 1:
            raise UserError(
                f"masking blocks need at least one row and column, got {self.block_rows} x {self.block_columns}."
            )
        if not 0 <= self.points < 1:
            raise UserError(f"masking.points must be at least 0 and below 1, got {self.points}; a usual value is 0.75.")

    @property
    def mixture(self) -> dict[Strategy, float]:
        """Strategies in use and their probability."""
        total = sum(self._weights.values())
        return {name: weight / total for name, weight in self._weights.items() if weight > 0}

    @property
    def _weights(self) -> dict[Strategy, float]:
        return {
            "forecast": self.forecast, "blocks": self.blocks, "random": self.random, "variable": self.variable,
        }  # fmt: skip


def forecast_mask(grid: TokenGrid, config: MaskingConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Past -> future: fixed numbers of the issue window's tokens are context and of the later tokens are targets."""
    past = grid.context_times * grid.per_time
    context = _share_of(np.arange(past), config.context_share, rng)
    ahead = sorted(config.horizons) or range(1, grid.times - grid.context_times + 1)
    times = grid.context_times - 1 + np.asarray(ahead, dtype=int)
    future = (times[:, None] * grid.per_time + grid.free).ravel()
    return context, _share_of(future, config.forecast_share, rng)


def _share_of(tokens: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A fixed share of the tokens, at least one, in order."""
    count = max(1, round(share * len(tokens)))
    return tokens if count == len(tokens) else np.sort(rng.permutation(tokens)[:count])


def random_mask(grid: TokenGrid, config: MaskingConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A fixed share of the tokens of the issue window, drawn without replacement."""
    tokens = rng.permutation((np.arange(grid.context_times)[:, None] * grid.per_time + grid.free).ravel())
    hidden = np.sort(tokens[: _hidden_count(len(tokens), config)])
    return np.setdiff1d(np.arange(grid.context_times * grid.per_time), hidden), hidden


def block_mask(grid: TokenGrid, config: MaskingConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in space, hidden through the whole issue window (tubes), until a fixed share of the places is hidden.

    Places without an order (stations) are hidden one by one. Boxes wrap around all axes; one that leaves through a wall
    comes in at the opposite one, in two pieces. So no place differs from another, and all are hidden equally often.
    (Cut at the walls, boxes are smaller there and lose less in the thinning: places beside a wall were hidden up to 1.6
    times as often as others.) The last box is thinned at random to the exact size.
    """
    count = _hidden_count(len(grid.free), config)
    hidden = np.zeros(grid.space, dtype=bool)
    free = np.isin(np.arange(grid.per_time), grid.free).reshape(grid.space)
    while (missing := count - int(hidden.sum())) > 0:
        fresh = _block(grid, config, rng) & ~hidden & free
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


def variable_mask(grid: TokenGrid, config: MaskingConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The whole issue window is context and target: what is hidden are channels, and the plan says which."""
    tokens = np.arange(grid.context_times * grid.per_time)
    return tokens, tokens


def _hidden_count(tokens: int, config: MaskingConfig) -> int:
    return min(max(1, round(config.hidden_share * tokens)), tokens - 1)


STRATEGIES: dict[str, Callable[[TokenGrid, MaskingConfig, np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "forecast": forecast_mask,
    "blocks": block_mask,
    "random": random_mask,
    "variable": variable_mask,
}


@dataclass(frozen=True)
class Masker:
    """Draws the MaskPlan of a batch; a sample's mask depends on seed, epoch and sample number and on nothing else.

    Hidden channels are the same in all samples of a batch, and depend on seed and step, as the strategy does.
    """

    grid: TokenGrid
    config: MaskingConfig = field(default_factory=MaskingConfig)
    seed: int = 0
    channels: int = 1
    """Channels that share a token."""
    always_shown: tuple[int, ...] = ()
    """Numbers of those that are never hidden."""

    def __post_init__(self) -> None:
        if self.config.forecast > 0 and self.grid.times <= self.grid.context_times:
            raise UserError(
                f"masking.forecast needs steps after the issue window, but the window of {self.grid.times} token steps "
                f"has {self.grid.context_times} of them in the issue window; make data.window longer than data.context "
                "or set masking.forecast to 0."
            )
        if self.config.blocks > 0 and len(self.grid.free) < 2:
            raise UserError("masking.blocks needs at least 2 patches in space; use smaller patches.")
        if self.config.blocks > 0 and self.grid.apart:
            raise UserError(
                "masking.blocks hides series in the whole issue window, but with tokenizer.attention of channel no "
                "other series tells of them; set masking.blocks to 0, or tokenizer.attention to any."
            )
        if self.config.random > 0 and self.grid.context_times * self.grid.per_time < 2:
            raise UserError("masking.random needs at least 2 tokens in the issue window; use smaller patches.")
        if self.config.variable > 0 and self.channels > 1 and self.channels - len(self.always_shown) < 2:
            raise UserError(
                f"masking.variable hides some channels and shows others, but of {self.channels} channels "
                f"{len(self.always_shown)} are forcings; set masking.variable to 0 or name fewer data.forcings."
            )
        if self.config.variable > 0 and self.channels < 2:
            raise UserError(
                "masking.variable hides some of the channels that share a token, but here a token has one channel; use "
                "masking.blocks, which hides stations and channels that have tokens of their own."
            )
        ahead = self.grid.times - self.grid.context_times
        if self.config.forecast > 0 and max(self.config.horizons, default=1) > ahead:
            raise UserError(
                f"masking.horizons asks for token step {max(self.config.horizons)} after the issue window, but the "
                f"window has {ahead}; make data.window longer or ask for nearer steps."
            )

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
        channels = self._shown(step) if name == "variable" else None
        return MaskPlan(context=context, target=target, strategy=name, channels=channels)

    def points(
        self, shape: Sequence[int], samples: Sequence[int], *, epoch: int
    ) -> Bool[Tensor, "B V T *space"] | None:
        """Single values that are hidden from windows of this shape (B, V, T, *space), all in the issue window.

        They depend on seed, epoch and sample number, as masks do. None where `masking.points` is zero.
        """
        if not self.config.points:
            return None
        steps = shape[2] * self.grid.context_times // self.grid.times
        hidden = np.zeros(shape, dtype=bool)
        for window, sample in zip(hidden, samples, strict=True):
            rng = np.random.default_rng([self.seed, 4, epoch, int(sample)])
            share = self.config.points * rng.random()
            issue = window[:, :steps]
            issue[...] = rng.random(issue.shape, dtype=np.float32) < share
        return torch.from_numpy(hidden)

    def _shown(self, step: int) -> tuple[int, ...]:
        free = np.setdiff1d(np.arange(self.channels), self.always_shown)
        numbers = np.random.default_rng([self.seed, 3, step]).permutation(free)
        return tuple(sorted([*self.always_shown, *numbers[_hidden_count(len(free), self.config) :].tolist()]))
