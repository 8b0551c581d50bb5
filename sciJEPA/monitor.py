"""Latents -> signs of collapse. The loss is no measure of quality: these are logged beside it.

Arrives: the latents of a training step. Leaves: a few numbers for metrics.csv, and a warning that says what to try.
"""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from sciJEPA.jepa import StepOutput

RANK_FLOOR = 2.0
SPREAD_FLOOR = 0.05
"""Runs that learn stay near 1; with every matrix of the encoder erased at every step, less than 0.01 is left."""


class CollapseWarning(UserWarning):
    """The latents of a run have lost their variety."""


def effective_rank(latents: Float[Tensor, "S L"]) -> float:
    """Exp of the entropy of the normalised singular values of the centred latents: 1 (one direction) to L (all alike).

    Roy and Vetterli 2007 (https://ieeexplore.ieee.org/document/7098875); as a measure of representations RankMe,
    Garrido et al. 2023 (https://arxiv.org/abs/2210.02885).

    Examples
    --------
    >>> effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])) > 1.999
    True
    """
    latents = latents.detach().double()
    centred = latents - latents.mean(dim=0)
    singular = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(1e-30)
    return float(torch.exp(-(share * torch.log(share.clamp_min(1e-30))).sum()))


def spread(latents: Float[Tensor, "S L"]) -> float:
    """Standard deviation of the features over samples and tokens, relative to the latents' root mean square.

    Zero when every token of every sample has the same latent, at most 1.
    """
    latents = latents.detach().float()
    return float(latents.std(dim=0).pow(2).mean().sqrt() / latents.pow(2).mean().sqrt().clamp_min(1e-30))


@torch.no_grad()
def diagnose(output: StepOutput) -> dict[str, float]:
    """Numbers of one step: loss terms, effective rank and spread of context and target, predicted against target."""
    context, target = output.context.flatten(0, 1), output.target.flatten(0, 1)
    predicted = output.predicted.flatten(0, 1).float()
    return {
        "loss": float(output.terms.total),
        "loss_prediction": float(output.terms.prediction),
        "loss_variance": float(output.terms.variance),
        "loss_covariance": float(output.terms.covariance),
        "rank_online": effective_rank(context),
        "rank_target": effective_rank(target),
        "std_online": spread(context),
        "std_target": float(target.float().std(dim=0).mean()),
        "std_predicted": float(predicted.std(dim=0).mean()),
    }


def warn_of_collapse(numbers: dict[str, float], step: int) -> bool:
    """Warn when rank or spread has fallen through its floor; returns whether it has."""
    if numbers["rank_online"] >= RANK_FLOOR and numbers["std_online"] >= SPREAD_FLOOR:
        return False
    warnings.warn(
        f"at step {step} the latents have collapsed: effective rank {numbers['rank_online']:.2f}, spread "
        f"{numbers['std_online']:.1e} (floors {RANK_FLOOR:g} and {SPREAD_FLOOR:g}); try objective.variance 1, "
        "objective.covariance 0.04 or a lower training.learning_rate.",
        CollapseWarning,
        stacklevel=2,
    )
    return True
