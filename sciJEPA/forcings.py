"""Forcings: variables that are known ahead, which the context encoder sees and nothing ever predicts.

Arrives: names of variables (`data.forcings`). Leaves: archives, batches, masks and tokens that treat them so: no target
holds a forcing, the target encoder does not see it, and no probe forecasts or scores it. Where channels share a token,
its other channels are embedded alone; where they have tokens of their own, those of a forcing are no targets and are
missing for the target encoder. We decided against showing the predictor the forcings of the time to come: position
features have no room for fields.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from sciJEPA.archive import Archive, open_archive
from sciJEPA.errors import UserError
from sciJEPA.masking import Masker, MaskingConfig
from sciJEPA.tokenizers.base import Batch, Tokenizer, Tokens


def forcing_numbers(channels: Sequence[str], forcings: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the channels that belong to these variables, all levels of each.

    >>> forcing_numbers(["z@500", "t_sfc", "z@850"], ["t_sfc"])
    (1,)
    """
    return tuple(i for i, name in enumerate(channels) if name in forcings or name.partition("@")[0] in forcings)


def check_forcings(archive: Archive, forcings: Sequence[str]) -> None:
    """Refuse names that the archive does not have as fields, and a list that leaves nothing to predict."""
    for name in forcings:
        if name not in archive.variables:
            try:
                open_archive(archive, variables=[name])
            except UserError as error:
                raise UserError(f"data.forcings: {error}") from error
    if forcings and not set(archive.variables) - set(forcings):
        raise UserError(
            f"data.forcings names all variables of {archive.source} ({', '.join(archive.variables)}), so nothing is "
            "left to predict; name only those that are known ahead."
        )


def without_forcings(archive: Archive, forcings: Sequence[str]) -> Archive:
    """The archive with the variables that are forecast; refused where it has none of them."""
    names = [name for name in archive.variables if name not in forcings]
    if len(names) == len(archive.variables):
        return archive
    check_forcings(archive, [name for name in forcings if name in archive.variables])
    return open_archive(archive, variables=names)


def masker_of(tokenizer: Tokenizer, masking: MaskingConfig, seed: int, forcings: Sequence[str] = ()) -> Masker:
    """The masks of a tokenizer's windows: forcings are always shown, and no targets."""
    numbers, grid = forcing_numbers(tokenizer.channels, forcings), tokenizer.grid
    if not numbers or _share_tokens(tokenizer):
        return Masker(grid, masking, seed, tokenizer.channels_per_token, numbers)
    names = tokenizer.geometry.coordinates["channel"][0][: grid.per_time]
    fixed = np.flatnonzero(np.isin(names, [tokenizer.channels[number] for number in numbers]))
    return Masker(dataclasses.replace(grid, fixed=tuple(fixed.tolist())), masking, seed)


def tokens_without_forcings(tokens: Tokens, batch: Batch, tokenizer: Tokenizer, forcings: Sequence[str]) -> Tokens:
    """A batch's tokens as the target encoder sees them."""
    numbers = forcing_numbers(tokenizer.channels, forcings)
    if not numbers:
        return tokens
    if _share_tokens(tokenizer):
        return tokens.only([number for number in range(len(tokens.channels)) if number not in numbers])
    hidden = torch.zeros(batch.values.shape[1], dtype=torch.bool, device=batch.values.device)
    hidden[list(numbers)] = True
    hidden = hidden.view(-1, *(1,) * (batch.values.ndim - 2)).expand_as(batch.values)
    observed = ~hidden if batch.observed is None else batch.observed & ~hidden
    return tokenizer(dataclasses.replace(batch, values=batch.values.masked_fill(hidden, 0), observed=observed))


def predicted_values(tokenizer: Tokenizer, forcings: Sequence[str] = ()) -> int:
    """Values in a token that are no forcings: what a masked autoencoder predicts for it."""
    known = len(forcing_numbers(tokenizer.channels, forcings)) if _share_tokens(tokenizer) else 0
    return (tokenizer.channels_per_token - known) * tokenizer.patch_size


def _share_tokens(tokenizer: Tokenizer) -> bool:
    return tokenizer.channels_per_token == len(tokenizer.channels)
