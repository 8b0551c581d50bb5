"""Latents -> signs of collapse. The loss is no measure of quality: these are logged beside it.

Arrives: the latents of a training step, and the model with a few windows it was not trained on. Leaves: a few numbers
for metrics.csv, and a warning that says what to try. All of them are looked at by one process; `gathered` brings it the
latents of the others.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciJEPA.jepa import StepOutput
from sciJEPA.training.distributed import gather

RANK_FLOOR = 2.0
SPREAD_FLOOR = 0.05
"""Runs that learn stay near 1; with every matrix of the encoder erased at every step, less than 0.01 is left."""
CONTENT_FLOOR = 0.1
"""Share of the variance that windows make, relative to the untrained encoder's: how much there is depends on the data.
Latents that know their place and not their content have none; usual runs stay above a half."""
PROBE_CEILING = 1.1
"""Probe error relative to the untrained encoder's: runs that learn stay below 1.01, others reach 1.1 to 4."""
FLOORS = {
    "rank_online": RANK_FLOOR,
    "rank_target": RANK_FLOOR,
    "std_online": SPREAD_FLOOR,
    "spread_target": SPREAD_FLOOR,
}
ADVICE = {
    "ema": "try objective.variance 1 and objective.covariance 0.04, a longer training.half_life",
    "vicreg": "try a larger objective.variance (1 is usual)",
    "sigreg": "try a larger objective.sigreg (0.05 is usual)",
    "salt": "try another objective.teacher or more objective.teacher_steps, objective.variance 0.02",
    "mae": "try objective.variance 0.02",
}
"""What to try, by objective.target; always also a lower learning rate."""


class CollapseWarning(UserWarning):
    """The latents of a run have lost their variety."""


def effective_rank(latents: Float[Tensor, "S L"]) -> float:
    """Exp of the entropy of the normalised singular values of the centred latents: 1 (one direction) to L (all alike).

    Roy and Vetterli 2007 (https://ieeexplore.ieee.org/document/7098875); as a measure of representations RankMe,
    Garrido et al. 2023 (https://arxiv.org/abs/2210.02885). NaN for latents that are not finite.

    Examples
    --------
    >>> effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])) > 1.999
    True
    """
    latents = latents.detach().double()
    if not latents.isfinite().all():
        return math.nan
    centred = latents - latents.mean(dim=0)
    return _entropy_rank(torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0).sqrt())


def _entropy_rank(values: Float[Tensor, " L"]) -> float:
    share = values / values.sum().clamp_min(1e-30)
    return float(torch.exp(-(share * torch.log(share.clamp_min(1e-30))).sum()))


def lidar(latents: Float[Tensor, "B N L"], seen: Bool[Tensor, "B N"] | None = None) -> float:
    """Effective rank of what tells windows apart, measured against the variety within a window: 1 to L.

    Exp of the entropy of the normalised eigenvalues of W^(-1/2) C W^(-1/2), with the covariance C of the windows' means
    and the mean covariance W within a window, plus 1e-4 of its trace over L on the diagonal: LiDAR, Thilak et al. 2023
    (https://arxiv.org/abs/2312.04000). There a class is a picture and its members are augmented views. We have no
    views: the tokens of a window, its places and times, stand in for them. So this is no rank of the latents but says
    how many directions characterise a window as a whole; it is at most the number of windows less one.
    """
    weight = torch.ones(latents.shape[:2]) if seen is None else seen.cpu()
    latents, weight = latents.detach().double().cpu(), weight.double()[..., None]
    latents, weight = latents[weight.sum(dim=(1, 2)) > 0], weight[weight.sum(dim=(1, 2)) > 0]
    if len(latents) < 2:
        return math.nan
    means = (latents * weight).sum(dim=1) / weight.sum(dim=1)
    inner = ((latents - means[:, None]) * weight).flatten(0, 1)
    between, within = means.T.cov(), inner.T @ inner / (weight.sum() - len(means)).clamp_min(1)
    size, directions = torch.linalg.eigh(within)
    floor = (1e-4 * size.mean()).clamp_min(1e-30)
    whitening = directions * (size.clamp_min(0) + floor).rsqrt() @ directions.T
    return _entropy_rank(torch.linalg.eigvalsh(whitening @ between @ whitening).clamp_min(0))


def spread(latents: Float[Tensor, "S L"]) -> float:
    """Standard deviation of the features over samples and tokens, relative to the latents' root mean square.

    Zero when every token of every sample has the same latent, at most 1.
    """
    latents = latents.detach().float()
    return float(latents.std(dim=0).pow(2).mean().sqrt() / latents.pow(2).mean().sqrt().clamp_min(1e-30))


