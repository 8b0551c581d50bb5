"""Physics simulations: boxes of one to three dimensions, many trajectories, sides that are periodic, walls or open.

Positions are in units of the domain, so that one model meets any resolution: a token knows where it lies between the
sides of each dimension and what these sides are, how large its patch and its cells are, and the length of a step. Where
a trained model meets cells of a half or a third of those it learned from, it sees their means: a patch is as large as
in training, and each scale of the flow meets the weights that learned it. Known
parameters (a viscosity, a feed rate) are further features of every token of a trajectory. We decided against tokens of
their own for them: such a token has no place, and would have to be let through masks, latents and maps; as features
they reach the same attention at every token, and the predictor too. We decided against patches that wrap around a
periodic side when they do not divide it: cells would be shown twice, perhaps once hidden and once not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.masking import TokenGrid
from sciJEPA.positions import AXIS_WIDTH, axis_features, lead_features, lead_periods
from sciJEPA.tokenizers.base import (
    Batch,
    Coordinate,
    PatchEmbedding,
    TokenGeometry,
    Tokens,
    check_patch_time,
    divisors,
    nested_tuples,
)
from sciJEPA.tokenizers.convolution import ConvolutionalEmbedding
from sciJEPA.tokenizers.parameters import Scale, check_scale, parameter_scale, parameter_values, standardised

SLOTS = 3
"""Dimensions of space that features have room for; those that a box lacks are zero."""
SLOT_WIDTH = AXIS_WIDTH + 8


@dataclass(frozen=True, kw_only=True)
class SimulationTokenizerConfig:
    """Size of a patch; a token is a box of time steps and cells of every channel."""

    kind: str = "simulation"
    """Fields in a box of one to three dimensions."""
    patch_time: int = 1
    """Steps of a tubelet; divides data.context and data.window."""
    patch: int | tuple[int, ...] = 8
    """Cells of a patch: one number for all dimensions, or one for each; divides the box unless `pad`."""
    pad: bool = False
    """Complete the last patches with missing values where the patch does not divide the box."""
    stem: str = "convolution"
    """convolution: a few strided convolutions inside the patch; linear: one linear map for each channel."""
    parameters: tuple[str, ...] = ()
    """Known parameters of each trajectory, coordinates of the archive such as viscosity; features of its tokens."""

    may_differ: ClassVar[tuple[str, ...]] = ("coordinates", "units", "steps", "parameter_values", "averaged")
    """Parts of the specification in which another archive may differ from that of training: its resolution too."""

    def __post_init__(self) -> None:
        for name in ("patch_time", "patch"):
            sizes = _numbers(getattr(self, name))
            if not sizes or min(sizes) < 1:
                raise UserError(f"tokenizer.{name} must be at least 1, got {_listed(sizes)}.")
        if self.stem not in ("convolution", "linear"):
            raise UserError(f"tokenizer.stem must be convolution or linear, got '{self.stem}'.")

    def describe(self, archive: Archive, window: int, context: int) -> "SimulationSpec":
        """What the tokenizer must know of an archive of simulations."""
        space = archive.space
        if space.kind != "box":
            kind = {"grid": "grid", "stations": "sensors"}[space.kind]
            raise UserError(
                f"{archive.source} has fields on {space.describe()}, but the configuration is for simulations in a "
                f"box; set tokenizer.kind to {kind}, or start from a preset of that domain."
            )
        for dim, values in zip(space.dims, space.coordinates, strict=True):
            if not ((np.diff(values) > 0).all() or (np.diff(values) < 0).all()):
                raise UserError(
                    f"{dim} of {archive.source} neither rises nor falls throughout; sort the archive along it."
                )
        known = [parameter_values(archive, name) for name in self.parameters]
        return SimulationSpec(
            channels=tuple(channel.name for channel in archive.channels),
            dims=space.dims,
            coordinates=tuple(tuple(values.tolist()) for values in space.coordinates),
            sides=space.sides,
            units=tuple(_units(archive, dim) for dim in space.dims),
            cadence=archive.cadence,
            window=window,
            context=context,
            steps=archive.steps_per_series,
            parameters=self.parameters,
            parameter_values=tuple(tuple(each.tolist()) for each in known),
            parameter_scales=tuple(parameter_scale(each) for each in known),
        )

    def restore(self, fields: Mapping[str, Any]) -> "SimulationSpec":
        """A specification from the lists of a model's description."""
        return SimulationSpec(**{name: nested_tuples(value) for name, value in fields.items()})

    def build(self, spec: "SimulationSpec") -> "SimulationTokenizer":
        """The tokenizer of such boxes."""
        return SimulationTokenizer(self, spec)


