"""A model, an archive and a token -> whom the token attends to, and what its latent answers to.

Arrives: a model, an archive, an issue time and the number of a token. Leaves: labelled weights and slopes. The two
answer different questions. Attention says what one block mixes in; it is no measure of what matters, since values,
perceptrons and other blocks follow (Jain and Wallace 2019, https://arxiv.org/abs/1902.10186). The receptive field is
the slope of the latent itself. We decided against products of attention over blocks, which leave out the same things.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.explore.states import step_at

if TYPE_CHECKING:
    from sciJEPA.archive import Archive
    from sciJEPA.explore.fields import Source
    from sciJEPA.hub import Domain, Model
    from sciJEPA.tokenizers.base import Batch


def attention(
    model: "Model",
    archive: "Source",
    time: object,
    token: int,
    *,
    layer: int = -1,
    encoder: str = "target",
    domain: str | None = None,
) -> xr.DataArray:
    """With which weight a token of an issue window attends to each of its tokens, in one block.

        w_h = softmax(q_h k_h' / sqrt(D)),   for each head h; the weights of a head sum to one

    Source: Vaswani et al. 2017, "Attention is all you need", https://arxiv.org/abs/1706.03762.

    Parameters
    ----------
    time
        Issue time: the last step of the window.
    token
        Number of the token along `token` of `embed`'s latents; negative ones count from the last.
    layer
        Which block, counted as in `encoder.latent_layers`: 1 is the first and -1 the last.
    encoder
        "target" or "online".
    domain
        Which domain of a joint model; found from the archive if not given.

    Returns
    -------
    xr.DataArray
        Dims (head, token) with the coordinates of every token. Tokens without any observed value have weight 0.

    Examples
    --------
    >>> weights = attention(model, "my.zarr", "2003-01-05", token=-1)  # doctest: +SKIP
    >>> on_map(weights.mean("head"))  # doctest: +SKIP
    """
    import torch

    chosen = _encoder(model, encoder)
    number = layer % (chosen.depth + 1) if abs(layer) <= chosen.depth else 0
    if not number:
        raise UserError(f"there is no block {layer}; the encoder has {chosen.depth}: 1 is the first and -1 the last.")
    block = chosen.blocks[number - 1]
    window = _Window.read(model, archive, time, token, domain)
    with torch.inference_mode():
        tokens = model.jepa.tokens(window.batch, encoder=encoder, tokenizer=window.domain.tokenizer)
        memory = block.norm_attention(chosen.outputs(tokens, [number - 1]))
        seen = tokens.span(window.token, window.token + 1).attendable(tokens, tokens.seen)
        weights = block.attention.weights(memory[:, [window.token]], memory, seen)[0, :, 0].cpu().numpy()
    coords = {"head": np.arange(1, len(weights) + 1), **window.token_coordinates()}
    attributes = {"units": "1", "long_name": "attention", "layer": number, "encoder": encoder, **window.attributes}
    return xr.DataArray(weights, coords, ("head", "token"), name="attention", attrs=attributes)


def receptive_field(
    model: "Model",
    archive: "Source",
    time: object,
    token: int,
    *,
    by: str = "value",
    encoder: str = "target",
    domain: str | None = None,
) -> xr.DataArray:
    """How strongly the latent of one token answers to each value of its window, or to each token.

        r(x) = sqrt( mean over features l of (d z_l / d x)^2 ),   r(n) = sqrt( sum over x in token n of r(x)^2 )

    by automatic differentiation, x in standardised anomalies. It holds for small changes around this window.

    Source: Luo et al. 2016, "Understanding the effective receptive field", https://arxiv.org/abs/1701.04128.

    Parameters
    ----------
    time
        Issue time: the last step of the window.
    token
        Number of the token along `token` of `embed`'s latents; negative ones count from the last.
    by
        "value" or "token": the answer to a change of each value, or of all values of a token, independent of each
        other.
    encoder
        "target" or "online".
    domain
        Which domain of a joint model; found from the archive if not given.

    Returns
    -------
    xr.DataArray
        Dims (time, channel, and the archive's dimensions of space), or (token,) with the coordinates of every token;
        units of latents per standard deviation.

    Examples
    --------
    >>> receptive_field(model, "my.zarr", "2003-01-05", token=-1)  # doctest: +SKIP
    """
    import torch

    if by not in ("value", "token"):
        raise UserError(f"by must be 'value' or 'token', got '{by}'.")
    _encoder(model, encoder)
    window = _Window.read(model, archive, time, token, domain)
    values = window.batch.values.clone().requires_grad_()
    tokenizer = window.domain.tokenizer
    latents = model.jepa.encode(replace(window.batch, values=values), encoder=encoder, tokenizer=tokenizer)
    squares = torch.zeros_like(values)
    for feature in latents[0, window.token]:
        (slope,) = torch.autograd.grad(feature, values, retain_graph=True)
        squares += slope**2
    squares /= latents.shape[-1]
    named: dict[str, Any] = {
        "name": "receptive_field",
        "attrs": {"units": "1", "long_name": "answer of the latent", "encoder": encoder, **window.attributes},
    }
    if by == "token":
        answer = tokenizer.patchify(squares).sum(dim=(2, 3)).sqrt()[0].cpu().numpy()
        return xr.DataArray(answer, window.token_coordinates(), ("token",), **named)
    answer = np.moveaxis(squares[0].sqrt().cpu().numpy(), 0, 1)
    return xr.DataArray(answer, window.coordinates(), ("time", "channel", *window.archive.space.dims), **named)


def _encoder(model: "Model", encoder: str) -> Any:
    if encoder not in ("target", "online"):
        raise UserError(f"encoder must be 'target' or 'online', got '{encoder}'.")
    return model.jepa.target.module if encoder == "target" else model.jepa.encoder


@dataclass(frozen=True)
class _Window:
    """One issue window as the encoder meets it, and a token of it."""

    archive: "Archive"
    domain: "Domain"
    batch: "Batch"
    first: int
    """Its first step."""
    token: int
    count: int
    """Tokens in it."""
    model_id: str

    @classmethod
    def read(cls, model: "Model", archive: "Source", time: object, token: int, domain: str | None) -> "_Window":
        """The window that ends at `time`; refused where it has a gap, or no such token."""
        from sciJEPA.loader import WindowReader
        from sciJEPA.samples import window_starts

        opened, chosen = model.open(archive, domain)
        context, step = chosen.config.data.context, step_at(opened.time[: opened.steps_per_series], time)
        grid = chosen.tokenizer.grid
        count = grid.context_times * grid.per_time
        if not -count <= token < count:
            raise UserError(f"there is no token {token}; the issue window has {count}, numbered from 0.")
        first = step - context + 1
        if not len(window_starts(opened, ((max(first, 0), step + 1),), context)):
            raise UserError(f"{time} does not end {context} consecutive steps of {opened.source}; choose a later time.")
        reader = WindowReader(opened, chosen.normalizer, memory_mb=chosen.config.data.memory_mb)
        device = next(model.jepa.parameters()).device
        batch = replace(reader.read(np.array([first]), context), domain=chosen.name).to(device)
        return cls(opened, chosen, batch, first, token % count, count, model.id)

    @property
    def attributes(self) -> dict[str, Any]:
        """Which token of which window: its number and place."""
        found = self.domain.tokenizer.geometry.coordinates.items()
        place = {f"token_{name}": np.asarray(values)[self.token].item() for name, (values, _) in found}
        issue = self.archive.time[self.first + self.domain.config.data.context - 1]
        return {"token": self.token, **place, "issue_time": str(issue), "model_id": self.model_id}

    def token_coordinates(self) -> dict[str, Any]:
        """Where and when the tokens of the window are."""
        from sciJEPA.latents import token_coordinates

        return dict(token_coordinates(self.domain.tokenizer, slice(0, self.count)))

    def coordinates(self) -> dict[str, Any]:
        """Labels of the window's values."""
        archive, space = self.archive, self.archive.space.dims
        where = {str(name): c for name, c in archive.ds.coords.items() if c.dims and set(c.dims) <= set(space)}
        time = archive.time[self.first : self.first + self.domain.config.data.context]
        return {"time": time, "channel": [channel.name for channel in archive.channels], **where}
