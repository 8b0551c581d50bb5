"""Tokens -> latents: a pre-norm transformer that runs on any subset of the tokens.

Arrives: `Tokens`, whole or the visible part. Leaves: the residual stream before the last norm, one vector a token. We
decided against ending in a norm: it would remove the amplitude of an anomaly, which a forecast needs; the objective
applies the norm itself. A latent is the embedding and the last block side by side: what was seen, and what was made of
it. With the last block alone, long leads lost what the targets do not ask for (see docs/learned.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from sciJEPA.errors import UserError
from sciJEPA.tokenizers.base import Tokenizer, Tokens

SIZES = {"tiny": (96, 3, 4), "small": (192, 6, 6), "base": (384, 12, 6), "large": (768, 12, 12)}
"""The size dial: width, depth and heads."""
WEIGHTS_AT_ONCE = 2**25
"""Attention weights of a block that may be held in memory: 64 MB."""
Seen: TypeAlias = Bool[Tensor, "B C"] | Bool[Tensor, "B N C"] | None
"""Which tokens may be attended to: the same by all tokens, or by each; None: all of them."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The one dial is `size`; the others override what it sets."""

    size: str = "tiny"
    """tiny, small, base or large."""
    width: int | None = None
    """Latent width L; a multiple of the number of heads."""
    depth: int | None = None
    """Number of transformer blocks."""
    heads: int | None = None
    """Attention heads."""
    latent_layers: tuple[int, ...] = (0, -1)
    """Outputs that make up a latent, side by side: 0 is the embedding, 1 the first block, -1 the last."""

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise UserError(f"encoder.size must be one of {', '.join(SIZES)}, got '{self.size}'.")
        width, depth, heads = self.resolved
        if min(width, depth, heads) < 1:
            raise UserError(f"encoder.width, depth and heads must be at least 1, got {width}, {depth}, {heads}.")
        if width % heads:
            raise UserError(f"encoder.width of {width} is not a multiple of encoder.heads, {heads}; use {heads * 16}.")

        outputs = depth + 1
        if not self.latent_layers or any(not -outputs <= layer < outputs for layer in self.latent_layers):
            raise UserError(
                f"encoder.latent_layers must name outputs between 0 (the embedding) and {outputs - 1} (the last "
                f"block), got {list(self.latent_layers)}."
            )

    @property
    def resolved(self) -> tuple[int, int, int]:
        """Width, depth and heads after the overrides."""
        given = (self.width, self.depth, self.heads)
        width, depth, heads = (
            preset if own is None else own for own, preset in zip(given, SIZES[self.size], strict=True)
        )
        return width, depth, heads


class Attention(nn.Module):
    """Multi-head attention of queries to a memory; tokens without any observed value are not attended to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "B N L"], memory: Float[Tensor, "B C L"], seen: Seen = None
    ) -> Float[Tensor, "B N L"]:
        """Attend from `x` to `memory` where `seen`."""
        query, key, value = map(self._split, self._project(x, memory))
        mask = None
        if seen is not None:
            # A finite floor and not -inf: a sample without any seen token yields numbers, not NaN.
            mask = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill(
                ~seen, torch.finfo(query.dtype).min / 2
            )
            mask = mask[:, None] if seen.ndim == 3 else mask[:, None, None]
        found = attend(query, key, value, mask)
        if seen is not None and seen.ndim == 3:
            # Who may attend to no token gets nothing, and not the mean of those that it may not know.
            found = found * seen.any(dim=2)[:, None, :, None]
        return self.out(found.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor, memory: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values; of tokens that attend to each other in one product, which is cast but once."""
        if memory is not x:
            return self.query(x), *self.key_value(memory).chunk(2, dim=-1)
        weight, bias = (
            torch.cat([getattr(part, name) for part in (self.query, self.key_value)]) for name in ("weight", "bias")
        )
        return functional.linear(x, weight, bias).chunk(3, dim=-1)

    def weights(
        self, x: Float[Tensor, "B N L"], memory: Float[Tensor, "B C L"], seen: Seen = None
    ) -> Float[Tensor, "B H N C"]:
        """With which weight `x` attends to each token of `memory`, in float32; `forward` never holds them."""
        query, key = self._split(self.query(x)), self._split(self.key_value(memory).chunk(2, dim=-1)[0])
        scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
        if seen is not None:
            hidden = ~(seen[:, None] if seen.ndim == 3 else seen[:, None, None])
            scores = scores.masked_fill(hidden, torch.finfo(torch.float32).min / 2)
        return scores.softmax(dim=-1)

    def entropy(self, x: Float[Tensor, "B N L"], seen: Seen = None) -> Float[Tensor, ""]:
        """Mean entropy of the weights with which tokens attend to each other: 0 (to one) to 1 (to all alike)."""
        weights = self.weights(x, x, seen)
        seen = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if seen is None else seen
        entropy = -(weights * weights.clamp_min(1e-30).log()).sum(dim=-1).mean(dim=1)
        share = entropy / seen.sum(dim=-1, keepdim=seen.ndim == 2).clamp_min(2).log()
        seen = seen.diagonal(dim1=1, dim2=2) if seen.ndim == 3 else seen
        return (share * seen).sum() / seen.sum().clamp_min(1)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def attend(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B H C D"],
    value: Float[Tensor, "B H C D"],
    mask: Float[Tensor, "B 1 #N C"] | None,
) -> Float[Tensor, "B H N D"]:
    """softmax(query key' / sqrt(D) + mask) value, fused where that is the fastest."""
    batch, heads, tokens, width = query.shape
    small = batch * heads * tokens * key.shape[2] <= WEIGHTS_AT_ONCE
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not small:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # The fused attention of a processor does not use its bfloat16 products: these are two to five times as fast.
    scores = (query * width**-0.5) @ key.transpose(-1, -2)
    return (scores if mask is None else scores + mask).softmax(dim=-1) @ value


