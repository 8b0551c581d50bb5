"""An archive, its splits and leads -> one forecasting problem, the same for every method.

Arrives: a model's domain, an archive and leads. Leaves: what a method is fitted, tuned and judged on, and its per-time
errors. The truth of test times is handed out for judging alone: what is fitted reads it behind `leakage.only_at`. We
decided against leads with issue times of their own: every number of a table is about the same weather.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.forecasting.labelling import issue_steps, place_weights, target_weights, time_labels
from sciJEPA.hub import Domain
from sciJEPA.judging.baselines import Forecaster, fields
from sciJEPA.judging.leakage import only_at, refuse_overlap, refuse_series, refuse_statistics
from sciJEPA.loader import WindowReader
from sciJEPA.probes import Ridge, Rows, row_blocks
from sciJEPA.probing.principal import principal_axes
from sciJEPA.probing.training import kept_in_memory
from sciJEPA.samples import Splits, series_named, split_steps, splits_series
from sciJEPA.scores import anomaly_correlation, squared_error
from sciJEPA.scoring.parts import Parts

LEAST_TIMES = 10
LABEL_BLOCK, LABEL_BLOCKS = 16, 8
"""Training labels are thinned in blocks of so many neighbouring times, or shorter ones where that leaves fewer."""
JUDGED_VALUES = 2**26
"""Values of all leads forecast at once when a method is judged."""
WIDEST, NARROWED = 8192, 2048
"""A ridge whose features and training times are both more than the former gets that many leading components of its
features: the eigenvalue problem of 14,000 would take 5 GB."""
NEAR = 64
"""Truth is read in one piece where issue steps are no further apart than this."""


@dataclass(frozen=True)
class Projection:
    """From wide features to few: `apply` maps rows (n, wide) to (n, width)."""

    apply: Callable[[np.ndarray], np.ndarray]
    width: int

    def of(self, features: Rows) -> Rows:
        """The features, projected as they are read."""
        return Rows(lambda steps: self.apply(features.read(steps)), self.width)


@dataclass(frozen=True)
class Errors:
    """Per-time statistics of one method, each of shape (..., leads, channels, times).

    Attributes
    ----------
    squared_error, anomaly_correlation : of all places.
    regional : squared error of each region, with these first.
    power : of forecast and truth at each scale, with these two and the scales first.
    """

    squared_error: np.ndarray
    anomaly_correlation: np.ndarray
    regional: np.ndarray
    power: np.ndarray


@dataclass(frozen=True)
class Problem:
    """What every method is fitted on, tuned on and judged on.

    Attributes
    ----------
    leads, labels : leads in steps, and as the user wrote them.
    train, validation, test : issue steps.
    unlabelled : training issue steps whose outcomes may be unknown; all of them where labels are thinned.
    share : share of the training labels that `train` keeps.
    seed : of what is drawn at random by probes and thinning.
    whole : domain and archive with their forcings, which methods may read and nobody forecasts; None if there are none.
    """

    domain: Domain
    archive: Archive
    leads: Sequence[int]
    labels: Sequence[str]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    unlabelled: np.ndarray
    share: float = 1.0
    seed: int = 0
    whole: tuple[Domain, Archive] | None = None

    @classmethod
    def of(
        cls,
        domain: Domain,
        archive: Archive,
        leads: Sequence[int],
        labels: Sequence[str],
        *,
        share: float = 1.0,
        seed: int = 0,
        whole: tuple[Domain, Archive] | None = None,
    ) -> "Problem":
        """Issue steps of the three splits, the same for every lead.

        Raises
        ------
        UserError
            If a split has too few issue times, or a rule of `leakage` is broken.
        """
        data = domain.config.data
        splits = split_steps(archive, data)
        refuse_leakage(domain, archive, splits)
        context, horizon = data.context, max(leads)
        steps = {
            name: issue_steps(archive, getattr(splits, name), context, horizon)
            for name in ("train", "validation", "test")
        }
        for name, found in steps.items():
            if len(found) < LEAST_TIMES:
                raise UserError(
                    f"the {name} split of {archive.source} has {len(found)} issue times with {context} steps up to "
                    f"them and {horizon} after them, at least {LEAST_TIMES} are needed; use shorter leads or a longer "
                    "archive."
                )
        refuse_overlap(steps, horizon=horizon, window=context)
        unlabelled = steps["train"]
        steps["train"] = thinned(unlabelled, share, seed)
        return cls(domain, archive, leads, labels, **steps, unlabelled=unlabelled, share=share, seed=seed, whole=whole)

    @cached_property
    def reader(self) -> WindowReader:
        """Standardised anomalies of the archive."""
        return WindowReader(self.archive, self.domain.normalizer, memory_mb=self.domain.config.data.memory_mb)

    @property
    def inputs(self) -> tuple[Domain, Archive]:
        """Domain and archive of what methods may read of the issue window: the forcings too."""
        return self.whole or (self.domain, self.archive)

    @cached_property
    def input_reader(self) -> WindowReader:
        """Standardised anomalies of what methods may read."""
        if self.whole is None:
            return self.reader
        domain, archive = self.whole
        return WindowReader(archive, domain.normalizer, memory_mb=domain.config.data.memory_mb)

    @property
    def context(self) -> int:
        """Steps of the issue window."""
        return self.domain.config.data.context

    @property
    def weights(self) -> np.ndarray:
        """Weight of every target in an error."""
        return target_weights(self.archive)

    @cached_property
    def parts(self) -> Parts:
        """Regions and scales that have scores of their own."""
        return Parts(self.archive.space)

    @property
    def targets(self) -> list[Rows]:
        """For each lead the truth, for fitting and choosing: it cannot be read at test times."""
        allowed = np.concatenate([self.train, self.validation])
        return [only_at(fields(self.reader, lead), allowed, "truth") for lead in self.leads]

    def fit(self, probe: Any, features: Rows) -> Any:
        """A probe, fitted on the training times and tuned on the validation times."""
        groups = len(self.archive.channels)
        if isinstance(probe, Ridge) and self.narrows(features.width):
            everywhere = np.concatenate([self.train, self.validation, self.test])
            features = remembered(narrowing(features, self.train).of(features), everywhere)
        return probe.fit(features, self.targets, self.train, self.validation, weights=self.weights, groups=groups)

    def narrows(self, width: int) -> bool:
        """Whether a ridge gets components of features of this width instead of all of them."""
        return min(width, len(self.train)) > WIDEST

    def judge(self, method: Forecaster) -> Errors:
        """Errors of a method at the test times in physical units, block by block."""
        archive, normalizer = self.archive, self.domain.normalizer
        space, weights = archive.space.dims, place_weights(archive)
        shape = (-1, len(archive.channels), *archive.shape)
        found: list[list[tuple[np.ndarray, ...]]] = [[] for _ in self.leads]

        def labelled(values: np.ndarray) -> xr.DataArray:
            return xr.DataArray(values.reshape(shape), dims=("init_time", "channel", *space))

        for steps in self.blocks(self.test):
            for number, (lead, prediction) in enumerate(zip(self.leads, method.predict(steps), strict=True)):
                time = archive.time[steps + lead]
                truth = labelled(archive.read(int(steps[0]) + lead, int(steps[-1]) + lead + 1)[steps - steps[0]])
                forecast = labelled(normalizer.invert(prediction.reshape(shape), time))
                normal = labelled(normalizer.climatology(time))
                statistics = (
                    squared_error(forecast, truth, weights, over=space).values,
                    anomaly_correlation(forecast, truth, normal, weights, over=space).values,
                    self.parts.squared_error(forecast, truth),
                    self.parts.power(forecast - normal, truth - normal),
                )
                found[number].append(tuple(values.swapaxes(-1, -2) for values in statistics))
        # Blocks follow each other along time, which is last; leads come before the channels.
        joined = [[np.concatenate(parts, axis=-1) for parts in zip(*blocks, strict=True)] for blocks in found]
        return Errors(*(np.stack(parts, axis=-3) for parts in zip(*joined, strict=True)))

    def blocks(self, steps: np.ndarray) -> list[np.ndarray]:
        """Issue steps in blocks whose forecasts of all leads fit in memory, each near together."""
        values = len(self.leads) * len(self.archive.channels) * math.prod(self.archive.shape)
        rows = max(1, JUDGED_VALUES // values)
        return [
            part
            for block in row_blocks(steps)
            for piece in np.split(block, np.flatnonzero(np.diff(block) > NEAR) + 1)
            for part in np.split(piece, np.arange(rows, len(piece), rows))
        ]

    def digest(self, **further: Any) -> str:
        """What the errors of a method depend on beside the model and the archive, in 16 digits."""
        told = [*self.leads, self.context, self.share, self.seed, *(f"{k}={v}" for k, v in sorted(further.items()))]
        digest = hashlib.sha256(repr(told).encode())
        for steps in (self.train, self.validation, self.test):
            digest.update(np.asarray(steps, dtype=np.int64).tobytes() + b"|")
        return digest.hexdigest()[:16]


def narrowing(features: Rows, train: np.ndarray) -> Projection:
    """Features that are too wide for a ridge -> their leading components.

    They come from training times evenly spaced, twice as many as components, in a single pass: what is cut off has next
    to no variance, and the ridge is fitted on all of the training times.
    """
    axes = principal_axes(features, train[:: max(1, len(train) // (2 * NARROWED))], NARROWED, passes=1)
    mean, vectors = axes.mean.astype(np.float32), axes.axes.astype(np.float32)
    return Projection(lambda values: (values - mean) @ vectors, vectors.shape[1])


def remembered(rows: Rows, times: np.ndarray) -> Rows:
    """The same rows, those of these times from memory; others are read as before."""
    kept = kept_in_memory(rows, times)
    return Rows(lambda steps: (kept if np.isin(steps, times).all() else rows).read(steps), rows.width)


def refuse_leakage(domain: Domain, archive: Archive, splits: Splits) -> None:
    """Refuse to judge a model on times, or on whole trajectories, from which its weights or statistics come."""
    if splits_series(archive, domain.config.data):
        refuse_series(domain.normalizer.series, series_named(archive, splits.validation + splits.test))
        return
    labels = time_labels(archive)
    judged = [labels[step] for part in (splits.validation, splits.test) for start, stop in part[:1]
              for step in range(start, stop)]  # fmt: skip
    refuse_statistics(domain.normalizer.trained_on, judged)


def thinned(steps: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A share of the steps in blocks of neighbours, evenly spaced from a random beginning.

    Examples
    --------
    >>> thinned(np.arange(100), 0.1, seed=0).tolist()
    [8, 18, 28, 38, 48, 58, 68, 78, 88, 98]
    """
    if not 0 < share <= 1:
        raise UserError(
            f"a share of labels must lie above 0 and not above 1, got {share:g}; usual values are 0.01 and 0.1."
        )
    if share == 1:
        return steps
    wanted = round(share * len(steps))
    if wanted < LEAST_TIMES:
        raise UserError(
            f"{share:g} of {len(steps)} training labels are {wanted}, at least {LEAST_TIMES} are needed; use a larger "
            "share or a longer archive."
        )
    length = int(np.clip(wanted // LABEL_BLOCKS, 1, LABEL_BLOCK))
    count = max(1, round(wanted / length))
    spacing = len(steps) / count
    first = np.random.default_rng([seed, 3]).random() * (spacing - length)
    begins = (first + spacing * np.arange(count)).astype(int)
    return steps[np.unique((begins[:, None] + np.arange(length)).ravel())]