def least_spread(latents: Float[Tensor, "S L"]) -> float:
    """Standard deviation of the feature that varies least, relative to the mean over features; 1 if all are alike."""
    deviation = latents.detach().float().std(dim=0)
    return float(deviation.min() / deviation.mean().clamp_min(1e-30))


def content(latents: Float[Tensor, "B N L"]) -> float:
    """Share of the latents' variance that is between windows, at the same token: 0 where only the place matters."""
    latents = latents.detach().double()
    between_windows = latents.var(dim=0, unbiased=False).mean(dim=0).sum()
    return float(between_windows / latents.flatten(0, 1).var(dim=0, unbiased=False).sum().clamp_min(1e-30))


def gathered(output: StepOutput) -> StepOutput:
    """The step as one process would have seen it with the whole batch; every process must ask for it."""

    def mask(seen: Tensor | None, latents: Tensor) -> Tensor:
        whole = torch.ones(latents.shape[:2], dtype=torch.uint8, device=latents.device)
        return gather(whole if seen is None else seen.to(torch.uint8)).bool()

    encoded = output.target if output.encoded is None else output.encoded
    return dataclasses.replace(
        output,
        context=gather(output.context),
        target=gather(output.target),
        predicted=gather(output.predicted),
        encoded=gather(encoded),
        context_seen=mask(output.context_seen, output.context),
        target_seen=mask(output.target_seen, output.target),
    )


@torch.no_grad()
def diagnose(output: StepOutput) -> dict[str, float]:
    """Numbers of one step: loss terms, and ranks and spreads of what is seen of context, target and prediction."""
    context = _rows(output.context, output.context_seen)
    encoded = _rows(output.target if output.encoded is None else output.encoded, output.target_seen)
    target, predicted = (_rows(part, output.target_seen).float() for part in (output.target, output.predicted))
    reconstruction = output.terms.reconstruction
    further = {} if reconstruction is None else {"loss_reconstruction": float(reconstruction)}
    return {
        "loss": float(output.terms.total),
        "loss_prediction": float(output.terms.prediction),
        "loss_variance": float(output.terms.variance),
        "loss_covariance": float(output.terms.covariance),
        "loss_sigreg": float(output.terms.sigreg),
        **further,
        "rank_online": effective_rank(context),
        "rank_target": effective_rank(target),
        "lidar_online": lidar(output.context, output.context_seen),
        "lidar_target": lidar(output.target, output.target_seen),
        "std_online": spread(context),
        "std_least_online": least_spread(context),
        "spread_target": spread(encoded),
        "std_least_target": least_spread(encoded),
        "std_target": float(target.std(dim=0).mean()),
        "std_predicted": float(predicted.std(dim=0).mean()),
        "variance_ratio": float(predicted.var(dim=0).sum() / target.var(dim=0).sum().clamp_min(1e-30)),
    }


def _rows(latents: Float[Tensor, "B N L"], seen: Bool[Tensor, "B N"] | None) -> Tensor:
    """Latents of the seen tokens; all of them where too few are seen to say anything."""
    if seen is None or int(seen.sum()) < 2:
        return latents.flatten(0, 1)
    return latents[seen]


def warn_of_collapse(
    numbers: Mapping[str, float], step: int, objective: str = "ema", untrained: Mapping[str, float] | None = None
) -> bool:
    """Warn when a number has fallen through its floor; returns whether one has. Numbers that are not there pass.

    Parameters
    ----------
    untrained
        The same numbers of the untrained encoder: latents may keep their variety and lose what they are for.
    """
    # What is not a number has fallen as well.
    low = {name: numbers[name] for name, floor in FLOORS.items() if name in numbers and not numbers[name] >= floor}
    signs = [f"{name} {value:.2g} (floor {FLOORS[name]:g})" for name, value in low.items()]
    for name, start in (untrained or {}).items():
        value = numbers.get(name, math.nan)
        forgot = name == "probe_error" and value > PROBE_CEILING * start
        if forgot or (name.startswith("content_") and value < CONTENT_FLOOR * start):
            signs.append(f"{name} {value:.2g} (untrained encoder {start:.2g})")
    if not signs:
        return False
    found, lost = ", ".join(signs), "have collapsed" if low or "content_" in " ".join(signs) else "forget"
    warnings.warn(
        f"at step {step} the latents {lost}: {found}; {ADVICE[objective]}, or a lower training.learning_rate.",
        CollapseWarning,
        stacklevel=2,
    )
    return True
