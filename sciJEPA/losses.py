"""Predictions and targets -> loss: a distance in latent space, and terms that keep the latents from collapsing.

Statistics are taken in float32 whatever the precision of the run, over the tokens with any observed value, and over all
processes of a run.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sciJEPA.training.distributed import all_sum

FURTHEST, POINTS = 5.0, 8
"""Where characteristic functions are compared: at 5/8, 10/8, ..., 5. They are even, and agree at 0."""


@dataclass(frozen=True)
class LossTerms:
    """The parts of one step's loss; `total` is what is minimised."""

    prediction: Float[Tensor, ""]
    variance: Float[Tensor, ""]
    covariance: Float[Tensor, ""]
    sigreg: Float[Tensor, ""]
    total: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""] | None = None
    """Distance of predicted from true patches, where they are predicted beside latents."""


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
    weight = torch.ones_like(error) if weight is None else weight
    distances, weights = all_sum(torch.stack([(error * weight).sum(), weight.sum()])).unbind()
    return distances / weights.clamp_min(1e-6)


@dataclass(frozen=True)
class Centred:
    """Latents less the mean of their group, zero where unseen, and their degrees of freedom over all processes."""

    rows: Float[Tensor, "S L"]
    degrees: Float[Tensor, ""]

    @property
    def covariance(self) -> Float[Tensor, "L L"]:
        """Unbiased covariance over all processes; zero where there is nothing to take it from."""
        with _float32(self.rows):
            return all_sum(self.rows.T @ self.rows) / self.degrees.clamp_min(1)


def centre(latents: Float[Tensor, "S L"], seen: Bool[Tensor, " S"] | None = None) -> Centred:
    """Latents less the mean of all that are seen, in all processes."""
    rows, weight = _kept(latents, seen)
    sums = all_sum(torch.cat([rows.sum(dim=0), weight.sum()[None]]))
    return Centred((rows - sums[:-1] / sums[-1].clamp_min(1)) * weight[:, None], sums[-1] - 1)


def centre_groups(
    latents: Float[Tensor, "S L"], groups: Int[Tensor, " S"], count: int, seen: Bool[Tensor, " S"] | None = None
) -> Centred:
    """Latents less the mean of their group, of which each lies in one process.

    Parameters
    ----------
    groups, count
        Number of each latent's group, below `count`: a place of a window, to compare it with its other times.
    """
    rows, weight = _kept(latents, seen)
    members = weight.new_zeros(count).index_add(0, groups, weight)
    mean = rows.new_zeros(count, rows.shape[1]).index_add(0, groups, rows) / members.clamp_min(1)[:, None]
    degrees = all_sum((members - 1).clamp_min(0).sum())
    return Centred((rows - mean[groups]) * weight[:, None], degrees)


def _float32(rows: Tensor) -> torch.autocast:
    """Matrix products in the precision of their factors: in a run in bfloat16 they would be taken in it."""
    return torch.autocast(rows.device.type, enabled=False)


def _kept(latents: Float[Tensor, "S L"], seen: Bool[Tensor, " S"] | None) -> tuple[Tensor, Tensor]:
    """Latents in float32, zero where unseen, and 1 for what is seen: sizes do not depend on what is missing."""
    if seen is None:
        return latents.float(), latents.new_ones(len(latents), dtype=torch.float32)
    return latents.float().where(seen[:, None], 0.0), seen.float()


def variance_term(covariance: Float[Tensor, "L L"], floor: float = 1.0) -> Float[Tensor, ""]:
    """Hinge on the standard deviation of every feature: mean_j max(0, floor - sqrt(C_jj + 1e-4)).

    Bardes et al. 2022 (VICReg, https://arxiv.org/abs/2105.04906).
    """
    return functional.relu(floor - (covariance.diagonal() + 1e-4).sqrt()).mean()


def covariance_term(covariance: Float[Tensor, "L L"]) -> Float[Tensor, ""]:
    """Sum of squared off-diagonal covariances over the width, from the same source as `variance_term`."""
    # The diagonal is set to zero, not subtracted from the sum, in which it would drown the small terms.
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    return off_diagonal.pow(2).sum() / len(covariance)


def regularise(latents: Centred) -> tuple[Tensor, Tensor]:
    """Variance and covariance terms; zero where fewer than two latents are seen."""
    covariance, enough = latents.covariance, (latents.degrees >= 1).float()
    return variance_term(covariance) * enough, covariance_term(covariance) * enough


def sigreg_term(
    latents: Float[Tensor, "S L"],
    seen: Bool[Tensor, " S"] | None = None,
    *,
    windows: int,
    slices: int = 64,
    step: int = 0,
) -> Float[Tensor, ""]:
    """How far the latents are from an isotropic Gaussian: mean Epps-Pulley statistic of random projections.

    For a direction u, N * integral |mean_s exp(i t u.z_s) - exp(-t**2 / 2)|**2 exp(-t**2 / 2) dt over [-5, 5], by the
    trapezoidal rule. Sketched isotropic Gaussian regularisation of LeJEPA, Balestriero and LeCun 2025
    (https://arxiv.org/abs/2511.08544), with its 17 points of t, of which symmetry leaves 8.

    Parameters
    ----------
    windows
        N, counted in this process: windows, since the tokens of one are no independent draws.
    slices, step
        Number of directions, drawn afresh at every step: the same ones in all processes.
    """
    rows, weight = _kept(latents, seen)
    generator = torch.Generator().manual_seed(step)
    directions = torch.randn(rows.shape[1], slices, generator=generator).to(rows)
    spacing = FURTHEST / POINTS
    points = spacing * torch.arange(1, POINTS + 1, device=rows.device)
    with _float32(rows):
        angles = (rows @ functional.normalize(directions, dim=0))[..., None] * points
    sums = torch.stack([(angles.cos() * weight[:, None, None]).sum(0), (angles.sin() * weight[:, None, None]).sum(0)])
    counts = all_sum(torch.stack([weight.sum(), weight.new_tensor(float(windows))]))
    real, imaginary = all_sum(sums) / counts[0].clamp_min(1)
    gaussian = (-0.5 * points.pow(2)).exp()
    misfit = ((real - gaussian).pow(2) + imaginary.pow(2)) * gaussian
    ends = torch.ones_like(points)
    ends[-1] = 0.5
    return 2 * spacing * counts[1] * (misfit * ends).sum(dim=-1).mean() * (counts[0] >= 2).float()
