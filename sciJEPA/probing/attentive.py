"""Tokens -> forecasts through one learned query, which also shows what tokens matter.

Arrives: latents of each issue time, flat rows of (tokens, latent), and the targets that followed. Leaves: a probe with
the verbs of `Ridge`. We decided against keys, values and blocks of their own: the query of a single layer absorbs the
keys, the output absorbs the values, and what is left has few parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sciJEPA.errors import UserError
from sciJEPA.probes import Rows, row_blocks
from sciJEPA.probing.training import ComponentProbe, TargetComponents, TrainingOptions


class QueryPool(nn.Module):
    """For each cell: softmax over tokens of (query . token / sqrt(L) + a number of the place), then a linear map."""

    def __init__(self, mean: Tensor, deviation: Tensor, tokens: int, cells: int, heads: int, rank: int) -> None:
        super().__init__()
        latent = len(mean)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.query = nn.Parameter(torch.randn(cells, heads, latent) * 0.02)
        # Heads that begin alike stay alike; one alone begins as the mean over tokens.
        self.place = nn.Parameter(torch.randn(cells, heads, tokens) * (heads > 1))
        self.out = nn.Parameter(torch.zeros(cells, heads * latent, rank))
        self.bias = nn.Parameter(torch.zeros(cells, rank))

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C R"]:
        """Components (rows, cells, rank)."""
        tokens = self._tokens(x)
        pooled = torch.einsum("bchn,bnl->bchl", self._shares(tokens), tokens).flatten(2)
        return torch.einsum("bcl,clr->bcr", pooled, self.out) + self.bias

    def attention(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C H N"]:
        """Share of each token, which sum to 1."""
        return self._shares(self._tokens(x))

    def _shares(self, tokens: Float[Tensor, "B N L"]) -> Float[Tensor, "B C H N"]:
        likeness = torch.einsum("bnl,chl->bchn", tokens, self.query) / tokens.shape[-1] ** 0.5
        return torch.softmax(likeness + self.place, dim=-1)

    def _tokens(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B N L"]:
        return (x.unflatten(-1, (self.place.shape[-1], -1)) - self.mean) / self.deviation


@dataclass
class Attentive(ComponentProbe):
    """A learned query for each lead and group attends over the tokens; a linear map of what it gathers is the forecast.

    Latents are standardised over training times and tokens. A whole field is forecast through its principal components.

    Source: the attentive probe of V-JEPA (Bardes et al. 2024), https://arxiv.org/abs/2404.08471, cut down to its query.

    Parameters
    ----------
    tokens
        Tokens of a row; its width must be a multiple.
    heads
        Parts of each query, which look at places of their own; their findings are put side by side.
    rank
        Components of the targets of each group; a group with fewer targets loses nothing.
    options
        Epochs, patience, batch size, learning rate and weight decay.

    Attributes after `fit`
    ----------------------
    features_
        Rows that `predict` reads; those of other samples may be put in their place.
    epoch_
        Chosen epoch, shape (leads, groups); 0 is climatology.
    error_
        Weighted mean squared error on the validation times, shape (leads, groups).
    """

    tokens: int
    heads: int = 4
    rank: int = 64
    options: TrainingOptions = field(default_factory=TrainingOptions)
    seed: int = 0
    features_: Rows = field(init=False, repr=False)
    epoch_: np.ndarray = field(init=False)
    error_: np.ndarray = field(init=False)

    def fit(
        self,
        features: Rows,
        targets: Sequence[Rows],
        train: np.ndarray,
        validation: np.ndarray,
        *,
        weights: np.ndarray,
        groups: int = 1,
    ) -> "Attentive":
        """Train on `train`, choose the epoch of each lead and group on `validation`. Arguments as in `Ridge.fit`."""
        if self.tokens < 1 or features.width % self.tokens:
            raise UserError(
                f"rows of {features.width} numbers do not fall into {self.tokens} tokens of equal width; pass "
                "tokens=latents.sizes['token']."
            )
        self.features_, self._shape = features, (len(targets), groups)
        self._outputs = TargetComponents.fit(targets[0], train, self.rank, weights=weights, groups=groups)
        known = self._components_of(targets, np.concatenate([train, validation]))
        mean, deviation = self._moments(features, train)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            cells, rank = len(targets) * groups, self._outputs.rank
            self._network = QueryPool(mean, deviation, self.tokens, cells, self.heads, rank)
        self._train(self._network, targets, known, train, validation)
        return self

    def attention(self, times: np.ndarray) -> np.ndarray:
        """Share of each token at these issue times, shape (len(times), leads, groups, heads, tokens)."""
        blocks = []
        for block in row_blocks(times):
            shares = np.empty((len(block), *self._shape, self.heads, self.tokens), dtype=np.float32)
            for cell, number in enumerate(self._trained.epoch):
                self._network.load_state_dict(self._trained.weights[number])
                with torch.inference_mode():
                    found = self._network.attention(self._read(block))[:, cell].numpy()
                shares[:, cell // self._shape[1], cell % self._shape[1]] = found
            blocks.append(shares)
        return np.concatenate(blocks)

    def _moments(self, features: Rows, train: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each latent number over training times and tokens."""
        count, total, squares = 0, np.zeros(()), np.zeros(())
        first = features.read(train[:1]).reshape(-1, features.width // self.tokens).mean(axis=0)
        for block in row_blocks(train):
            # From the first row and not from zero, so that a large mean costs no digits.
            values = features.read(block).reshape(-1, len(first)).astype(np.float64) - first
            count, total, squares = count + len(values), total + values.sum(axis=0), squares + (values**2).sum(axis=0)
        variance = squares / count - (total / count) ** 2
        if not (variance > 0).any():
            raise UserError("the features do not vary over the training times, so no probe can be fitted on them.")
        deviation = np.sqrt(np.maximum(variance, 1e-12 * variance.max()))
        return tuple(torch.from_numpy(np.asarray(x, dtype=np.float32)) for x in (first + total / count, deviation))  # type: ignore[return-value]
