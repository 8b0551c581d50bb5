"""Context latents -> predicted targets: a narrow transformer that answers "what is at this place and time?".

Arrives: the latents of the visible tokens, the position features of context and targets. Leaves: one prediction a
target. Targets attend to the context and not to each other, so that one pass answers any number of them and an answer
does not depend on what else was asked. We decided against running context tokens through the predictor's blocks too
(as image recipes do): it costs more than the answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor, nn

from sciJEPA.encoder import Attention, feed_forward, initialise, of_domain
from sciJEPA.errors import UserError

LATENT = "latent"
"""Name of the way out that all domains share."""


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """Narrow on purpose: a strong predictor would spare the encoder the work."""

    width: int = 64
    """Width; a multiple of the number of heads."""
    depth: int = 2
    """Number of cross-attention blocks."""
    heads: int = 4
    """Attention heads."""

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1:
            raise UserError(
                f"predictor.width, depth and heads must be at least 1, got {self.width}, {self.depth}, {self.heads}."
            )
        if self.width % self.heads:
            raise UserError(f"predictor.width of {self.width} is not a multiple of predictor.heads, {self.heads}.")


class CrossBlock(nn.Module):
    """q + attention(norm(q), memory), then q + perceptron(norm(q))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_memory, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.attention = Attention(width, heads)
        self.mlp = feed_forward(width)

    def forward(
        self,
        query: Float[Tensor, "B M D"],
        memory: Float[Tensor, "B C D"],
        seen: Bool[Tensor, "B C"] | Bool[Tensor, "B M C"] | None,
    ) -> Float[Tensor, "B M D"]:
        """One block."""
        query = query + self.attention(self.norm_attention(query), self.norm_memory(memory), seen)
        return query + self.mlp(self.norm_mlp(query))


class Predictor(nn.Module):
    """Predicts what lies at every target position from the context.

    Parameters
    ----------
    config
        Size.
    in_width
        Width of the context latents.
    feature_widths
        Position features of a token, by name of the domain.
    out_width
        Numbers to predict for a target: one width for latents, a width by name of the domain for patches.
    patch_widths
        Values of a patch by name of the domain, where patches are predicted beside latents.
    """

    def __init__(
        self,
        config: PredictorConfig,
        *,
        in_width: int,
        feature_widths: Mapping[str, int],
        out_width: int | Mapping[str, int],
        patch_widths: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(in_width, config.width)
        self.where_context = nn.ModuleDict({n: nn.Linear(w, config.width) for n, w in feature_widths.items()})
        self.where_target = nn.ModuleDict({n: nn.Linear(w, config.width) for n, w in feature_widths.items()})
        self.blocks = nn.ModuleList(CrossBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        widths = {LATENT: out_width} if isinstance(out_width, int) else out_width
        self.leave = nn.ModuleDict({name: nn.Linear(config.width, width) for name, width in widths.items()})
        self.patches = nn.ModuleDict({n: nn.Linear(config.width, w) for n, w in (patch_widths or {}).items()})
        initialise(self, config.depth)

    def forward(
        self,
        context: Float[Tensor, "B C L"],
        context_features: Float[Tensor, "B C K"],
        target_features: Float[Tensor, "B M K"],
        seen: Bool[Tensor, "B C"] | Bool[Tensor, "B M C"] | None = None,
        domain: str = "",
    ) -> Float[Tensor, "B M Q"]:
        """Predictions at the target positions."""
        return self.answer(self.states(context, context_features, target_features, seen, domain), domain)

    def states(
        self,
        context: Float[Tensor, "B C L"],
        context_features: Float[Tensor, "B C K"],
        target_features: Float[Tensor, "B M K"],
        seen: Bool[Tensor, "B C"] | Bool[Tensor, "B M C"] | None = None,
        domain: str = "",
    ) -> Float[Tensor, "B M D"]:
        """What predictions at the target positions are read from."""
        memory = self.enter(context) + of_domain(self.where_context, domain)(context_features)
        query = of_domain(self.where_target, domain)(target_features)
        for block in self.blocks:
            query = block(query, memory, seen)
        return self.norm(query)

    def answer(self, states: Float[Tensor, "B M D"], domain: str = "") -> Float[Tensor, "B M Q"]:
        """Predictions from `states`."""
        return of_domain(self.leave, LATENT if LATENT in self.leave else domain)(states)