@dataclass(frozen=True)
class SimulationSpec:
    """What the tokenizer must know of an archive; travels with the model."""

    channels: tuple[str, ...]
    dims: tuple[str, ...]
    coordinates: tuple[tuple[float, ...], ...]
    """Centres of the cells along each dimension, rising or falling, in its own units."""
    sides: tuple[tuple[str, str], ...]
    """What lies at the first and at the last cell of each dimension: periodic, wall or open."""
    cadence: float
    """Hours between steps."""
    window: int
    context: int
    units: tuple[str, ...] = ()
    """Units of each dimension, empty where unknown."""
    steps: int = 1
    """Steps of one trajectory; they follow each other on the axis of sample numbers."""
    parameters: tuple[str, ...] = ()
    parameter_values: tuple[tuple[float, ...], ...] = ()
    """For each parameter, its value in every trajectory."""
    parameter_scales: tuple[Scale, ...] = ()
    """For each parameter, the scale on which the model sees it."""
    averaged: tuple[int, ...] = ()
    """Cells of the archive along each dimension whose mean is one cell here; empty where each is one of its own."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells along each dimension."""
        return tuple(len(values) for values in self.coordinates)

    def scaled_as(self, trained: "SimulationSpec") -> "SimulationSpec":
        """The same on the scales that a model was trained with: of parameters, and of cells where its own are finer.

        Raises
        ------
        UserError
            If parameters differ, or a value has no place on its scale.
        """
        if self.parameters != trained.parameters:
            raise UserError(
                f"the model knows the parameters {_listed(trained.parameters)}, but the archive was described with "
                f"{_listed(self.parameters)}; describe it with those of the model."
            )
        for name, values, scale in zip(self.parameters, self.parameter_values, trained.parameter_scales, strict=True):
            check_scale(name, values, scale)
        return replace(self, parameter_scales=trained.parameter_scales).in_cells_of(trained)

    def in_cells_of(self, trained: "SimulationSpec") -> "SimulationSpec":
        """The same in cells as large as those of training, along each dimension where a whole number of its own is one.

        Sizes are compared in the units of the coordinates; finer cells that leave a rest stay as they are.
        """
        if len(self.dims) != len(trained.dims):
            return self
        factors = []
        for own, theirs in zip(self.coordinates, trained.coordinates, strict=True):
            ratio = float(_widths(np.asarray(theirs)).mean() / _widths(np.asarray(own)).mean())
            whole = max(round(ratio), 1)
            factors.append(whole if abs(ratio - whole) < 0.01 and len(own) % whole == 0 else 1)
        if max(factors) == 1:
            return self
        coordinates = tuple(
            tuple(np.reshape(values, (-1, factor)).mean(axis=1).tolist())
            for values, factor in zip(self.coordinates, factors, strict=True)
        )
        return replace(self, coordinates=coordinates, averaged=tuple(factors))


