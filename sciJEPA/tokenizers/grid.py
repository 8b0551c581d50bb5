"""Latitude-longitude grids: patches in space, tubelets in time, periodic longitude."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from sciJEPA.errors import UserError
from sciJEPA.masking import TokenGrid
from sciJEPA.positions import CALENDAR_WIDTH, SPHERE_WIDTH, lead_features, lead_periods, sphere_features
from sciJEPA.scores import latitude_weights
from sciJEPA.tokenizers.base import Batch, TokenGeometry, Tokens


@dataclass(frozen=True, kw_only=True)
class GridTokenizerConfig:
    """Size of a patch; a token is a box of time steps, rows and columns of every channel."""

    patch_time: int = 1
    """Steps of a tubelet; divides data.context and data.window."""
    patch_latitude: int = 4
    """Rows of a patch; divides the number of latitudes unless `pad`."""
    patch_longitude: int = 4
    """Columns of a patch; divides the number of longitudes unless `pad`."""
    pad: bool = False
    """Complete the last row and column of patches with missing values where the patch does not divide the grid."""

    def __post_init__(self) -> None:
        for name in ("patch_time", "patch_latitude", "patch_longitude"):
            if getattr(self, name) < 1:
                raise UserError(f"tokenizer.{name} must be at least 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class GridSpec:
    """What the tokenizer must know of an archive; travels with the model."""

    channels: tuple[str, ...]
    latitude: tuple[float, ...]
    longitude: tuple[float, ...]
    cadence: float
    """Hours between steps."""
    periodic: bool
    window: int
    context: int


class GridTokenizer:
    """Cuts windows (B, V, T, H, W) into tokens; holds geometry and no weights.

    Raises
    ------
    UserError
        If the patch does not divide the grid or the window; names the sizes that do.
    """

    def __init__(self, config: GridTokenizerConfig, spec: GridSpec) -> None:
        height, width = len(spec.latitude), len(spec.longitude)
        rows = _divide(height, config.patch_latitude, "latitude", config.pad)
        columns = _divide(width, config.patch_longitude, "longitude", config.pad)
        for name, steps in (("context", spec.context), ("window", spec.window)):
            if steps % config.patch_time:
                raise UserError(
                    f"tokenizer.patch_time of {config.patch_time} does not divide data.{name} of {steps} steps; "
                    f"use one of {_divisors(math.gcd(spec.context, spec.window))}."
                )
        self.config, self.spec = config, spec
        self.channels = spec.channels
        self.grid = TokenGrid(
            times=spec.window // config.patch_time,
            rows=rows,
            columns=columns,
            context_times=spec.context // config.patch_time,
            periodic=spec.periodic and width % config.patch_longitude == 0,
        )
        self._padding = (rows * config.patch_latitude - height, columns * config.patch_longitude - width)
        self.patch_size = config.patch_time * config.patch_latitude * config.patch_longitude
        self.geometry = self._geometry()
        periods = lead_periods(spec.cadence, spec.window)
        self.feature_width = SPHERE_WIDTH + 2 * len(periods) + CALENDAR_WIDTH
        where = sphere_features(torch.from_numpy(self.geometry.latitude), torch.from_numpy(self.geometry.longitude))
        when = lead_features(torch.from_numpy(self.geometry.offset), periods)
        self._place = torch.cat([where, when], dim=-1)

    def _geometry(self) -> TokenGeometry:
        config, grid, spec = self.config, self.grid, self.spec
        latitude, longitude = np.asarray(spec.latitude), np.asarray(spec.longitude)
        row_weight = latitude_weights(latitude)
        rows = [slice(i * config.patch_latitude, (i + 1) * config.patch_latitude) for i in range(grid.rows)]
        columns = [slice(j * config.patch_longitude, (j + 1) * config.patch_longitude) for j in range(grid.columns)]
        centre_latitude = np.array([latitude[r].mean() for r in rows])
        # Longitudes of one patch are unwrapped before their mean: 350, 355, 0, 5 has its centre at 357.5.
        unwrapped = np.unwrap(longitude, period=360)
        centre_longitude = np.array([unwrapped[c].mean() for c in columns])
        area = np.outer([row_weight[r].sum() for r in rows], [longitude[c].size for c in columns])
        last_step = (np.arange(grid.times) + 1) * config.patch_time - spec.context
        return TokenGeometry(
            latitude=np.tile(np.repeat(centre_latitude, grid.columns), grid.times),
            longitude=np.tile(np.tile(centre_longitude, grid.rows), grid.times),
            area=np.tile((area / area.sum()).ravel(), grid.times),
            offset=np.repeat(last_step * spec.cadence, grid.per_time),
        )

    def __call__(self, batch: Batch) -> Tokens:
        """Cut a batch into tokens.

        The window may be shorter than in training (an issue window without its future): tokens are the first ones then.
        """
        times = batch.values.shape[2] // self.config.patch_time
        observed = batch.observed
        if any(self._padding) and observed is None:
            observed = torch.ones_like(batch.values, dtype=torch.bool)
        device = batch.values.device
        place = self._place[: times * self.grid.per_time].to(device)
        calendar = batch.calendar[:, self.config.patch_time - 1 :: self.config.patch_time]
        season = calendar.repeat_interleave(self.grid.per_time, dim=1)
        features = torch.cat([place.expand(len(season), -1, -1), season.to(place.dtype)], dim=-1)
        return Tokens(
            values=self.patchify(batch.values),
            observed=None if observed is None else self.patchify(observed),
            features=features,
        )

    def patchify(self, field: Shaped[Tensor, "B V T H W"]) -> Shaped[Tensor, "B N V P"]:
        """Cut fields into patches, tokens in time-major order; padded cells are zero (or False)."""
        config, grid = self.config, self.grid
        if any(self._padding):
            field = functional.pad(field, (0, self._padding[1], 0, self._padding[0]))
        batch, channels, steps = field.shape[:3]
        boxes = field.reshape(
            batch,
            channels,
            steps // config.patch_time,
            config.patch_time,
            grid.rows,
            config.patch_latitude,
            grid.columns,
            config.patch_longitude,
        )
        return boxes.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, -1, channels, self.patch_size)

    def unpatchify(self, patches: Float[Tensor, "B N V P"]) -> Float[Tensor, "B V T H W"]:
        """The way back to the grid; exact inverse of `patchify`."""
        config, grid = self.config, self.grid
        batch, _, channels, _ = patches.shape
        boxes = patches.reshape(
            batch,
            -1,
            grid.rows,
            grid.columns,
            channels,
            config.patch_time,
            config.patch_latitude,
            config.patch_longitude,
        ).permute(0, 4, 1, 5, 2, 6, 3, 7)
        field = boxes.reshape(
            batch, channels, -1, grid.rows * config.patch_latitude, grid.columns * config.patch_longitude
        )
        return field[..., : len(self.spec.latitude), : len(self.spec.longitude)]


def _divide(size: int, patch: int, axis: str, pad: bool) -> int:
    if patch > size:
        raise UserError(
            f"tokenizer.patch_{axis} of {patch} is larger than the grid's {size} {axis}s; use one of {_divisors(size)}."
        )
    if size % patch and not pad:
        raise UserError(
            f"tokenizer.patch_{axis} of {patch} does not divide the grid's {size} {axis}s; use one of "
            f"{_divisors(size)}, or set tokenizer.pad to true, which completes the last patch with missing values."
        )
    return -(-size // patch)


def _divisors(size: int) -> list[int]:
    return [d for d in range(1, size + 1) if size % d == 0]
