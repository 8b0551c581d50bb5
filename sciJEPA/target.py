"""Latents -> targets: the moving average of the encoder, and what of its output the predictor has to meet.

Arrives: the encoder and the tokens. Leaves: targets without gradient. We decided against a fixed momentum: 0.999 barely
moves in a thousand steps and forgets everything in a million; a half-life as a share of the run does not depend on its
length.
"""

import copy

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sciJEPA.training.distributed import all_sum, own


def momentum(half_life: float, steps: int) -> float:
    """Weight m of the old average, such that m ** (half_life * steps) = 1/2.

    >>> round(momentum(0.1, 1000), 5)
    0.99309
    """
    return 0.5 ** (1.0 / max(half_life * steps, 1e-9))


class MovingAverage(nn.Module):
    """Exponential moving average of a module's parameters; never trained, never in training mode."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "MovingAverage":
        """Stay in evaluation mode, whatever the model around it does."""
        return super().train(False)

    @torch.no_grad()
    def update(self, source: nn.Module, weight: float) -> None:
        """Move by (1 - weight) of the way: average <- weight * average + (1 - weight) * source."""
        torch._foreach_lerp_(own(self.module.parameters()), own(source.parameters()), 1.0 - weight)

    @torch.no_grad()
    def forward(self, *inputs: object) -> Tensor:
        """The average's output."""
        return self.module(*inputs)


def standardise(
    latents: Float[Tensor, "B N L"], over: str, seen: Bool[Tensor, "B N"] | None = None
) -> Float[Tensor, "B N L"]:
    """Bring targets to mean 0 and variance 1, in float32; a batch is that of all processes together.

    Parameters
    ----------
    over
        "batch": every feature over samples and tokens, which keeps what is large in one sample and small in another;
        "token": every token over its features (the layer norm of I-JEPA, https://arxiv.org/abs/2301.08243), which
        removes the amplitude; "none".
    seen
        Tokens with any observed value: those of the batch from which its mean and variance come.
    """
    latents = latents.float()
    if over == "none":
        return latents
    if over == "token":
        mean, variance = latents.mean(dim=2, keepdim=True), latents.var(dim=2, keepdim=True, unbiased=False)
    else:
        # The same sums whatever is missing: processes must agree on how many there are.
        weight = torch.ones_like(latents[..., :1]) if seen is None else seen.float()[..., None]
        sums = all_sum(torch.cat([(latents * weight).sum(dim=(0, 1)), weight.sum()[None]]))
        count = sums[-1].clamp_min(1)
        mean = sums[:-1] / count
        variance = all_sum(((latents - mean).pow(2) * weight).sum(dim=(0, 1))) / count
    return (latents - mean) * torch.rsqrt(variance + 1e-6)
