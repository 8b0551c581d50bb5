"""Series at stations, or at a single place: patches in time, a token for each channel or for all channels of a station.

Missing values stay missing: a flag says so, beside what the rest of the issue window makes of the gap, and a token
weighs what it has observed. A series may be made free of its level and spread, by statistics of the issue window's
observed values alone. We decided against filling gaps without a flag (what is interpolated passes for observed),
against flags beside zeros (no linear map of the two joins neighbours; with three quarters missing forecasts were 4 to
6 % worse), against lines or statistics of the whole window (they tell the future) and against a learned vector for each
channel: the predictor knows a token by its features alone, so the channel's name is one of them.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.masking import TokenGrid
from sciJEPA.positions import CALENDAR_WIDTH, SPHERE_WIDTH, lead_features, lead_periods, sphere_features
from sciJEPA.tokenizers.base import (
    Batch,
    Coordinate,
    PatchEmbedding,
    TokenGeometry,
    Tokens,
    check_patch_time,
    nested_tuples,
)

NAME_WIDTH = 32
"""Features of a name: the bytes of its SHA-256."""
SHARED = ("series",)
"""Name of the weights that all channels share where each has tokens of its own."""


@dataclass(frozen=True, kw_only=True)
class SensorTokenizerConfig:
    """Length of a patch, what shares a token, and what is taken out of a series."""

    kind: str = "sensors"
    """Series at stations or at a single place."""
    patch_time: int = 4
    """Steps of a patch; divides data.context and data.window."""
    tokens: str = "channel"
    """channel: a token is a patch of one channel at one station, with weights that all channels share; station: of all
    channels at one station."""
    instance: bool | None = None
    """Take location and scale, measured in the issue window, out of every series and hand them on; by default where a
    token has one channel."""
    location: str = "last"
    """The location of a series: its last value in the issue window, or the mean of those observed. On ETTh1
    (512 hours, ridge, 96 hours ahead) both gave an error of 0.364 to 0.366, through 16 components 0.390 and 0.396."""
    scale_floor: float = 0.1
    """Smallest scale of a series, in units of the channel's spread, so that a calm or stuck sensor is amplified at most
    tenfold. In days of ETTh1 what follows has a mean square of 3,500 without it, of 4.0 with 0.1, which 2.6 % of the
    days need, and of 2.5 with 0.3, which alters a third of them. Rain wants more, or no instance."""

    gaps: str = "bridge"
    """What stands beside the flag of a missing value. bridge: the daily course of the series in the issue window, and
    on top of it a straight line between the deviations before and after the gap; zero: nothing."""

    attention: str = "any"
    """any: tokens attend to all others; channel: to those of their own series alone (with tokens of stations, of their
    own station)."""

    may_differ: ClassVar[tuple[str, ...]] = ("stations", "latitude", "longitude")
    """Parts of the specification in which another archive may differ from that of training."""

    def __post_init__(self) -> None:
        if self.patch_time < 1:
            raise UserError(f"tokenizer.patch_time must be at least 1, got {self.patch_time}.")
        for name, allowed in (
            ("tokens", ("channel", "station")), ("location", ("last", "mean")), ("gaps", ("bridge", "zero")),
            ("attention", ("any", "channel")),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise UserError(f"tokenizer.{name} must be {' or '.join(allowed)}, got '{getattr(self, name)}'.")
        if not self.scale_floor > 0:
            raise UserError(f"tokenizer.scale_floor must be above 0, got {self.scale_floor}; a usual value is 0.1.")
        if self.instance and self.tokens == "station":
            raise UserError(
                "tokenizer.instance takes one location and one scale out of a token, but a token of a station has "
                "several channels; set tokenizer.tokens to channel, or tokenizer.instance to false."
            )

    def describe(self, archive: Archive, window: int, context: int) -> "SensorSpec":
        """What the tokenizer must know of an archive of stations."""
        space = archive.space
        if space.kind != "stations":
            kind = {"grid": "grid", "box": "simulation"}[space.kind]
            raise UserError(
                f"{archive.source} has fields on {space.describe()}, but the configuration is for series at stations; "
                f"set tokenizer.kind to {kind}, or start from a preset of that domain."
            )
        return SensorSpec(
            channels=tuple(channel.name for channel in archive.channels),
            stations=space.names,
            latitude=_degrees(space.latitude),
            longitude=_degrees(space.longitude),
            cadence=archive.cadence,
            window=window,
            context=context,
        )

    def restore(self, fields: Mapping[str, Any]) -> "SensorSpec":
        """A specification from the lists of a model's description."""
        return SensorSpec(**{name: nested_tuples(part) for name, part in fields.items()})

    def build(self, spec: "SensorSpec") -> "SensorTokenizer":
        """The tokenizer of these stations."""
        return SensorTokenizer(self, spec)