class SimulationTokenizer:
    """Cuts windows (B, V, T, *space) into tokens; holds geometry and no weights.

    Raises
    ------
    UserError
        If the patch does not suit the box or the window; names the sizes that do.
    """

    def __init__(self, config: SimulationTokenizerConfig, spec: SimulationSpec) -> None:
        self.patch = _patch_of(config, spec)
        counts = [-(-size // patch) for size, patch in zip(spec.shape, self.patch, strict=True)]
        check_patch_time(config.patch_time, spec.context, spec.window)
        self.config, self.spec = config, spec
        self.channels, self.channels_per_token = spec.channels, len(spec.channels)
        self.grid = TokenGrid(
            times=spec.window // config.patch_time,
            space=tuple(counts),
            context_times=spec.context // config.patch_time,
            periodic=spec.sides[-1][0] == "periodic" and spec.shape[-1] % self.patch[-1] == 0,
        )
        self._padding = [n * patch - size for n, patch, size in zip(counts, self.patch, spec.shape, strict=True)]
        self.patch_size = config.patch_time * math.prod(self.patch)
        self.geometry = self._geometry()
        self._place = self._features()
        self._parameters = standardised(spec.parameter_values, spec.parameter_scales)
        self.feature_width = self._place.shape[-1] + len(spec.parameters)

    def _geometry(self) -> TokenGeometry:
        """Centre, share of the volume and time of every token."""
        spec, grid = self.spec, self.grid
        index = np.indices(grid.space).reshape(len(spec.dims), -1)
        coordinates: dict[str, Coordinate] = {}
        volume = np.ones(grid.per_time)
        for axis, dim in enumerate(spec.dims):
            centre, extent, _ = self._along(axis)
            units = spec.units[axis] if spec.units else ""
            coordinates[dim] = (np.tile(centre[index[axis]], grid.times), {"units": units} if units else {})
            volume *= extent[index[axis]] / extent.sum()
        return TokenGeometry(coordinates, np.tile(volume, grid.times), self._offset() * spec.cadence)

    def _offset(self) -> np.ndarray:
        """Steps from the issue time to every token's last step."""
        last_step = (np.arange(self.grid.times) + 1) * self.config.patch_time - self.spec.context
        return np.repeat(last_step, self.grid.per_time).astype(float)

    def _along(self, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centre, extent and number of cells of the patches along one dimension."""
        values = np.asarray(self.spec.coordinates[axis], dtype=float)
        first = np.arange(0, len(values), self.patch[axis])
        cells = np.diff(np.append(first, len(values)))
        return np.add.reduceat(values, first) / cells, np.add.reduceat(_widths(values), first), cells

    def _features(self) -> Float[Tensor, "N K"]:
        """Where every token lies between the sides, how large it is, when it is, and the length of a step."""
        grid, spec = self.grid, self.spec
        index = np.indices(grid.space).reshape(len(spec.dims), -1)
        where = torch.zeros(grid.per_time, SLOTS, SLOT_WIDTH)
        for axis in range(len(spec.dims)):
            where[:, axis] = self._axis_features(axis)[torch.from_numpy(index[axis])]
        # Time counts in steps, whose length is a feature of its own: simulations know no natural hour.
        when = lead_features(torch.from_numpy(self._offset()), lead_periods(1.0, spec.window))
        step = math.log10(spec.cadence) if spec.cadence > 0 else 0.0  # NaN for an archive of a single step
        return torch.cat([where.flatten(1).repeat(grid.times, 1), when, torch.full((grid.count, 1), step)], dim=-1)

    def _axis_features(self, axis: int) -> Float[Tensor, "M K"]:
        """For each patch along one dimension: place, distance to each side by its kind, size of patch and cell."""
        values, sides = np.asarray(self.spec.coordinates[axis], dtype=float), self.spec.sides[axis]
        widths = _widths(values)
        length = widths.sum()
        centre, extent, cells = self._along(axis)
        lowest = int(values.argmin())
        place = (centre - (values[lowest] - widths[lowest] / 2)) / length
        periodic = "periodic" in sides
        # A circle has no beginning: there the coordinate itself counts, as longitude does.
        waves = axis_features(torch.from_numpy(centre / length if periodic else place), periodic)
        lower, upper = sides if lowest == 0 else sides[::-1]
        parts = []
        for side, distance in ((lower, place), (upper, 1 - place)):
            parts += [np.full_like(place, side == kind) for kind in ("wall", "open")]
            parts.append(distance * (not periodic))
        parts += [np.log(extent / length), np.log(extent / cells / length)]
        return torch.cat([waves, torch.from_numpy(np.stack(parts, axis=-1)).float()], dim=-1)

    def embedding(self, width: int) -> nn.Module:
        """A convolutional stem, or one linear map for each channel."""
        if self.config.stem == "linear":
            return PatchEmbedding(self.channels, self.patch_size, width)
        return ConvolutionalEmbedding(self.channels, self.config.patch_time, self.patch, width)

    def __call__(self, batch: Batch) -> Tokens:
        """Cut a batch into tokens.

        The window may be shorter than in training (an issue window without its future): tokens are the first ones then.
        The calendar is not used.
        """
        times = batch.values.shape[2] // self.config.patch_time
        observed = batch.observed
        if any(self._padding) and observed is None:
            observed = torch.ones_like(batch.values, dtype=torch.bool)
        values = self.patchify(batch.values)
        if observed is not None and self.spec.averaged:  # the mean of what is there
            share = self.patchify(observed.to(values.dtype))
            values = values / torch.where(share > 0, share, 1)
        device, size = batch.values.device, len(batch.values)
        self._place = self._place.to(device)
        features = self._place[: times * self.grid.per_time].expand(size, -1, -1)
        if self.spec.parameters:
            known = self._parameters[batch.samples.cpu() // self.spec.steps].to(device)
            features = torch.cat([features, known[:, None].expand(-1, features.shape[1], -1)], dim=-1)
        return Tokens(
            values=values,
            observed=None if observed is None else self.patchify(observed),
            features=features,
            channels=self.channels,
            domain=batch.domain,
        )

    def patchify(self, field: Shaped[Tensor, "B V T *space"]) -> Shaped[Tensor, "B N V P"]:
        """Cut fields into patches, tokens in time-major order; padded cells are zero (or False).

        Finer cells than those of training enter by their mean, flags if any of them is set.
        """
        for axis, factor in enumerate(self.spec.averaged, start=3):
            parts = field.unflatten(axis, (-1, factor))
            field = parts.any(axis + 1) if field.dtype == torch.bool else parts.mean(axis + 1)
        if any(self._padding):
            field = functional.pad(field, [part for padding in reversed(self._padding) for part in (0, padding)])
        sizes = (self.config.patch_time, *self.patch)
        split = [part for size, patch in zip(field.shape[2:], sizes, strict=True) for part in (size // patch, patch)]
        order = [0, *range(2, 2 + len(split), 2), 1, *range(3, 3 + len(split), 2)]
        boxes = field.reshape(*field.shape[:2], *split).permute(order)
        return boxes.reshape(len(field), -1, field.shape[1], self.patch_size)

    def unpatchify(self, patches: Float[Tensor, "B N V P"]) -> Float[Tensor, "B V T *space"]:
        """The way back to the box; exact inverse of `patchify`, but cells that were averaged share a value."""
        sizes = (self.config.patch_time, *self.patch)
        boxes = patches.reshape(len(patches), -1, *self.grid.space, patches.shape[2], *sizes)
        rank = len(sizes)
        pairs = [axis for number in range(rank) for axis in (1 + number, 2 + rank + number)]
        field = boxes.permute(0, 1 + rank, *pairs)
        whole = [count * patch for count, patch in zip(self.grid.space, self.patch, strict=True)]
        field = field.reshape(len(patches), patches.shape[2], -1, *whole)
        for axis, size in enumerate(self.spec.shape, start=3):
            field = field.narrow(axis, 0, size)
        for axis, factor in enumerate(self.spec.averaged, start=3):
            field = field.repeat_interleave(factor, axis)
        return field


def _patch_of(config: SimulationTokenizerConfig, spec: SimulationSpec) -> tuple[int, ...]:
    """Cells of a patch along each dimension; refused where it does not suit the box."""
    patch = _numbers(config.patch)
    if len(patch) not in (1, len(spec.dims)):
        raise UserError(
            f"tokenizer.patch has {len(patch)} numbers, but the box has the dimensions {_listed(spec.dims)}; "
            "give one number for all, or one for each."
        )
    patch = patch * len(spec.dims) if len(patch) == 1 else patch
    for dim, size, cells in zip(spec.dims, spec.shape, patch, strict=True):
        if cells > size:
            raise UserError(
                f"tokenizer.patch of {cells} is larger than the box, which has {size} cells along {dim}; use one of "
                f"{divisors(size)}."
            )
        if size % cells and not config.pad:
            raise UserError(
                f"tokenizer.patch of {cells} does not divide the {size} cells along {dim}; use one of "
                f"{divisors(size)}, or set tokenizer.pad to true, which completes the last patch with missing values."
            )
    return patch


def _widths(values: np.ndarray) -> np.ndarray:
    """Widths of cells between the middles of neighbouring centres; the outer cells are as wide as their spacing."""
    return np.abs(np.gradient(values)) if len(values) > 1 else np.ones(1)


def _units(archive: Archive, dim: str) -> str:
    return str(archive.ds[dim].attrs.get("units", "")) if dim in archive.ds.coords else ""


def _numbers(patch: int | tuple[int, ...]) -> tuple[int, ...]:
    return (patch,) if isinstance(patch, int) else patch


def _listed(parts: Any) -> str:
    return ", ".join(map(str, parts)) or "none"
