"""Wiring: context, target, predict, energy. Nothing here learns that is not defined elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sciJEPA.encoder import Encoder, EncoderConfig
from sciJEPA.errors import UserError
from sciJEPA.losses import LossTerms, prediction_distance, regularise
from sciJEPA.masking import MaskPlan, TokenGrid
from sciJEPA.predictor import Predictor, PredictorConfig
from sciJEPA.target import MovingAverage, standardise
from sciJEPA.tokenizers.base import Batch, Tokenizer, Tokens


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is predicted, and what keeps it from collapsing."""

    target: str = "ema"
    """ema: latents of the moving-average encoder; online: of the encoder itself, with gradient; mae: the patches."""
    distance: str = "l2"
    """l2, l1 or smooth_l1."""
    standardise: str = "batch"
    """Targets are standardised over the batch, over the token's own features, or not (none)."""
    scope: str = "window"
    """What the target encoder sees of the future: the whole window, or the future alone."""
    variance: float = 0.02
    """Weight of the variance hinge on the context latents."""
    covariance: float = 0.001
    """Weight of the covariance term on the context latents."""

    def __post_init__(self) -> None:
        allowed = {
            "target": ("ema", "online", "mae"),
            "distance": ("l2", "l1", "smooth_l1"),
            "standardise": ("batch", "token", "none"),
            "scope": ("window", "future"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise UserError(f"objective.{name} must be one of {', '.join(values)}, got '{getattr(self, name)}'.")


@dataclass(frozen=True)
class StepOutput:
    """One training step: the loss, and the latents that the monitor looks at."""

    terms: LossTerms
    context: Float[Tensor, "B C L"]
    target: Float[Tensor, "B M Q"]
    predicted: Float[Tensor, "B M Q"]


class JEPA(nn.Module):
    """Joint-embedding predictive architecture: LeCun 2022, https://openreview.net/pdf?id=BZ5a1r-kVsf.

    Parameters
    ----------
    tokenizers
        By name of the domain; all domains share the blocks of encoder and predictor.
    """

    def __init__(
        self,
        tokenizers: Mapping[str, Tokenizer],
        encoder: EncoderConfig,
        predictor: PredictorConfig,
        objective: ObjectiveConfig,
    ) -> None:
        super().__init__()
        self.tokenizers, self.objective = dict(tokenizers), objective
        self.encoder = Encoder(encoder, tokenizers)
        self.norm = nn.LayerNorm(self.encoder.width)
        patches = {name: target_values(tokenizer) for name, tokenizer in tokenizers.items()}
        self.predictor = Predictor(
            predictor,
            in_width=self.encoder.width,
            feature_widths={name: tokenizer.feature_width for name, tokenizer in tokenizers.items()},
            out_width=patches if objective.target == "mae" else self.encoder.width,
        )
        self.target = MovingAverage(self.encoder)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of a model of one domain."""
        (only,) = self.tokenizers.values()
        return only

    def forward(self, batch: Batch, plan: MaskPlan, tokenizer: Tokenizer | None = None) -> StepOutput:
        """Loss of one batch of one domain under one mask plan.

        `tokenizer` is that of another archive of the batch's domain, where it is not the one of training.
        """
        tokenizer = tokenizer or self._tokenizer_of(batch)
        tokens = tokenizer(batch)
        visible = tokens.take(plan.context)
        latents = self.encoder(visible)
        context = self.norm(latents)
        wanted = tokens.take(plan.target)
        predicted = self.predictor(context, visible.features, wanted.features, visible.seen, tokens.domain)
        target = self._targets(tokens, wanted, plan, tokenizer.grid)
        variance, covariance = regularise(latents, visible.seen)
        prediction = prediction_distance(predicted, target, wanted.weight, distance=self.objective.distance)
        total = prediction + self.objective.variance * variance + self.objective.covariance * covariance
        return StepOutput(LossTerms(prediction, variance, covariance, total), latents, target, predicted)

    def _targets(self, tokens: Tokens, wanted: Tokens, plan: MaskPlan, grid: TokenGrid) -> Float[Tensor, "B M Q"]:
        if self.objective.target == "mae":
            return wanted.values.flatten(2)
        encoder = self.target if self.objective.target == "ema" else self.encoder
        past = grid.context_times * grid.per_time
        forecast = plan.strategy == "forecast"
        # Hidden parts of the issue window are encoded without its future: as the probes will see them.
        start, stop = (past if forecast and self.objective.scope == "future" else 0), (None if forecast else past)
        scope = tokens.span(start, stop)
        latents = encoder(scope)
        rows = torch.arange(len(latents), device=latents.device)[:, None]
        return standardise(latents, self.objective.standardise, scope.seen)[rows, plan.target - start]

    def encode(
        self, batch: Batch, *, encoder: str = "target", tokenizer: Tokenizer | None = None
    ) -> Float[Tensor, "B N Z"]:
        """Latents of all tokens of the batch's windows, from the "target" or the "online" encoder.

        `tokenizer` is that of another archive of the batch's domain, where it is not the one of training.
        """
        chosen = cast(Encoder, self.target.module) if encoder == "target" else self.encoder
        return chosen.latents((tokenizer or self._tokenizer_of(batch))(batch))

    def _tokenizer_of(self, batch: Batch) -> Tokenizer:
        return self.tokenizers[batch.domain] if batch.domain else self.tokenizer


def target_values(tokenizer: Tokenizer) -> int:
    """Values in a token, of all its channels: what a masked autoencoder predicts for it."""
    return tokenizer.channels_per_token * tokenizer.patch_size