def feed_forward(width: int, ratio: int = 4) -> nn.Sequential:
    """The two-layer perceptron of a block."""
    return nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))


class Block(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = feed_forward(width)

    def forward(self, x: Float[Tensor, "B N L"], seen: Seen) -> Float[Tensor, "B N L"]:
        """One block; `seen` marks tokens that may be attended to."""
        normed = self.norm_attention(x)
        x = x + self.attention(normed, normed, seen)
        return x + self.mlp(self.norm_mlp(x))


class Adapter(nn.Module):
    """What a domain adds to the shared blocks: its embedding of patches, and of positions."""

    def __init__(self, tokenizer: Tokenizer, width: int) -> None:
        super().__init__()
        self.embedding = tokenizer.embedding(width)
        self.position = nn.Linear(tokenizer.feature_width, width)

    def forward(self, tokens: Tokens) -> Float[Tensor, "B N L"]:
        """Embedding and position."""
        return self.embedding(tokens) + self.position(tokens.features)


class Encoder(nn.Module):
    """One adapter for each domain, and transformer blocks that all domains share.

    Parameters
    ----------
    config
        Size.
    tokenizers
        By name of the domain: give the embedding of patches and the width of the position features.
    """

    def __init__(self, config: EncoderConfig, tokenizers: Mapping[str, Tokenizer]) -> None:
        super().__init__()
        width, depth, heads = config.resolved
        self.width, self.depth = width, depth
        self.latent_layers = [layer % (depth + 1) for layer in config.latent_layers]
        self.latent_width = width * len(self.latent_layers)
        self.domains = nn.ModuleDict({name: Adapter(tokenizer, width) for name, tokenizer in tokenizers.items()})
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        initialise(self, depth)

    def forward(self, tokens: Tokens) -> Float[Tensor, "B N L"]:
        """Output of the last block (residual stream, not normalised): what is trained."""
        return self._outputs(tokens)[-1]

    def latents(self, tokens: Tokens) -> Float[Tensor, "B N {self.latent_width}"]:
        """The outputs named by `latent_layers`, side by side: what is handed on."""
        return self.outputs(tokens, self.latent_layers)

    def outputs(self, tokens: Tokens, layers: Sequence[int]) -> Float[Tensor, "B N Z"]:
        """Outputs side by side: 0 is the embedding, -1 the last block."""
        outputs = self._outputs(tokens)
        return torch.cat([outputs[layer] for layer in layers], dim=-1)

    def _outputs(self, tokens: Tokens) -> list[Float[Tensor, "B N L"]]:
        seen = tokens.attendable(tokens, tokens.seen)
        outputs = [of_domain(self.domains, tokens.domain)(tokens)]
        for block in self.blocks:
            outputs.append(block(outputs[-1], seen))
        return outputs


def of_domain(modules: nn.ModuleDict, domain: str) -> nn.Module:
    """The part of a domain; a model of one domain need not be told which."""
    if not domain and len(modules) == 1:
        return next(iter(modules.values()))
    if domain not in modules:
        raise UserError(f"the model has no domain '{domain}'; its domains are {', '.join(modules)}.")
    return modules[domain]


def initialise(module: nn.Module, depth: int) -> None:
    """Normal weights of standard deviation 0.02, scaled down at the end of residual branches by sqrt(2 depth)."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            ends_branch = name.endswith(("attention.out", "mlp.2"))
            nn.init.normal_(part.weight, std=0.02 / (2 * depth) ** 0.5 if ends_branch else 0.02)
            nn.init.zeros_(part.bias)
