"""Latitude-longitude grids: patches in space, tubelets in time, periodic longitude."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.masking import TokenGrid
from sciJEPA.positions import CALENDAR_WIDTH, SPHERE_WIDTH, lead_features, lead_periods, sphere_features
from sciJEPA.space import Space, unit_vectors
from sciJEPA.tokenizers.base import (
    Batch,
    PatchEmbedding,
    TokenGeometry,
    Tokens,
    check_patch_time,
    divisors,
    nested_tuples,
)


@dataclass(frozen=True, kw_only=True)
class GridTokenizerConfig:
    """Size of a patch; a token is a box of time steps, rows and columns of every channel."""

    kind: str = "grid"
    """Fields on latitude and longitude."""
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

    def describe(self, archive: Archive, window: int, context: int) -> "GridSpec":
        """What the tokenizer must know of a gridded archive."""
        if archive.space.kind != "grid":
            kind = {"box": "simulation", "stations": "sensors"}[archive.space.kind]
            dims = " and ".join(archive.space.dims)
            rename = f"rename {dims} if they are that, or " if len(archive.space.dims) == 2 else ""
            raise UserError(
                f"{archive.source} has fields on {archive.space.describe()} without latitude and longitude, but the "
                f"configuration is for grids; {rename}set tokenizer.kind to {kind} or start from a preset of that kind."
            )
        return GridSpec(
            channels=tuple(channel.name for channel in archive.channels),
            latitude=_plain(archive.latitude),
            longitude=_plain(archive.longitude),
            cadence=archive.cadence,
            periodic=archive.periodic,
            window=window,
            context=context,
            static_names=archive.static,
            static=tuple(_plain(field) for field in _standardised(archive.read_static())),
        )

    def restore(self, fields: Mapping[str, Any]) -> "GridSpec":
        """A specification from the lists of a model's description."""
        return GridSpec(**{name: nested_tuples(value) for name, value in fields.items()})

    def build(self, spec: "GridSpec") -> "GridTokenizer":
        """The tokenizer of this grid."""
        return GridTokenizer(self, spec)