@dataclass(frozen=True)
class SensorSpec:
    """What the tokenizer must know of an archive; travels with the model."""

    channels: tuple[str, ...]
    stations: tuple[str, ...]
    """Names; empty for a single place, whose series have no dimension of stations."""
    latitude: tuple[float | None, ...]
    """Degrees north, None where unknown; empty where all are."""
    longitude: tuple[float | None, ...]
    """Degrees east, None where unknown; empty where all are."""
    cadence: float
    """Hours between steps."""
    window: int
    context: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions of space: the stations, or none."""
        return (len(self.stations),) if self.stations else ()


class SensorTokenizer:
    """Cuts windows (B, V, T, S), or (B, V, T) of a single place, into tokens; holds no weights.

    Tokens are numbered by time, then station, then channel where channels have tokens of their own. Their features are
    the place on the sphere and whether it is known, the names of station and channel, the lead time, the calendar, the
    observed share and, where they were taken out, location and log scale. Hidden tokens keep the location and scale of
    their series: what is asked for is the course, and not the level.

    Raises
    ------
    UserError
        If the patch does not divide the window; names the lengths that do.
    """

    def __init__(self, config: SensorTokenizerConfig, spec: SensorSpec) -> None:
        check_patch_time(config.patch_time, spec.context, spec.window)
        self.config, self.spec = config, spec
        self.alone = config.tokens == "channel"
        self.normalises = self.alone if config.instance is None else config.instance
        self.bridges = config.gaps == "bridge"
        self.channels = spec.channels
        self.channels_per_token = 1 if self.alone else len(spec.channels)
        self.patch_size = config.patch_time
        self.grid = TokenGrid(
            times=spec.window // config.patch_time,
            space=(*spec.shape, len(spec.channels)) if self.alone else spec.shape or (1,),
            context_times=spec.context // config.patch_time,
            ordered=False,
            apart=config.attention == "channel",
        )
        self.geometry = self._geometry()
        periods = lead_periods(spec.cadence, spec.window)
        where = torch.from_numpy(self._places())
        when = lead_features(torch.from_numpy(self.geometry.offset), periods)
        self._place = torch.cat([where.repeat(self.grid.times, 1), when], dim=-1)
        self.feature_width = self._place.shape[1] + CALENDAR_WIDTH + 1 + 2 * self.normalises

    def _geometry(self) -> TokenGeometry:
        """Labels, area and time of every token."""
        spec, grid = self.spec, self.grid
        labels: dict[str, Coordinate] = {}
        if spec.stations:
            labels["station"] = (np.array(spec.stations), {"long_name": "name of the station"})
        for name, direction in (("latitude", "north"), ("longitude", "east")):
            if getattr(spec, name):
                labels[name] = (np.array(getattr(spec, name), dtype=float), {"units": f"degrees_{direction}"})
        each = grid.per_time // max(1, len(spec.stations))
        labels = {name: (np.repeat(values, each), attributes) for name, (values, attributes) in labels.items()}
        if self.alone:
            channels = np.tile(np.array(spec.channels), max(1, len(spec.stations)))
            labels["channel"] = (channels, {"long_name": "name of the channel"})
        last_step = (np.arange(grid.times) + 1) * self.config.patch_time - spec.context
        return TokenGeometry(
            coordinates={name: (np.tile(values, grid.times), attrs) for name, (values, attrs) in labels.items()},
            area=np.full(grid.count, 1 / grid.per_time),
            offset=np.repeat(last_step * spec.cadence, grid.per_time),
        )

    def _places(self) -> np.ndarray:
        """Features of the tokens of one time: position if known, names of station and channel."""
        spec, stations = self.spec, max(1, len(self.spec.stations))
        degrees = np.full((2, stations), np.nan)
        if spec.latitude and spec.longitude:
            degrees = np.array([spec.latitude, spec.longitude], dtype=float)
        known = np.isfinite(degrees).all(axis=0)
        sphere = np.zeros((stations, SPHERE_WIDTH))
        sphere[known] = sphere_features(*torch.from_numpy(degrees[:, known])).numpy()
        names = name_features(spec.stations) if spec.stations else np.zeros((1, NAME_WIDTH))
        place = np.concatenate([sphere, known[:, None], names], axis=1)
        if self.alone:
            channels = np.tile(name_features(spec.channels), (stations, 1))
            place = np.concatenate([np.repeat(place, len(spec.channels), axis=0), channels], axis=1)
        return place.astype(np.float32)

    def embedding(self, width: int) -> PatchEmbedding:
        """One linear map for each channel, or one for all where they have tokens of their own."""
        return PatchEmbedding(SHARED if self.alone else self.channels, self.patch_size, width)

    def __call__(self, batch: Batch) -> Tokens:
        """Cut a batch into tokens.

        The window may be shorter than in training (an issue window without its future): tokens are the first ones then.
        Whatever stands where nothing was observed is overwritten.
        """
        values, observed = batch.values, batch.observed
        if observed is not None:
            values = values.masked_fill(~observed, 0)
            if self.bridges:
                values = self._bridged(values, observed)
        instance = None
        if self.normalises:
            location, scale = self.location_and_scale(values, observed)
            values = (values - location[:, :, None]).div_(scale[:, :, None])
            if observed is not None and not self.bridges:
                values = values.masked_fill_(~observed, 0)
            instance = torch.stack([self._by_token(location), self._by_token(scale)], dim=-1)
        patches = self.patchify(values)
        present = None if observed is None else self.patchify(observed)
        if instance is not None:
            instance = instance.repeat(1, patches.shape[1] // self.grid.per_time, 1)
        return Tokens(
            values=patches,
            observed=present,
            features=self._features(batch.calendar, patches.shape[1], present, instance),
            channels=SHARED if self.alone else self.channels,
            domain=batch.domain,
            instance=instance,
            group=self._group(batch, patches.shape[1]),
        )

    def _group(self, batch: Batch, count: int) -> Int[Tensor, "B {count}"] | None:
        """Number of the series, or the station, of each of the first `count` tokens, where they attend to no other."""
        if self.config.attention == "any":
            return None
        return (torch.arange(count, device=batch.values.device) % self.grid.per_time).expand(len(batch.values), -1)

    def _features(
        self,
        calendar: Float[Tensor, "B T 4"],
        count: int,
        observed: Bool[Tensor, "B N C P"] | None,
        instance: Float[Tensor, "B N 2"] | None,
    ) -> Float[Tensor, "B N {self.feature_width}"]:
        """Position features of the first `count` tokens."""
        self._place = self._place.to(calendar.device)
        place = self._place[:count]
        season = calendar[:, self.config.patch_time - 1 :: self.config.patch_time]
        share = torch.ones(len(calendar), count, 1, device=calendar.device)
        if observed is not None:
            # How much of the future will be observed is not known at the issue time: such tokens keep a share of one.
            past = self.grid.context_times * self.grid.per_time
            share[:, :past, 0] = observed[:, :past].float().mean(dim=(2, 3))
        parts = [place.expand(len(calendar), -1, -1), season.repeat_interleave(self.grid.per_time, dim=1), share]
        if instance is not None:
            parts += [instance[..., :1], instance[..., 1:].log()]
        return torch.cat([part.to(place.dtype) for part in parts], dim=-1)

    def location_and_scale(
        self, values: Float[Tensor, "B V T *space"], observed: Bool[Tensor, "B V T *space"] | None
    ) -> tuple[Float[Tensor, "B V *space"], Float[Tensor, "B V *space"]]:
        """Location and scale of every series from the observed values of the issue window, and from nothing later.

        Follows reversible instance normalisation, Kim et al. 2022, https://openreview.net/forum?id=cGDAkQo1C0p, with
        the standard deviation of what was observed as scale. A spread needs two values: with fewer the scale is one,
        the channel's own, and without any the location is zero, the climatology. Where gaps are bridged the last value
        is that of the bridge: an older one is of another hour of the day.

        Parameters
        ----------
        values, observed
            Normalised values, zero or bridged where missing, and where they were observed (None if everywhere).
        """
        issue = values[:, :, : self.spec.context]
        there = torch.ones_like(issue, dtype=torch.bool) if observed is None else observed[:, :, : self.spec.context]
        count = there.sum(dim=2)
        mean = (issue * there).sum(dim=2) / count.clamp(min=1)
        deviation = (issue - mean[:, :, None]).masked_fill_(~there, 0)
        spread = (deviation.square_().sum(dim=2) / count.clamp(min=1)).sqrt()
        scale = torch.where(count > 1, spread.clamp(min=self.config.scale_floor), 1.0)
        if self.config.location == "mean":
            return mean, scale
        if observed is None or self.bridges:
            return issue[:, :, -1], scale
        steps = torch.arange(1, issue.shape[2] + 1, dtype=torch.int32, device=values.device)
        last = (there * steps.view(-1, *(1,) * (issue.ndim - 3))).argmax(dim=2, keepdim=True)
        return issue.gather(2, last).squeeze(2), scale

    def _bridged(
        self, values: Float[Tensor, "B V T *space"], observed: Bool[Tensor, "B V T *space"]
    ) -> Float[Tensor, "B V T *space"]:
        """Gaps bridged; apart in the issue window and after it, so that no line leads into the future."""
        series, there = values.movedim(2, -1), observed.movedim(2, -1)
        issue = (series[..., : self.spec.context], there[..., : self.spec.context])
        usual = daily_course(*issue, self.day)[..., torch.arange(series.shape[-1], device=values.device) % self.day]
        apart = [part.tensor_split([self.spec.context], dim=-1) for part in ((series - usual) * there, there)]
        lines = torch.cat([bridged(part, known) for part, known in zip(*apart, strict=True) if part.shape[-1]], dim=-1)
        return torch.where(there, series, lines + usual).movedim(-1, 2)

    @property
    def day(self) -> int:
        """Steps of a day where the issue window holds two days or more of several steps each; 1 otherwise."""
        steps = round(24 / self.spec.cadence)
        whole = abs(steps * self.spec.cadence - 24) < 0.01
        return steps if whole and 2 <= steps <= self.spec.context // 2 else 1

    def _by_token(self, field: Float[Tensor, "B V *space"]) -> Float[Tensor, "B M"]:
        """A number for each series in the order of the tokens of one time."""
        return field.reshape(*field.shape[:2], -1).transpose(1, 2).flatten(1)

    def patchify(self, field: Shaped[Tensor, "B V T *space"]) -> Shaped[Tensor, "B N C P"]:
        """Cut series into patches, tokens in time-major order; C is the number of channels in a token."""
        batch, channels, steps = field.shape[:3]
        length = self.config.patch_time
        patches = field.reshape(batch, channels, steps // length, length, -1).permute(0, 2, 4, 1, 3)
        return patches.reshape(batch, -1, 1 if self.alone else channels, length)

    def unpatchify(self, patches: Float[Tensor, "B N C P"]) -> Float[Tensor, "B V T *space"]:
        """The way back to the stations; exact inverse of `patchify`, so location and scale stay out."""
        batch, _, channels, length = patches.shape
        stations = max(1, len(self.spec.stations))
        series = patches.reshape(batch, -1, stations, len(self.channels) if self.alone else channels, length)
        return series.permute(0, 3, 1, 4, 2).reshape(batch, series.shape[3], -1, *self.spec.shape)


def bridged(values: Float[Tensor, "... T"], observed: Bool[Tensor, "... T"]) -> Float[Tensor, "... T"]:
    """Series whose missing values lie on the straight line between the nearest observed ones.

    Before the first observed value and after the last one these are carried on; a series without any stays as it is.

    >>> values, observed = torch.tensor([0.0, 1.0, 0.0, 0.0, 4.0, 0.0]), torch.tensor([0, 1, 0, 0, 1, 0]).bool()
    >>> bridged(values, observed)
    tensor([1., 1., 2., 3., 4., 4.])
    """
    size, flat = values.shape[-1], values.flatten()
    known, gaps = (flags.nonzero().squeeze(1) for flags in (observed.flatten(), ~observed.flatten()))
    # The known places around each gap, among those of all series one after the other, with one beyond either end.
    ends = known.new_tensor([-size, 2 * len(flat)])
    around = torch.cat([ends[:1], known, ends[1:]])
    number = observed.flatten().cumsum(0)[gaps]
    before, after, series = around[number], around[number + 1], gaps // size
    begun, ended = before // size == series, after // size == series
    first = torch.where(begun, before, torch.where(ended, after, gaps))
    second = torch.where(ended, after, first)
    share = (gaps - first) / (second - first).clamp(min=1)
    flat = flat.index_copy(0, gaps, torch.lerp(flat[first], flat[second], share.to(flat.dtype)))
    return flat.reshape(values.shape)


def daily_course(values: Float[Tensor, "... T"], observed: Bool[Tensor, "... T"], day: int) -> Float[Tensor, "... D"]:
    """Mean of what was observed at each step of the day; the mean of all counts as one more observation of each step.

    With a day of one step it is the mean, from which lines deviate as they do from zero.

    Parameters
    ----------
    values, observed
        Series that begin with the first step of the `day`; values are zero where missing.
    """
    weight = observed.to(values.dtype)
    mean = values.sum(dim=-1, keepdim=True) / weight.sum(dim=-1, keepdim=True).clamp(min=1)
    step = torch.arange(values.shape[-1], device=values.device) % day
    total, count = (
        part.new_zeros(*part.shape[:-1], day).index_add(-1, step, part) for part in (values * weight, weight)
    )
    return (total + mean) / (count + 1)


def name_features(names: Sequence[str]) -> np.ndarray:
    """Names as numbers of mean 0 and variance 1, shape (names, 32): the bytes of the SHA-256.

    Different names have codes that are close to orthogonal, so attention tells them apart by their product, also those
    that it never met. A linear map of codes can give each of up to 32 names any vector.

    >>> name_features(["OT"])[0, :3].round(2).tolist()
    [0.9, 1.14, 1.71]
    """
    digests = b"".join(hashlib.sha256(name.encode()).digest() for name in names)
    codes = np.frombuffer(digests, dtype=np.uint8).reshape(-1, NAME_WIDTH)
    # Bytes 0 to 255 have the mean 127.5 and the variance (256**2 - 1) / 12.
    return (codes - 127.5) / math.sqrt((256**2 - 1) / 12)


def _degrees(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(float(value) if math.isfinite(value) else None for value in values)
