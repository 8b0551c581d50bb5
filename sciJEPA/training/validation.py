"""Model and windows it was not trained on -> numbers beside the loss: validation loss, attention, an online probe.

Arrives: a JEPA and a few batches of the validation split. Leaves: a few numbers for metrics.csv. `probe_error` is what
runs and steps should be compared by: losses of different objectives cannot be, and a loss may fall while latents lose
what a forecast needs.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from sciJEPA.encoder import Attention, Encoder
from sciJEPA.jepa import JEPA
from sciJEPA.masking import MaskPlan, TokenGrid
from sciJEPA.tokenizers.base import Batch, Tokens
from sciJEPA.training.monitor import content

Item = TypeVar("Item")
ATTENDING = 4
"""Windows whose attention is looked at."""
LOSS_BATCHES = 4
"""Batches whose loss is taken."""
PROBED = 128
"""Windows of the online probe, at least; with 32 of them a trained encoder looked worse than it was."""
STRETCHES = 8
"""The online probe is fitted on every other one of so many stretches of them, and judged on the rest."""
SHRINKAGE = 0.1
"""Strength of the online probe's ridge, relative to the mean variance of a feature."""
SMALLEST = 1e-12


@torch.no_grad()
def validate(
    jepa: JEPA,
    batches: Sequence[tuple[Batch, MaskPlan]],
    precision: Callable[[], AbstractContextManager] = contextlib.nullcontext,
) -> dict[str, float]:
    """Numbers of one domain; none is a number (NaN) where its validation split has no window.

    Parameters
    ----------
    precision
        Opens the context in which the model computes.
    """
    names = ("validation_loss", "content_online", "content_target", "attention_online", "attention_target")
    numbers = dict.fromkeys((*names, "probe_error"), math.nan)
    if not batches:
        return numbers
    tokenizer = jepa.tokenizers[batches[0][0].domain] if batches[0][0].domain else jepa.tokenizer
    probed = [batch for batch, _ in _apart(batches, max(2, math.ceil(PROBED / len(batches[0][0].samples))))]
    past = tokenizer.grid.context_times * tokenizer.grid.per_time
    handed_on = jepa.objective.encoder
    with precision():
        losses = [float(jepa(batch, plan).terms.prediction) for batch, plan in _apart(batches, LOSS_BATCHES)]
        latents: list[Tensor] = []
        for name, encoder in (("online", jepa.encoder), ("target", cast(Encoder, jepa.target.module))):
            # The encoder that is handed on sees all of these windows, the other a batch of them.
            issue = [
                jepa.tokens(batch, encoder=name, tokenizer=tokenizer).span(0, past)
                for batch in (probed if name == handed_on else probed[:1])
            ]
            varied: list[Tensor] = []
            for number, part in enumerate(issue):
                found = encoder.outputs(part, (-1, *jepa.encoder.latent_layers)).float()
                if number in _apart(range(len(issue)), 2):
                    varied.append(found[..., : jepa.encoder.width])
                if name == handed_on:
                    latents.append(found[:, -tokenizer.grid.per_time :, jepa.encoder.width :].clone())
            if len(several := torch.cat(varied)) > 1:
                numbers[f"content_{name}"] = content(several)
            numbers[f"attention_{name}"] = attention_entropy(encoder, issue[0])
    numbers["validation_loss"] = sum(losses) / len(losses)
    truth = [jepa.tokens(batch, tokenizer=tokenizer) for batch in probed]
    numbers["probe_error"] = probe_error(torch.cat(latents), truth, tokenizer.grid)
    return numbers


def _apart(items: Sequence[Item], count: int) -> Sequence[Item]:
    """As many of them or a few more, evenly apart; all where there are not so many."""
    return items[:: max(1, len(items) // count)]


@torch.no_grad()
def attention_entropy(encoder: Encoder, tokens: Tokens) -> float:
    """Mean entropy of attention over blocks, heads and tokens: 0 (each to one token) to 1 (to all alike).

    Near 0 attention has frozen (Zhai et al. 2023, https://arxiv.org/abs/2303.06296); near 1 it only takes the mean.
    """
    found: list[Tensor] = []

    def look(attention: Attention, inputs: tuple[Tensor, ...]) -> None:
        x, _, seen = inputs
        found.append(attention.entropy(x, seen))

    attentions = [part for part in encoder.blocks.modules() if isinstance(part, Attention)]
    hooks = [attention.register_forward_pre_hook(look) for attention in attentions]
    try:
        few = torch.arange(min(ATTENDING, len(tokens.values)), device=tokens.values.device)
        encoder(tokens.samples(few))
    finally:
        for hook in hooks:
            hook.remove()
    return float(torch.stack(found).mean()) if found else math.nan


def probe_error(latents: Float[Tensor, "B P Z"], tokens: Sequence[Tokens], grid: TokenGrid) -> float:
    """Error of a ridge regression from a place's last latent to its next token, over the truth's root mean square.

    Windows come in the order of time. Fitted on every other one of `STRETCHES` stretches of them and judged on the
    rest, so that both have all seasons: 1 is what predicting zero, the climatology, scores. Only observed values
    count. NaN where there are fewer than four windows or nothing follows, and for latents that are not finite, with
    which a GPU's solver fails. `latents` are those of the last time before what is predicted.
    """
    windows = len(latents)
    if windows < 4 or grid.times == grid.context_times or not latents.isfinite().all():
        return math.nan
    last, per_time = (grid.context_times - 1) * grid.per_time, grid.per_time
    truth = torch.cat([part.values[:, last + per_time : last + 2 * per_time].flatten(2) for part in tokens]).double()
    weight = torch.cat([_observed(part)[:, last + per_time : last + 2 * per_time].flatten(2) for part in tokens])
    features = latents.double()
    test = torch.arange(windows, device=latents.device) * min(STRETCHES, windows) // windows % 2 == 1
    train = ~test
    mean = features[train].mean(dim=(0, 1))
    deviation = features[train].flatten(0, 1).std(dim=0).clamp_min(SMALLEST)
    inputs = (features - mean) / deviation
    usual = (truth * weight)[train].sum(dim=(0, 1)) / weight[train].sum(dim=(0, 1)).clamp_min(1)
    rows, wanted = inputs[train].flatten(0, 1), ((truth - usual) * weight)[train].flatten(0, 1)
    strength = SHRINKAGE * len(rows) * torch.eye(rows.shape[1]).to(rows)
    # A missing value counts as the mean here: one matrix for all of a token's values.
    solution = torch.linalg.solve(rows.T @ rows + strength, rows.T @ wanted)
    error = ((inputs[test] @ solution + usual - truth[test]) * weight[test]).pow(2).sum()
    size = (truth[test] * weight[test]).pow(2).sum()
    return float((error / size.clamp_min(SMALLEST)).sqrt())


def _observed(tokens: Tokens) -> Tensor:
    return torch.ones_like(tokens.values) if tokens.observed is None else tokens.observed.to(tokens.values.dtype)
