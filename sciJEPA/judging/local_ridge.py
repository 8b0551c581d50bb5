"""Tokens and their neighbours -> how the field of their place changes: one ridge for all places.

Arrives: a problem and rows of one vector a place, latents or a control's. Leaves: a `Forecaster`. The laws of a
simulation are the same everywhere, so that each place is a training sample; a ridge on whole fields would have to learn
each place anew, from as many windows as it has numbers. What is fitted is the change from the issue time on, which a
compressed field alone could not even repeat, or the value itself, which far ahead owes little to the present: whichever
is better on the validation windows. We decided against wider neighbourhoods: the encoder attends to all tokens already.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.judging.baselines import fields
from sciJEPA.judging.problem import NARROWED, Problem, remembered
from sciJEPA.probes import Ridge, Rows, side_by_side
from sciJEPA.probing.principal import principal_axes

FITTED_ROWS, CHOOSING_ROWS = 2**18, 2**14
"""Places of training windows that a ridge is fitted on, and of validation windows that choose its strength; whole
windows, evenly spaced."""
PREDICTED_ROWS = 2**14
"""Places that are predicted at once."""


@dataclass(frozen=True)
class Places:
    """Where the places of rows lie among the cells of an archive.

    Attributes
    ----------
    cells : cells along each dimension of space.
    shape : places along each dimension; where they do not divide the cells, the last ones reach beyond the side.
    periodic : whether each dimension closes a circle.
    """

    cells: tuple[int, ...]
    shape: tuple[int, ...]
    periodic: tuple[bool, ...]

    @classmethod
    def of(cls, archive: Archive, shape: Sequence[int]) -> "Places":
        """Places of an archive's tokens.

        Raises
        ------
        UserError
            If the places are stations, which have no neighbours.
        """
        if archive.space.kind == "stations":
            raise UserError(
                f"a local ridge reads places and their neighbours, but those of {archive.source} are stations without "
                "an order; use probes='ridge' (--probes ridge)."
            )
        return cls(archive.shape, tuple(shape), archive.space.periodic)

    @property
    def patch(self) -> tuple[int, ...]:
        """Cells of a place along each dimension."""
        return tuple(-(-size // count) for size, count in zip(self.cells, self.shape, strict=True))

    @property
    def count(self) -> int:
        """Places of a field."""
        return int(np.prod(self.shape))

    @property
    def around(self) -> int:
        """A place and its neighbours."""
        return 1 + 2 * len(self.shape)

    def whole_windows(self, steps: np.ndarray, most: int) -> np.ndarray:
        """Evenly spaced steps that have at most about so many places in all."""
        return steps[:: max(1, -(-len(steps) * self.count // most))]

    def numbers(self, steps: np.ndarray) -> np.ndarray:
        """Numbers of all places at these steps."""
        return (steps[:, None] * self.count + np.arange(self.count)).ravel()

    def by_number(self, rows: Rows) -> Rows:
        """Rows of all places of a step -> rows of one place each, by number."""

        def read(numbers: np.ndarray) -> np.ndarray:
            steps, which = np.unique(numbers // self.count, return_inverse=True)
            return rows.read(steps).reshape(len(steps), self.count, -1)[which, numbers % self.count]

        return Rows(read, rows.width // self.count)

    def cut(self, values: np.ndarray) -> np.ndarray:
        """Fields (n, V, *space) -> patches (n, places, V * cells of a patch), zero beyond the sides."""
        beyond = [count * own - size for count, own, size in zip(self.shape, self.patch, self.cells, strict=True)]
        if any(beyond):
            values = np.pad(values, [(0, 0), (0, 0), *((0, more) for more in beyond)])
        split = [part for pair in zip(self.shape, self.patch, strict=True) for part in pair]
        rank = len(self.shape)
        order = [0, *range(2, 2 + 2 * rank, 2), 1, *range(3, 3 + 2 * rank, 2)]
        return values.reshape(*values.shape[:2], *split).transpose(order).reshape(len(values), self.count, -1)

    def join(self, patches: np.ndarray, channels: int) -> np.ndarray:
        """Patches (n, places, V * cells) -> fields (n, V, *space); the inverse of `cut`."""
        rank = len(self.shape)
        boxes = patches.reshape(len(patches), *self.shape, channels, *self.patch)
        pairs = [axis for number in range(rank) for axis in (1 + number, 2 + rank + number)]
        size = [count * own for count, own in zip(self.shape, self.patch, strict=True)]
        fields = boxes.transpose(0, 1 + rank, *pairs).reshape(len(patches), channels, *size)
        inside: tuple[Any, ...] = (..., *(slice(0, size) for size in self.cells))
        return fields[inside]

    def with_neighbours(self, values: np.ndarray) -> np.ndarray:
        """Vectors (n, places, L) -> those of each place and of the next ones along every dimension, side by side.

        Beyond a side that does not close lie zeros.

        Examples
        --------
        >>> line = Places((3,), (3,), (True,))
        >>> line.with_neighbours(np.array([[[1], [2], [3]]]))[0].tolist()  # itself, the one before, the one after
        [[1, 3, 2], [2, 1, 3], [3, 2, 1]]
        """
        box = values.reshape(len(values), *self.shape, -1)
        parts = [box]
        for axis, periodic in enumerate(self.periodic, start=1):
            for shift, outside in ((1, 0), (-1, -1)):
                moved = np.roll(box, shift, axis)
                if not periodic:
                    moved[(slice(None),) * axis + (outside,)] = 0
                parts.append(moved)
        return np.concatenate(parts, axis=-1).reshape(len(values), self.count, -1)


@dataclass(frozen=True)
class LocalRidge:
    """A ridge from places and their neighbours to their patches, with one strength a lead and channel.

    Attributes
    ----------
    value : whether the value is predicted and not its change, shape (leads, channels).
    """

    problem: Problem
    places: Places
    ridge: Ridge
    value: np.ndarray

    @classmethod
    def beside_window(cls, problem: Problem, parts: Sequence[Rows], shape: Sequence[int]) -> "LocalRidge":
        """Fit on features of several kinds beside the raw window; on that alone where there are none."""
        kinds = [*parts, local_windows(problem, shape)]
        return cls.fit(problem, side_by_side(kinds, problem.train, places=math.prod(shape)), shape)

    @classmethod
    def fit(cls, problem: Problem, features: Rows, shape: Sequence[int]) -> "LocalRidge":
        """Fit on training windows, choose strengths, and change or value, on validation windows.

        Parameters
        ----------
        features
            A vector of each place at every issue step, flattened, in the order of `shape`; vectors that are too wide
            with those of their neighbours are narrowed to their leading components.
        shape
            Places along each dimension of space.
        """
        places, leads, channels = Places.of(problem.archive, shape), len(problem.leads), len(problem.archive.channels)
        train = places.whole_windows(problem.train, FITTED_ROWS)
        validation = places.whole_windows(problem.validation, CHOOSING_ROWS)
        vectors = remembered(features, np.concatenate([train, validation]))
        if vectors.width * places.around > NARROWED * places.count:
            vectors = _narrowed(vectors, places, train)
        # All leads are one row of targets: features are read once for all of them.
        ridge = Ridge().fit(
            places.by_number(_around(vectors, places)),
            [places.by_number(_changes_and_values(problem, places))],
            places.numbers(train),
            places.numbers(validation),
            weights=np.ones(leads * 2 * channels * math.prod(places.patch)),
            groups=leads * 2 * channels,
        )
        change, value = ridge.error_.reshape(leads, 2, channels).swapaxes(0, 1)
        return cls(problem, places, ridge, value < change)

    def predict(self, times: np.ndarray) -> list[np.ndarray]:
        """For each lead, the field of the issue time and its predicted change, or the predicted field."""
        most = max(1, PREDICTED_ROWS // self.places.count)
        parts = [self._predict(times[first : first + most]) for first in range(0, len(times), most)]
        return [np.concatenate(own) for own in zip(*parts, strict=True)]

    def _predict(self, times: np.ndarray) -> list[np.ndarray]:
        places, (leads, channels) = self.places, self.value.shape
        found = self.ridge.predict(places.numbers(times))[0].reshape(len(times), places.count, leads, 2, channels, -1)
        now = fields(self.problem.reader).read(times).reshape(len(times), channels, *places.cells)
        wide = (channels, *(1,) * len(places.cells))
        fields_of = []
        for lead, value in enumerate(self.value):
            chosen = np.where(value[:, None], found[:, :, lead, 1], found[:, :, lead, 0])
            field = places.join(chosen.reshape(len(times), places.count, -1), channels)
            fields_of.append((field + now * ~value.reshape(wide)).reshape(len(times), -1))
        return fields_of


def _around(vectors: Rows, places: Places) -> Rows:
    """Vectors of places with those of their neighbours."""

    def read(steps: np.ndarray) -> np.ndarray:
        return places.with_neighbours(vectors.read(steps).reshape(len(steps), places.count, -1))

    return Rows(read, vectors.width * places.around)


def _changes_and_values(problem: Problem, places: Places) -> Rows:
    """For each lead how the patch of each place changes, and what it becomes: (leads, 2, V * cells) a place."""
    channels = len(problem.archive.channels)

    def patches(rows: np.ndarray) -> np.ndarray:
        return places.cut(rows.reshape(len(rows), channels, *places.cells))

    def read(steps: np.ndarray) -> np.ndarray:
        now = patches(fields(problem.reader).read(steps))
        values = [patches(target.read(steps)) for target in problem.targets]
        return np.concatenate([part for value in values for part in (value - now, value)], axis=-1)

    width = len(problem.leads) * 2 * channels * math.prod(places.patch)
    return Rows(read, width * places.count)


def _narrowed(vectors: Rows, places: Places, train: np.ndarray) -> Rows:
    """Vectors of places as their leading components, as many as a ridge on them and their neighbours has room for."""
    some = places.numbers(places.whole_windows(train, CHOOSING_ROWS))
    axes = principal_axes(places.by_number(vectors), some, NARROWED // places.around)
    mean, leading = axes.mean.astype(np.float32), axes.axes.astype(np.float32)

    def read(steps: np.ndarray) -> np.ndarray:
        return (vectors.read(steps).reshape(len(steps), places.count, -1) - mean) @ leading

    return Rows(read, leading.shape[1] * places.count)


def local_windows(problem: Problem, shape: Sequence[int]) -> Rows:
    """Patches of the whole issue window, a vector of each place: what a local ridge on the raw window sees."""
    places, context, reader = Places.of(problem.archive, shape), problem.context, problem.input_reader

    def read(steps: np.ndarray) -> np.ndarray:
        values = reader.read(steps - context + 1, context).values.flatten(1, 2).numpy()
        return places.cut(values).reshape(len(steps), -1)

    return Rows(read, len(reader.archive.channels) * context * places.count * math.prod(places.patch))
