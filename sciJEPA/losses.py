"""Predictions and targets -> loss: a distance in latent space, and terms that keep the latents from collapsing.

Statistics are taken in float32 whatever the precision of the run.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class LossTerms:
    """The parts of one step's loss; `total` is what is minimised."""

    prediction: Float[Tensor, ""]
    variance: Float[Tensor, ""]
    covariance: Float[Tensor, ""]
    total: Float[Tensor, ""]


def prediction_distance(
    predicted: Float[Tensor, "B M Q"],
    target: Float[Tensor, "B M Q"],
    weight: Float[Tensor, "B M"] | None = None,
    *,
    distance: str = "l2",
) -> Float[Tensor, ""]:
    """Mean distance over targets and features, each target weighted by its observed share.

    Parameters
    ----------
    distance
        "l2" (mean squared), "l1" or "smooth_l1" (quadratic below 1).
    """
    measure = {"l2": functional.mse_loss, "l1": functional.l1_loss, "smooth_l1": functional.smooth_l1_loss}[distance]
    error = measure(predicted.float(), target.float(), reduction="none").mean(dim=-1)
    if weight is None:
        return error.mean()
    return (error * weight).sum() / weight.sum().clamp_min(1e-6)


def variance_term(latents: Float[Tensor, "S L"], floor: float = 1.0) -> Float[Tensor, ""]:
    """Hinge on the standard deviation of every feature: mean_j max(0, floor - sqrt(var_j + 1e-4)).

    Bardes et al. 2022 (VICReg, https://arxiv.org/abs/2105.04906).
    """
    return functional.relu(floor - (latents.float().var(dim=0) + 1e-4).sqrt()).mean()


def covariance_term(latents: Float[Tensor, "S L"]) -> Float[Tensor, ""]:
    """Sum of squared off-diagonal covariances over the width, from the same source as `variance_term`."""
    centred = latents.float() - latents.float().mean(dim=0)
    covariance = centred.T @ centred / (len(centred) - 1)
    # The diagonal is set to zero, not subtracted from the sum, in which it would drown the small terms.
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    return off_diagonal.pow(2).sum() / latents.shape[-1]


def regularise(latents: Float[Tensor, "B N L"], seen: Bool[Tensor, "B N"] | None = None) -> tuple[Tensor, Tensor]:
    """Variance and covariance terms over samples and tokens together, those without any observed value left out."""
    flat = torch.flatten(latents, 0, 1) if seen is None else latents[seen]
    if len(flat) < 2:
        return latents.new_zeros(()), latents.new_zeros(())
    return variance_term(flat), covariance_term(flat)
