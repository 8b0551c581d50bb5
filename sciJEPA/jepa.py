"""Wiring: context, target, predict, energy. Nothing here learns that is not defined elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sciJEPA.encoder import Encoder, EncoderConfig, of_domain
from sciJEPA.errors import UserError
from sciJEPA.forcings import predicted_values, tokens_without_forcings
from sciJEPA.losses import Centred, LossTerms, centre, centre_groups, prediction_distance, regularise, sigreg_term
from sciJEPA.masking import MaskPlan, TokenGrid
from sciJEPA.predictor import Predictor, PredictorConfig
from sciJEPA.target import MovingAverage, standardise
from sciJEPA.tokenizers.base import Batch, Tokenizer, Tokens

WEIGHTS = {
    "ema": (0.02, 0.001, 0.0),
    "vicreg": (1.0, 0.04, 0.0),
    "sigreg": (0.0, 0.0, 0.05),
    "salt": (0.0, 0.0, 0.0),
    "mae": (0.0, 0.0, 0.0),
}
"""Weights of variance, covariance and sigreg that go with each target, relative to the prediction: those of vicreg are
25 : 25 : 1 as in Bardes et al. 2022 (https://arxiv.org/abs/2105.04906), that of sigreg is LeJEPA's
(https://arxiv.org/abs/2511.08544); a frozen teacher (https://arxiv.org/abs/2509.24317) needs none."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is predicted, and what keeps it from collapsing."""

    target: str = "ema"
    """ema: latents of the moving-average encoder; vicreg and sigreg: of the encoder itself, with gradient; salt: of a
    frozen encoder that was trained to reconstruct; mae: the patches."""
    distance: str = "l2"
    """l2, l1 or smooth_l1."""
    standardise: str = "batch"
    """Targets are standardised over the batch, over the token's own features, or not (none)."""
    scope: str = "window"
    """What the target encoder sees of the future: the whole window, or the future alone."""
    layers: tuple[int, ...] = (-1,)
    """Outputs of the target encoder that are predicted, side by side: 0 is the embedding, -1 the last block."""
    variance: float | None = None
    """Weight of the variance hinge; if not given 0.02 for ema, 1 for vicreg, and 0 for the others."""
    covariance: float | None = None
    """Weight of the covariance term; if not given 0.001 for ema, 0.04 for vicreg, and 0 for the others."""
    sigreg: float | None = None
    """Weight of the distance from an isotropic Gaussian; if not given 0.05 for sigreg, and 0 for the others."""
    reconstruction: float = 0.0
    """Weight of the distance between predicted and true patches, beside that of latents."""
    slices: int = 64
    """Random directions in which that distance is taken, others at every step."""
    over: str = "batch"
    """What these look at: latents of all windows and tokens together (batch), or how those of a place change (time)."""
    teacher: str | None = None
    """salt: run or model folder with the encoder of a masked autoencoder of the same size and archive."""
    teacher_steps: int = 0
    """salt without a teacher: steps for which a masked autoencoder is trained first."""

    def __post_init__(self) -> None:
        allowed = {
            "target": tuple(WEIGHTS),
            "over": ("batch", "time"),
            "distance": ("l2", "l1", "smooth_l1"),
            "standardise": ("batch", "token", "none"),
            "scope": ("window", "future"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise UserError(f"objective.{name} must be one of {', '.join(values)}, got '{getattr(self, name)}'.")
        for name in ("variance", "covariance", "sigreg", "reconstruction"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"objective.{name} must be at least 0, got {getattr(self, name)}.")
        if self.target == "mae" and self.reconstruction:
            raise UserError(
                "objective.reconstruction adds patches to the targets, but those of mae are patches; set it to 0."
            )
        if self.slices < 1 or self.teacher_steps < 0 or not self.layers:
            raise UserError("objective needs slices of at least 1, teacher_steps of at least 0 and one of the layers.")
        if self.target == "salt" and (self.teacher is None) == (self.teacher_steps == 0):
            raise UserError(
                "objective.target salt needs a teacher: either set objective.teacher to the run folder of a masked "
                "autoencoder, or objective.teacher_steps to the steps for which one is trained first."
            )

    @property
    def weights(self) -> tuple[float, float, float]:
        """Weights of variance, covariance and sigreg."""
        given = (self.variance, self.covariance, self.sigreg)
        variance, covariance, sigreg = (
            usual if own is None else own for own, usual in zip(given, WEIGHTS[self.target], strict=True)
        )
        return variance, covariance, sigreg

    @property
    def gradient(self) -> bool:
        """Whether targets carry gradient."""
        return self.target in ("vicreg", "sigreg")

    @property
    def encoder(self) -> str:
        """The encoder that a run is for: the moving average ("target"), or the student ("online") of a teacher."""
        return "online" if self.target == "salt" else "target"


@dataclass(frozen=True)
class StepOutput:
    """One training step: the loss, and the latents that the monitor looks at."""

    terms: LossTerms
    context: Float[Tensor, "B C L"]
    target: Float[Tensor, "B M Q"]
    predicted: Float[Tensor, "B M Q"]
    encoded: Float[Tensor, "B M Q"] | None = None
    """Target latents before they are standardised; `target` itself if not given."""
    context_seen: Bool[Tensor, "B C"] | None = None
    target_seen: Bool[Tensor, "B M"] | None = None


class JEPA(nn.Module):
    """Joint-embedding predictive architecture: LeCun 2022, https://openreview.net/pdf?id=BZ5a1r-kVsf.

    Parameters
    ----------
    tokenizers
        By name of the domain; all domains share the blocks of encoder and predictor.
    forcings
        By name of the domain: variables that only the context encoder sees.
    """

    def __init__(
        self,
        tokenizers: Mapping[str, Tokenizer],
        encoder: EncoderConfig,
        predictor: PredictorConfig,
        objective: ObjectiveConfig,
        forcings: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.tokenizers, self.objective = dict(tokenizers), objective
        self.forcings = {name: tuple((forcings or {}).get(name, ())) for name in tokenizers}
        self.encoder = Encoder(encoder, tokenizers)
        self.norm = nn.LayerNorm(self.encoder.width)
        if any(not -self.encoder.depth - 1 <= layer <= self.encoder.depth for layer in objective.layers):
            raise UserError(
                f"objective.layers must name outputs between 0 (the embedding) and {self.encoder.depth} (the last "
                f"block), got {list(objective.layers)}."
            )
        if objective.over == "time" and any(objective.weights):
            for name, tokenizer in tokenizers.items():
                _require_times(name, tokenizer.grid)
        patches = {name: predicted_values(part, self.forcings[name]) for name, part in tokenizers.items()}
        self.predictor = Predictor(
            predictor,
            in_width=self.encoder.width,
            feature_widths={name: tokenizer.feature_width for name, tokenizer in tokenizers.items()},
            out_width=patches if objective.target == "mae" else self.encoder.width * len(objective.layers),
            patch_widths=patches if objective.reconstruction else None,
        )
        self.target = MovingAverage(self.encoder)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of a model of one domain."""
        (only,) = self.tokenizers.values()
        return only

    @property
    def target_encoder(self) -> Encoder:
        """The encoder whose latents are predicted."""
        return self.encoder if self.objective.gradient else cast(Encoder, self.target.module)

    def forward(self, batch: Batch, plan: MaskPlan, tokenizer: Tokenizer | None = None, *, step: int = 0) -> StepOutput:
        """Loss of one batch of one domain under one mask plan.

        `tokenizer` is that of another archive of the batch's domain, where it is not the one of training; `step` is the
        seed of random directions.
        """
        tokenizer = tokenizer or self._tokenizer_of(batch)
        tokens = tokenizer(batch)
        known = self._without_forcings(tokens, batch, tokenizer)
        return self.compare(tokens, known, plan, tokenizer.grid, step)

    def compare(self, tokens: Tokens, known: Tokens, plan: MaskPlan, grid: TokenGrid, step: int = 0) -> StepOutput:
        """Loss of tokens under a mask plan: all of a step that is computed with weights, and can be compiled at once.

        `known` are the tokens as the target encoder may see them.
        """
        visible = tokens.take(plan.context)
        if plan.channels is not None:
            visible = visible.only(plan.channels)
        latents = self.encoder(visible)
        context = self.norm(latents)
        wanted = known.take(plan.target)
        seen = wanted.attendable(visible, visible.seen)
        states = self.predictor.states(context, visible.features, wanted.features, seen, tokens.domain)
        predicted = self.predictor.answer(states, tokens.domain)
        target, encoded = self._targets(known, wanted, plan, grid)
        branches = [(latents, plan.context, visible.seen)]
        if self.objective.gradient:
            branches.append((encoded, plan.target, wanted.seen))
        terms = [self._regularise(*branch, grid, step) for branch in branches]
        prediction = prediction_distance(predicted, target, wanted.weight, distance=self.objective.distance)
        variance, covariance, sigreg = (torch.stack(part).mean() for part in zip(*terms, strict=True))
        weights = self.objective.weights
        total = prediction + weights[0] * variance + weights[1] * covariance + weights[2] * sigreg
        reconstruction = None
        if self.objective.reconstruction:
            reconstruction = self._reconstruction(states, wanted)
            total = total + self.objective.reconstruction * reconstruction
        parts = LossTerms(prediction, variance, covariance, sigreg, total, reconstruction)
        return StepOutput(parts, latents, target, predicted, encoded, visible.seen, wanted.seen)

    def _regularise(
        self,
        latents: Float[Tensor, "B N L"],
        numbers: Int[Tensor, "B N"],
        seen: Bool[Tensor, "B N"] | None,
        grid: TokenGrid,
        step: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Variance, covariance and sigreg terms of latents of these tokens."""
        flat, mask, windows = latents.flatten(0, 1), None if seen is None else seen.flatten(), len(latents)
        if self.objective.over == "time":
            rows = torch.arange(windows, device=numbers.device)[:, None]
            places = (rows * grid.per_time + numbers % grid.per_time).flatten()
            centred: Centred = centre_groups(flat, places, windows * grid.per_time, mask)
            flat = centred.rows
        else:
            centred = centre(flat, mask)
        if not self.objective.weights[2]:
            return *regularise(centred), latents.new_zeros((), dtype=torch.float32)
        sigreg = sigreg_term(flat, mask, windows=windows, slices=self.objective.slices, step=step)
        return *regularise(centred), sigreg

    def _reconstruction(self, states: Float[Tensor, "B M D"], wanted: Tokens) -> Float[Tensor, ""]:
        """Distance of the patches that the predictor's states tell from the true ones."""
        patches = of_domain(self.predictor.patches, wanted.domain)(states)
        return prediction_distance(patches, wanted.values.flatten(2), wanted.weight, distance=self.objective.distance)

    def _targets(self, tokens: Tokens, wanted: Tokens, plan: MaskPlan, grid: TokenGrid) -> tuple[Tensor, Tensor]:
        """Targets, and what they were before they were standardised."""
        if self.objective.target == "mae":
            patches = wanted.values.flatten(2)
            return patches, patches
        past = grid.context_times * grid.per_time
        forecast = plan.strategy == "forecast"
        # Hidden parts of the issue window are encoded without its future: as the probes will see them.
        start, stop = (past if forecast and self.objective.scope == "future" else 0), (None if forecast else past)
        scope = tokens.span(start, stop)
        with torch.set_grad_enabled(self.objective.gradient and torch.is_grad_enabled()):
            latents = self.target_encoder.outputs(scope, self.objective.layers)
            chosen = torch.arange(len(latents), device=latents.device)[:, None], plan.target - start
            return standardise(latents, self.objective.standardise, scope.seen)[chosen], latents[chosen]

    def encode(
        self, batch: Batch, *, encoder: str = "target", tokenizer: Tokenizer | None = None
    ) -> Float[Tensor, "B N Z"]:
        """Latents of all tokens of the batch's windows, from the "target" or the "online" encoder.

        `tokenizer` is that of another archive of the batch's domain, where it is not the one of training.
        """
        chosen = cast(Encoder, self.target.module) if encoder == "target" else self.encoder
        return chosen.latents(self.tokens(batch, encoder=encoder, tokenizer=tokenizer))

    def tokens(self, batch: Batch, *, encoder: str = "target", tokenizer: Tokenizer | None = None) -> Tokens:
        """What the "target" or the "online" encoder sees of windows: the target encoder sees no forcings.

        That of a masked autoencoder does. It encodes no targets, but is an average of the encoder that has seen them.
        """
        tokenizer = tokenizer or self._tokenizer_of(batch)
        tokens = tokenizer(batch)
        sees_all = encoder == "online" or self.objective.target == "mae"
        return tokens if sees_all else self._without_forcings(tokens, batch, tokenizer)

    def _without_forcings(self, tokens: Tokens, batch: Batch, tokenizer: Tokenizer) -> Tokens:
        forcings = self.forcings[batch.domain] if batch.domain else next(iter(self.forcings.values()))
        return tokens_without_forcings(tokens, batch, tokenizer, forcings)

    def _tokenizer_of(self, batch: Batch) -> Tokenizer:
        return self.tokenizers[batch.domain] if batch.domain else self.tokenizer


def compiled_in_training(compare: Callable[..., StepOutput], **options: Any) -> Callable[..., StepOutput]:
    """`JEPA.compare` compiled for steps, and as it is where nothing is trained.

    `options` are those of `torch.compile`.
    """
    compiled = torch.compile(compare, **options)

    def chosen(*arguments: Any) -> StepOutput:
        return (compiled if torch.is_grad_enabled() else compare)(*arguments)

    return chosen


def _require_times(name: str, grid: TokenGrid) -> None:
    if grid.context_times < 2:
        raise UserError(
            f"objective.over time compares a place's token steps, but the issue window of '{name}' has one; make "
            "tokenizer.patch_time smaller, or set objective.over to batch."
        )


def target_values(tokenizer: Tokenizer) -> int:
    """Values in a token, of all its channels: what a masked autoencoder predicts for it."""
    return tokenizer.channels_per_token * tokenizer.patch_size
