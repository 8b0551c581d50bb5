"""The contract between a domain and the backbone.

Arrives: a `Batch` of normalised windows. Leaves: `Tokens`, which is all that the backbone ever sees: patches by
channel, where they were observed, and position features. `TokenGeometry` is what `latents` needs to put labels back on.
A new domain is one file beside this one that makes these; decided against a class hierarchy, since the three
dataclasses and the members of `Tokenizer` are the whole contract.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sciJEPA.masking import TokenGrid


@dataclass(frozen=True)
class Batch:
    """Windows as tensors: the one place where labels are off. Values are normalised, zero where missing."""

    values: Float[Tensor, "B V T H W"]
    observed: Bool[Tensor, "B V T H W"] | None
    """False where a value is missing; None if nothing is."""
    calendar: Float[Tensor, "B T 4"]
    """Sine and cosine of the year's progress and of the day's."""
    samples: Int[Tensor, " B"]
    """Sample numbers (window starts)."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        observed = None if self.observed is None else self.observed.to(device, non_blocking=True)
        return Batch(
            self.values.to(device, non_blocking=True),
            observed,
            self.calendar.to(device, non_blocking=True),
            self.samples,
        )


@dataclass(frozen=True)
class Tokens:
    """What the backbone sees of a sample: N tokens of P values for each of V channels, and K position features."""

    values: Float[Tensor, "B N V P"]
    observed: Bool[Tensor, "B N V P"] | None
    features: Float[Tensor, "B N K"]

    def take(self, index: Int[Tensor, "B M"]) -> "Tokens":
        """The tokens with these numbers, in this order."""
        rows = torch.arange(len(index), device=index.device)[:, None]
        observed = None if self.observed is None else self.observed[rows, index]
        return Tokens(self.values[rows, index], observed, self.features[rows, index])

    @property
    def weight(self) -> Float[Tensor, "B N"] | None:
        """Observed share of every token, None where everything is observed."""
        return None if self.observed is None else self.observed.float().mean(dim=(2, 3))

    @property
    def seen(self) -> Bool[Tensor, "B N"] | None:
        """Tokens with any observed value, which alone may be attended to; None where everything is observed."""
        return None if self.observed is None else self.observed.any(dim=3).any(dim=2)


@dataclass(frozen=True)
class TokenGeometry:
    """Labels of the tokens of one window: centre, size and time of each, in physical units."""

    latitude: np.ndarray
    longitude: np.ndarray
    area: np.ndarray
    """Share of the archive's area that the token covers; sums to one over the tokens of one time."""
    offset: np.ndarray
    """Hours from the issue time to the token's last step; zero or negative inside the issue window."""


@runtime_checkable
class Tokenizer(Protocol):
    """What a domain provides."""

    grid: TokenGrid
    geometry: TokenGeometry
    channels: tuple[str, ...]
    patch_size: int
    feature_width: int

    def __call__(self, batch: Batch) -> Tokens:
        """Cut a batch into tokens; holds no weights."""
        ...

    def unpatchify(self, patches: Float[Tensor, "B N V P"]) -> Float[Tensor, "B V T H W"]:
        """The way back to the grid."""
        ...


class PatchEmbedding(nn.Module):
    """Patch -> embedding: one linear map for each named channel, summed over the channels and scaled by their number.

    e = b + sum_v (x_v W_v + (1 - o_v) M_v) / sqrt(V), with values x (zero where missing) and observed flags o: a
    missing value contributes through its flag alone. Weights are keyed by channel name, as in ClimaX
    (https://arxiv.org/abs/2301.10343) and Aurora (https://arxiv.org/abs/2405.13063).
    """

    def __init__(self, channels: Sequence[str], patch_size: int, width: int) -> None:
        super().__init__()
        # Pairs and not a dict: ParameterDict would sort its keys, and weights would meet the values of other channels.
        self.value = nn.ParameterDict(
            [(parameter_name(name), torch.randn(patch_size, width) * patch_size**-0.5) for name in channels]
        )
        self.missing = nn.ParameterDict([(parameter_name(name), torch.zeros(patch_size, width)) for name in channels])
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tokens) -> Float[Tensor, "B N L"]:
        """Embeddings of the tokens."""
        scale = len(self.value) ** -0.5
        weight = torch.cat(list(self.value.values()))
        embedded = tokens.values.flatten(2) @ weight
        if tokens.observed is not None:
            absent = (~tokens.observed).flatten(2).to(weight.dtype)
            embedded = embedded + absent @ torch.cat(list(self.missing.values()))
        return embedded * scale + self.bias


def parameter_name(channel: str) -> str:
    """A channel's name as a key of a parameter dictionary.

    It may hold no dot (nor be taken for another channel's name without one), nor be an attribute such as "values".

    >>> parameter_name("t@0.995")
    'channel t@0·995'
    """
    return "channel " + channel.replace(".", "·")
