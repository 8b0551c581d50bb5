"""The contract between a domain and the backbone.

Arrives: a `Batch` of normalised windows. Leaves: `Tokens`, which is all that the backbone ever sees: patches by
channel, where they were observed, and position features. `TokenGeometry` is what `latents` needs to put labels back on.
A new domain is one file beside this one: a description of its archives, a configuration that makes the description and
the tokenizer, and the tokenizer itself. We decided against a class hierarchy: the dataclasses and protocols below are
the whole contract.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.masking import TokenGrid
from sciJEPA.memory import moved

Coordinate = tuple[np.ndarray, Mapping[str, str]]
"""Values of a coordinate for every token, and its attributes (units, long_name)."""


@dataclass(frozen=True)
class Batch:
    """Windows as tensors: the one place where labels are off. Values are normalised, zero where missing."""

    values: Float[Tensor, "B V T *space"]
    observed: Bool[Tensor, "B V T *space"] | None
    """False where a value is missing; None if nothing is."""
    calendar: Float[Tensor, "B T 4"]
    """Sine and cosine of the year's progress and of the day's."""
    samples: Int[Tensor, " B"]
    """Sample numbers (window starts)."""
    domain: str = ""
    """Which of a model's domains the windows belong to; may be left empty where there is one."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        observed = None if self.observed is None else moved(self.observed, device)
        values, calendar = moved(self.values, device), moved(self.calendar, device)
        return dataclasses.replace(self, values=values, observed=observed, calendar=calendar)


@dataclass(frozen=True)
class Tokens:
    """What the backbone sees of a sample: N tokens of P values for each of V channels, and K position features."""

    values: Float[Tensor, "B N V P"]
    observed: Bool[Tensor, "B N V P"] | None
    features: Float[Tensor, "B N K"]
    channels: tuple[str, ...]
    """Names of the V channels, by which an embedding knows its weights."""
    domain: str = ""
    instance: Float[Tensor, "B N 2"] | None = None
    """Location and scale that were taken out of each token's values, where a tokenizer does so (normalised units)."""
    group: Int[Tensor, "B N"] | None = None
    """Tokens attend to those of their own group; to all if None."""

    def take(self, index: Int[Tensor, "B M"]) -> "Tokens":
        """The tokens with these numbers, in this order."""
        rows = torch.arange(len(index), device=index.device)[:, None]
        return self._each(lambda part: part[rows, index])

    def span(self, start: int, stop: int | None) -> "Tokens":
        """The tokens from number `start` to `stop`, exclusive."""
        return self._each(lambda part: part[:, start:stop])

    def samples(self, numbers: Int[Tensor, " S"]) -> "Tokens":
        """All tokens of these samples of the batch."""
        return self._each(lambda part: part[numbers])

    def _each(self, choose: Any) -> "Tokens":
        return dataclasses.replace(
            self,
            values=choose(self.values),
            observed=None if self.observed is None else choose(self.observed),
            features=choose(self.features),
            instance=None if self.instance is None else choose(self.instance),
            group=None if self.group is None else choose(self.group),
        )

    def only(self, numbers: Sequence[int]) -> "Tokens":
        """The same tokens with some of their channels."""
        chosen = list(numbers)
        return dataclasses.replace(
            self,
            values=self.values[:, :, chosen],
            observed=None if self.observed is None else self.observed[:, :, chosen],
            channels=tuple(self.channels[number] for number in chosen),
        )

    @property
    def weight(self) -> Float[Tensor, "B N"] | None:
        """Observed share of every token, None where everything is observed."""
        return None if self.observed is None else self.observed.float().mean(dim=(2, 3))

    @property
    def seen(self) -> Bool[Tensor, "B N"] | None:
        """Tokens with any observed value, which alone may be attended to; None where everything is observed."""
        return None if self.observed is None else self.observed.any(dim=3).any(dim=2)

    def attendable(
        self, memory: "Tokens", seen: Bool[Tensor, "B C"] | None
    ) -> Bool[Tensor, "B C"] | Bool[Tensor, "B N C"] | None:
        """Tokens of `memory` that these may attend to: those `seen`, and of their own group; None where all are."""
        if self.group is None or memory.group is None:
            return seen
        own = self.group[:, :, None] == memory.group[:, None]
        return own if seen is None else own & seen[:, None]


