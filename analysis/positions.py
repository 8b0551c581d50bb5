"""Rotary or Fourier positions in the encoder: which makes the better frozen latents?

    python analysis/positions.py --archive pressure=ncep_slp_natl_daily_2001_2010.nc --archive transformer=ETTh1.csv \
        --out runs/positions --seeds 0 1 --steps 600
    python analysis/positions.py --archive flow=kolmogorov.nc --out runs/positions-flow --seeds 0 1 --steps 2400

The library adds Fourier features of place and time to the embedding (default). Here attention in the encoder also
turns queries and keys by angles that are linear in physical coordinates, with frequencies that are learned for each
head as in RoPE-Mixed (Heo et al. 2024, https://arxiv.org/abs/2403.13298): beside the Fourier features, or in place of
those of space and lead time. Coordinates are points on the unit sphere, or on the circle of each dimension of a
periodic box, and the time in units of four windows; so angles meet at the date line and at the poles. The calendar and
what else a token is told stay features. The predictor keeps Fourier positions: a question is nothing but its place.

What is trained and how it is judged is that of `ablation.py`, whose table this writes; the committed one, in
`analysis/results/positions`, has the rows of both calls.
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ablation import VARIANTS, Cell, table, tidy
from torch import Tensor, nn

import sciJEPA
import sciJEPA.jepa
from sciJEPA.encoder import Adapter, Attention, Encoder, EncoderConfig
from sciJEPA.positions import AXIS_OCTAVES, SPHERE_WIDTH, lead_periods
from sciJEPA.tokenizers.base import Tokenizer, Tokens
from sciJEPA.tokenizers.simulation import SLOT_WIDTH, SLOTS

KINDS = ("default", "rotary and fourier", "rotary")
HIGHEST = 8 * math.pi
"""Radians per unit of a coordinate at the highest frequency: that of the Fourier features."""


def coordinates_at(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Features that are physical coordinates, and all features of space and lead time."""
    spec: Any = tokenizer.spec  # type: ignore[attr-defined]
    box = hasattr(spec, "dims")
    count = len(lead_periods(1.0 if box else spec.cadence, spec.window))
    if box:
        space = [axis * SLOT_WIDTH + wave for axis in range(len(spec.dims)) for wave in (0, AXIS_OCTAVES)]
        first = SLOTS * SLOT_WIDTH
    elif hasattr(spec, "stations"):  # the names of series stay features
        space, first = [0, 1, 2], tokenizer._place.shape[1] - 2 * count  # type: ignore[attr-defined]
    else:
        space, first = [0, 1, 2], SPHERE_WIDTH
    lead = list(range(first, first + 2 * count))
    around = range(SPHERE_WIDTH) if not box else range(first)
    return [*space, lead[count - 1]], [*around, *lead]  # the sine of the longest period: a quarter turn at most


class RotaryAttention(Attention):
    """Attention whose queries and keys are turned by the angles of their tokens."""

    turn: tuple[Tensor, Tensor]

    def _project(self, x: Tensor, memory: Tensor) -> tuple[Tensor, ...]:
        query, key, value = super()._project(x, memory)
        return self._turned(query), self._turned(key), value

    def _turned(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (self.heads, -1)).float()
        one, other = heads.chunk(2, dim=-1)
        cosine, sine = self.turn
        return torch.cat([one * cosine - other * sine, one * sine + other * cosine], dim=-1).flatten(2).to(x.dtype)


class PlainAdapter(nn.Module):
    """An adapter that is not told the features of space and lead time."""

    def __init__(self, adapter: Adapter, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.adapter = adapter
        kept = torch.ones(tokenizer.feature_width)
        kept[coordinates_at(tokenizer)[1]] = 0
        self.register_buffer("kept", kept, persistent=False)

    def forward(self, tokens: Tokens) -> Tensor:
        return self.adapter.embedding(tokens) + self.adapter.position(tokens.features * self.kept)


class RotaryEncoder(Encoder):
    """Rotary attention, beside the Fourier features or in their place."""

    alone = False

    def __init__(self, config: EncoderConfig, tokenizers: Mapping[str, Tokenizer]) -> None:
        super().__init__(config, tokenizers)
        width, _, heads = config.resolved
        (tokenizer,) = tokenizers.values()
        self.at = coordinates_at(tokenizer)[0]
        pairs = width // heads // 2
        direction = nn.functional.normalize(torch.randn(len(self.at), heads, pairs), dim=0)
        self.frequencies = nn.Parameter(direction * torch.logspace(0, math.log10(HIGHEST), pairs))
        for block in self.blocks:
            block.attention.__class__ = RotaryAttention
        if self.alone:
            self.domains = nn.ModuleDict({n: PlainAdapter(own, tokenizers[n]) for n, own in self.domains.items()})

    def _outputs(self, tokens: Tokens) -> list[Tensor]:
        angles = torch.einsum("bnc,chp->bnhp", tokens.features[..., self.at].float(), self.frequencies.float())
        for block in self.blocks:
            block.attention.turn = angles.cos(), angles.sin()
        outputs = super()._outputs(tokens)
        for block in self.blocks:
            del block.attention.turn
        return outputs


class RotaryAlone(RotaryEncoder):
    """Rotary attention in place of the Fourier features."""

    alone = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, default=Path("runs/positions"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    training = {"training.steps": arguments.steps, "training.batch_size": arguments.batch_size}
    encoders = dict(zip(KINDS, (Encoder, RotaryEncoder, RotaryAlone), strict=True))
    VARIANTS.update({kind: {} for kind in KINDS})
    cells = [
        Cell(name, path, kind, seed, arguments.out / name / f"{kind.replace(' ', '-')}-{seed}")
        for seed in arguments.seeds
        for name, path in (part.split("=", 1) for part in arguments.archive)
        for kind in KINDS
    ]
    for cell in cells:
        sciJEPA.jepa.Encoder = encoders[cell.variant]  # type: ignore[misc]
        cell.run(training)
    scores = tidy(cells)
    scores.to_csv(arguments.out / "scores.csv", index=False)
    (arguments.out / "table.md").write_text(table(scores, cells))
    print(table(scores, cells))


if __name__ == "__main__":
    main()
