"""Known parameters of trajectories -> features: a viscosity, a feed rate, what an experiment was set to.

Arrives: an archive whose coordinates hold them, one number a trajectory. Leaves: their values, and the scale on which a
model sees them; both travel with it. We decided against statistics of the training trajectories alone: parameters are
the design of the experiment, known before any field is.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError

Scale = tuple[bool, float, float]
"""Whether the logarithm to base 10 is taken, and what is then the mean and the standard deviation."""


def parameter_values(archive: Archive, name: str) -> np.ndarray:
    """Value of a parameter in every trajectory."""
    ds, sizes = archive.ds, tuple(archive.ds.sizes[dim] for dim in archive.series)
    known = [
        str(key) for key in ds.variables if set(ds[key].dims) <= set(archive.series) and ds[key].dtype.kind in "fiu"
    ]
    if name not in known:
        raise UserError(
            f"{archive.source} has no parameter {name}: tokenizer.parameters takes numbers that belong to each "
            f"trajectory, of which it has {', '.join(key for key in known if key not in archive.series) or 'none'}."
        )
    field = ds[name].astype(float)
    shape = [size if dim in field.dims else 1 for dim, size in zip(archive.series, sizes, strict=True)]
    ordered = field.transpose(*(dim for dim in archive.series if dim in field.dims)).values.reshape(shape)
    values = np.broadcast_to(ordered, sizes).ravel()
    if not np.isfinite(values).all():
        raise UserError(
            f"the parameter {name} of {archive.source} is missing in {(~np.isfinite(values)).sum()} of {len(values)} "
            "trajectories; fill it in, or leave it out of tokenizer.parameters."
        )
    return values


def parameter_scale(values: np.ndarray) -> Scale:
    """Logarithms for positive values over more than a decade; mean and standard deviation over all trajectories.

    They come from the design of the experiment, known before any field is, so that test trajectories count too.
    """
    logarithmic = bool(values.min() > 0 and values.max() > 10 * values.min())
    values = np.log10(values) if logarithmic else values
    spread = float(values.std())
    return logarithmic, float(values.mean()), spread if spread > 1e-9 * float(np.abs(values).max()) else 1.0


def standardised(values: Sequence[Sequence[float]], scales: Sequence[Scale]) -> Float[Tensor, "S Q"]:
    """The parameters of every trajectory as features; a single row of width 0 where there are none."""
    columns = [
        ((np.log10(each) if logarithmic else np.asarray(each)) - mean) / spread
        for each, (logarithmic, mean, spread) in zip(values, scales, strict=True)
    ]
    return torch.from_numpy(np.stack(columns, axis=-1)).float() if columns else torch.zeros(1, 0)


def check_scale(name: str, values: Sequence[float], scale: Scale) -> None:
    """Refuse values that a model's scale cannot hold."""
    if scale[0] and min(values) <= 0:
        raise UserError(
            f"the model takes the logarithm of {name}, but the archive has the value {min(values):g}; leave such "
            "trajectories out."
        )