@dataclass(frozen=True)
class GridSpec:
    """What the tokenizer must know of an archive; travels with the model."""

    channels: tuple[str, ...]
    latitude: tuple[Any, ...]
    """Degrees north: one number a row, or on a curvilinear grid a tuple for each row."""
    longitude: tuple[Any, ...]
    """Degrees east: one number a column, or on a curvilinear grid a tuple for each row."""
    cadence: float
    """Hours between steps."""
    periodic: bool
    window: int
    context: int
    static_names: tuple[str, ...] = ()
    static: tuple[Any, ...] = ()
    """Static fields, standardised, each as a tuple of rows."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows = self.latitude
        return (len(rows), len(rows[0])) if isinstance(rows[0], tuple) else (len(rows), len(self.longitude))


class GridTokenizer:
    """Cuts windows (B, V, T, H, W) into tokens; holds geometry and no weights.

    Raises
    ------
    UserError
        If the patch does not divide the grid or the window; names the sizes that do.
    """

    def __init__(self, config: GridTokenizerConfig, spec: GridSpec) -> None:
        height, width = spec.shape
        rows = _divide(height, config.patch_latitude, "latitude", config.pad)
        columns = _divide(width, config.patch_longitude, "longitude", config.pad)
        check_patch_time(config.patch_time, spec.context, spec.window)
        self.config, self.spec = config, spec
        self.channels, self.channels_per_token = spec.channels, len(spec.channels)
        self.grid = TokenGrid(
            times=spec.window // config.patch_time,
            space=(rows, columns),
            context_times=spec.context // config.patch_time,
            periodic=spec.periodic and width % config.patch_longitude == 0,
        )
        self._padding = (rows * config.patch_latitude - height, columns * config.patch_longitude - width)
        self.patch_size = config.patch_time * config.patch_latitude * config.patch_longitude
        self.geometry = self._geometry()
        periods = lead_periods(spec.cadence, spec.window)
        self.feature_width = SPHERE_WIDTH + 2 * len(periods) + CALENDAR_WIDTH + 2 * len(spec.static)
        coordinates = self.geometry.coordinates
        where = sphere_features(*(torch.from_numpy(coordinates[name][0]) for name in ("latitude", "longitude")))
        when = lead_features(torch.from_numpy(self.geometry.offset), periods)
        self._place = torch.cat([where, when, self._static_features()], dim=-1)

    def _geometry(self) -> TokenGeometry:
        """Centre, area and time of every token."""
        config, grid, spec = self.config, self.grid, self.spec
        latitude, longitude = np.asarray(spec.latitude, dtype=float), np.asarray(spec.longitude, dtype=float)
        space = Space(kind="grid", dims=("y", "x"), shape=spec.shape, latitude=latitude, longitude=longitude)
        area = self._places(space.weights).sum(axis=-1)
        if space.curvilinear:
            centre_latitude, centre_longitude = self._centres(latitude, longitude)
        else:
            # Longitudes of one patch are unwrapped before their mean: 350, 355, 0, 5 has its centre at 357.5.
            unwrapped = np.unwrap(longitude, period=360)
            steps = (config.patch_latitude, config.patch_longitude)
            centres = [
                np.array([values[i * step : (i + 1) * step].mean() for i in range(count)])
                for values, step, count in zip((latitude, unwrapped), steps, grid.space, strict=True)
            ]
            centre_latitude, centre_longitude = (part.ravel() for part in np.meshgrid(*centres, indexing="ij"))
        last_step = (np.arange(grid.times) + 1) * config.patch_time - spec.context
        return TokenGeometry(
            coordinates={
                "latitude": (np.tile(centre_latitude, grid.times), {"units": "degrees_north"}),
                "longitude": (np.tile(centre_longitude, grid.times), {"units": "degrees_east"}),
            },
            area=np.tile(area / area.sum(), grid.times),
            offset=np.repeat(last_step * spec.cadence, grid.per_time),
        )

    def _places(self, field: np.ndarray) -> np.ndarray:
        """Values of a field on the grid by token of one time, shape (tokens, places in a patch); zero where padded."""
        config, (rows, columns) = self.config, self.grid.space
        padded = np.pad(field, ((0, self._padding[0]), (0, self._padding[1])))
        boxes = padded.reshape(rows, config.patch_latitude, columns, config.patch_longitude)
        return boxes.transpose(0, 2, 1, 3).reshape(rows * columns, -1)

    def _centres(self, latitude: np.ndarray, longitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Degrees of the mean direction of each patch's places."""
        x, y, z = (self._places(part).sum(axis=-1) for part in np.moveaxis(unit_vectors(latitude, longitude), -1, 0))
        return np.rad2deg(np.arctan2(z, np.hypot(x, y))), np.rad2deg(np.arctan2(y, x))

    def _static_features(self) -> Float[Tensor, "N S"]:
        """Mean and standard deviation of every static field within each token."""
        parts = [np.zeros((self.grid.count, 0))]
        inside = self._places(np.ones(self.spec.shape))
        count = inside.sum(axis=-1)
        for field in self.spec.static:
            values = self._places(np.asarray(field, dtype=float))
            mean = values.sum(axis=-1) / count
            spread = np.sqrt(((values - mean[:, None]) ** 2 * inside).sum(axis=-1) / count)
            parts.append(np.tile(np.stack([mean, spread], axis=-1), (self.grid.times, 1)))
        return torch.from_numpy(np.concatenate(parts, axis=-1)).float()

    def embedding(self, width: int) -> PatchEmbedding:
        """One linear map for each channel."""
        return PatchEmbedding(self.channels, self.patch_size, width)

    def __call__(self, batch: Batch) -> Tokens:
        """Cut a batch into tokens.

        The window may be shorter than in training (an issue window without its future): tokens are the first ones then.
        """
        times = batch.values.shape[2] // self.config.patch_time
        observed = batch.observed
        if any(self._padding) and observed is None:
            observed = torch.ones_like(batch.values, dtype=torch.bool)
        self._place = self._place.to(batch.values.device)
        place = self._place[: times * self.grid.per_time]
        calendar = batch.calendar[:, self.config.patch_time - 1 :: self.config.patch_time]
        season = calendar.repeat_interleave(self.grid.per_time, dim=1)
        features = torch.cat([place.expand(len(season), -1, -1), season.to(place.dtype)], dim=-1)
        return Tokens(
            values=self.patchify(batch.values),
            observed=None if observed is None else self.patchify(observed),
            features=features,
            channels=self.channels,
            domain=batch.domain,
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
            grid.space[0],
            config.patch_latitude,
            grid.space[1],
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
            grid.space[0],
            grid.space[1],
            channels,
            config.patch_time,
            config.patch_latitude,
            config.patch_longitude,
        ).permute(0, 4, 1, 5, 2, 6, 3, 7)
        field = boxes.reshape(
            batch, channels, -1, grid.space[0] * config.patch_latitude, grid.space[1] * config.patch_longitude
        )
        return field[..., : self.spec.shape[0], : self.spec.shape[1]]


def _plain(values: np.ndarray) -> tuple[Any, ...]:
    """Numbers as nested tuples."""
    return tuple(nested_tuples(values.tolist()))


def _standardised(fields: np.ndarray) -> np.ndarray:
    """Static fields with mean 0 and standard deviation 1, zero where missing: orography, land mask, soil type."""
    axes = tuple(range(1, fields.ndim))
    mean, spread = (f(fields, axis=axes, keepdims=True) for f in (np.nanmean, np.nanstd)) if len(fields) else (0, 1)
    return np.nan_to_num((fields - mean) / np.where(spread > 0, spread, 1)).round(6)


def _divide(size: int, patch: int, axis: str, pad: bool) -> int:
    if patch > size:
        raise UserError(
            f"tokenizer.patch_{axis} of {patch} is larger than the grid's {size} {axis}s; use one of {divisors(size)}."
        )
    if size % patch and not pad:
        raise UserError(
            f"tokenizer.patch_{axis} of {patch} does not divide the grid's {size} {axis}s; use one of "
            f"{divisors(size)}, or set tokenizer.pad to true, which completes the last patch with missing values."
        )
    return -(-size // patch)
