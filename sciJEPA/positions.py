"""Physical coordinates -> position features.

Arrives: where and when each token sits (degrees, hours, calendar progress). Leaves: smooth features of width K that the
encoder and the predictor project linearly. We decided against learned tables per index (they tie a model to one grid),
against raw longitude (it tears the seam at 0/360), and against rotary attention, which made latents no better beside
these features and worse in their place (`analysis/positions.py`).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

SPHERE_OCTAVES = 4
SPHERE_WIDTH = 3 + 6 * SPHERE_OCTAVES
CALENDAR_WIDTH = 4
AXIS_OCTAVES = 5
AXIS_WIDTH = 2 * AXIS_OCTAVES


def sphere_features(latitude: Float[Tensor, " N"], longitude: Float[Tensor, " N"]) -> Float[Tensor, "N 27"]:
    """Points on the unit sphere with sine and cosine of their components in octaves.

    The unit vector is continuous across the date line and at the poles (spherical positions as in Russwurm et al. 2024,
    https://arxiv.org/abs/2310.06743, here in Cartesian form); octaves of it up to 8 pi separate neighbours some 5
    degrees apart. The width is `SPHERE_WIDTH`.

    Parameters
    ----------
    latitude, longitude
        Degrees north and degrees east, any range.
    """
    phi, lam = torch.deg2rad(latitude.double()), torch.deg2rad(longitude.double())
    vector = torch.stack([phi.cos() * lam.cos(), phi.cos() * lam.sin(), phi.sin()], dim=-1)
    waves = [math.pi * 2**octave * vector for octave in range(SPHERE_OCTAVES)]
    return torch.cat([vector, *(f(wave) for wave in waves for f in (torch.sin, torch.cos))], dim=-1).float()


def axis_features(place: Float[Tensor, " N"], periodic: bool) -> Float[Tensor, "N 10"]:
    """Sine and cosine, in octaves, of places along one dimension of a box, in units of its length.

    On a circle the angle is 2 pi 2**k u, so that u and u + 1 are one place; between two ends it is pi 2**k u, so that
    both ends differ. The width is `AXIS_WIDTH`.

    Parameters
    ----------
    place
        Coordinate over the length of the dimension: 0 to 1 from end to end, any range on a circle.
    periodic
        The dimension closes a circle.
    """
    wave = math.pi * (2 if periodic else 1) * place.double()[:, None] * 2.0 ** torch.arange(AXIS_OCTAVES)
    return torch.cat([wave.sin(), wave.cos()], dim=-1).float()


def lead_features(offset: Float[Tensor, " T"], periods: Sequence[float]) -> Float[Tensor, "T {2*len(periods)}"]:
    """Sine and cosine of the time from the issue time, for each of `periods`; both in hours."""
    angle = 2 * math.pi * offset.double()[:, None] / torch.tensor(periods, dtype=torch.float64)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def lead_periods(cadence: float, steps: int) -> tuple[float, ...]:
    """Periods in hours, an octave apart, from four steps up to at least four windows of `steps` steps.

    The shortest is four steps, so that neighbouring steps differ by a quarter turn; the longest exceeds the window
    fourfold, so that no two times of a window share a code.
    """
    octaves = max(1, math.ceil(math.log2(max(steps, 2))) + 1)
    return tuple(4 * cadence * 2.0**octave for octave in range(octaves))