@dataclass(frozen=True)
class TokenGeometry:
    """Labels of the tokens of one window, in physical units."""

    coordinates: Mapping[str, Coordinate]
    """Centre of every token by the name of the coordinate: latitude, longitude, x, station, channel..."""
    area: np.ndarray
    """Share of the archive's area that the token covers; sums to one over the tokens of one time."""
    offset: np.ndarray
    """Hours from the issue time to the token's last step; zero or negative inside the issue window."""


@runtime_checkable
class Tokenizer(Protocol):
    """What cuts the windows of one archive into tokens; holds no weights."""

    grid: TokenGrid
    geometry: TokenGeometry
    channels: tuple[str, ...]
    channels_per_token: int
    """Channels that share a token: all of them, or one where each channel has tokens of its own."""
    patch_size: int
    """Values of one channel in a token."""
    feature_width: int
    """Position features of a token; the same for every archive of the domain."""

    def __call__(self, batch: Batch) -> Tokens:
        """Cut a batch into tokens; a window shorter than in training gives the first tokens."""
        ...

    def patchify(self, field: Shaped[Tensor, "B V T *space"]) -> Shaped[Tensor, "B N V P"]:
        """Cut values, or flags, into patches."""
        ...

    def unpatchify(self, patches: Float[Tensor, "B N V P"]) -> Float[Tensor, "B V T *space"]:
        """The way back to the archive's places."""
        ...

    def embedding(self, width: int) -> nn.Module:
        """A new module from `Tokens` to embeddings (B, N, width), without position."""
        ...


@runtime_checkable
class Specification(Protocol):
    """What a tokenizer must know of an archive: a frozen dataclass of plain values that travels with the model."""

    channels: tuple[str, ...]
    cadence: float
    """Hours between steps."""
    window: int
    context: int


class TokenizerConfig(Protocol):
    """Configuration of a domain's tokenizer: a frozen dataclass whose `kind` names the domain."""

    @property
    def kind(self) -> str:
        """Name of the domain."""
        ...

    def describe(self, archive: Archive, window: int, context: int) -> Any:
        """What the tokenizer must know of this archive; refused where the archive is not of this domain."""
        ...

    def restore(self, fields: Mapping[str, Any]) -> Any:
        """A specification from the plain values that were saved with a model."""
        ...

    def build(self, spec: Any) -> Tokenizer:
        """The tokenizer of such archives."""
        ...


def check_patch_time(patch_time: int, context: int, window: int) -> None:
    """Refuse a patch that does not divide the issue window and the whole window; names the lengths that do."""
    for name, steps in (("context", context), ("window", window)):
        if steps % patch_time:
            raise UserError(
                f"tokenizer.patch_time of {patch_time} does not divide data.{name} of {steps} steps; "
                f"use one of {divisors(math.gcd(context, window))}."
            )


def divisors(size: int) -> list[int]:
    """Sizes of a patch that divide `size`.

    >>> divisors(6)
    [1, 2, 3, 6]
    """
    return [d for d in range(1, size + 1) if size % d == 0]


def nested_tuples(value: Any) -> Any:
    """Lists within lists, as JSON gives them back, as tuples within tuples; anything else as it is."""
    return tuple(nested_tuples(part) for part in value) if isinstance(value, list | tuple) else value


class PatchEmbedding(nn.Module):
    """Patch -> embedding: one linear map for each named channel, summed over the channels and scaled by their number.

    e = b + sum_v (x_v W_v + (1 - o_v) M_v) / sqrt(V), with values x and observed flags o: a
    missing value contributes through its flag, and through what the tokenizer has put in its place: zero, or for series
    what their window makes of the gap. Weights are keyed by channel name, as in ClimaX
    (https://arxiv.org/abs/2301.10343) and Aurora (https://arxiv.org/abs/2405.13063), so that tokens may come with any
    subset of the channels.
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
        names = [parameter_name(name) for name in tokens.channels]
        weight = torch.cat([self.value[name] for name in names])
        embedded = tokens.values.flatten(2) @ weight
        if tokens.observed is not None:
            absent = (~tokens.observed).flatten(2).to(weight.dtype)
            embedded = embedded + absent @ torch.cat([self.missing[name] for name in names])
        return embedded * len(names) ** -0.5 + self.bias


def parameter_name(channel: str) -> str:
    """A channel's name as a key of a parameter dictionary.

    It may hold no dot (nor be taken for another channel's name without one), nor be an attribute such as "values".

    >>> parameter_name("t@0.995")
    'channel t@0·995'
    """
    return "channel " + channel.replace(".", "·")
