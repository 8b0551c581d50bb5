"""Tokens and their neighbours -> how the field of their place changes: one ridge for all places.

Arrives: a problem and rows of one vector a place, latents or a control's. Leaves: a `Forecaster`. The laws of a
simulation are the same everywhere, so that each place is a training sample; a ridge on whole fields would have to learn
each place anew, from as many windows as it has numbers. What is fitted is the change from the issue time on: no change
is persistence, which a compressed field alone could not even repeat. We decided against wider neighbourhoods: the
encoder attends to all tokens already.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.judging.baselines import fields
from sciJEPA.judging.problem import Problem
from sciJEPA.probes import Ridge, Rows, rows_of

FITTED_ROWS = 2**13
"""Places of training windows that a ridge is fitted on, and of validation windows that choose its strength; whole
windows, evenly spaced."""


@dataclass(frozen=True)
class Places:
    """Where the places of rows lie among the cells of an archive.

    Attributes
    ----------
    shape : places along each dimension of space.
    patch : cells of a place along each dimension.
    periodic : whether each dimension closes a circle.
    """

    shape: tuple[int, ...]
    patch: tuple[int, ...]
    periodic: tuple[bool, ...]

    @classmethod
    def of(cls, archive: Archive, shape: Sequence[int]) -> "Places":
        """Places of an archive that is cut evenly.

        Raises
        ------
        UserError
            If the places have no order, or do not divide the cells.
        """
        cells = archive.shape
        if archive.space.kind == "stations" or any(size % count for size, count in zip(cells, shape, strict=True)):
            raise UserError(
                f"a local ridge needs patches that divide the field, but {archive.source} has {list(cells)} cells for "
                f"{list(shape)} tokens; use another size of patch, or the usual ridge."
            )
        patch = tuple(size // count for size, count in zip(cells, shape, strict=True))
        return cls(tuple(shape), patch, archive.space.periodic)

    @property
    def count(self) -> int:
        """Places of a field."""
        return int(np.prod(self.shape))

    def cut(self, values: np.ndarray) -> np.ndarray:
        """Fields (n, V, *space) -> patches (n, places, V * cells of a patch)."""
        split = [part for pair in zip(self.shape, self.patch, strict=True) for part in pair]
        rank = len(self.shape)
        order = [0, *range(2, 2 + 2 * rank, 2), 1, *range(3, 3 + 2 * rank, 2)]
        return values.reshape(*values.shape[:2], *split).transpose(order).reshape(len(values), self.count, -1)

    def join(self, patches: np.ndarray, channels: int) -> np.ndarray:
        """Patches (n, places, V * cells) -> fields (n, V, *space); the inverse of `cut`."""
        rank = len(self.shape)
        boxes = patches.reshape(len(patches), *self.shape, channels, *self.patch)
        pairs = [axis for number in range(rank) for axis in (1 + number, 2 + rank + number)]
        size = [count * cells for count, cells in zip(self.shape, self.patch, strict=True)]
        return boxes.transpose(0, 1 + rank, *pairs).reshape(len(patches), channels, *size)

    def with_neighbours(self, values: np.ndarray) -> np.ndarray:
        """Vectors (n, places, L) -> those of each place and of the next ones along every dimension, side by side.

        Beyond a side that does not close lie zeros.

        Examples
        --------
        >>> line = Places((3,), (1,), (True,))
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
    """A ridge from places and their neighbours to changes of their patches, with one strength a lead and channel."""

    problem: Problem
    places: Places
    features: Rows
    ridge: Ridge

    @classmethod
    def fit(cls, problem: Problem, features: Rows, shape: Sequence[int]) -> "LocalRidge":
        """Fit on training windows, choose strengths on validation windows.

        Parameters
        ----------
        features
            A vector of each place at every issue step, flattened, in the order of `shape`.
        shape
            Places along each dimension of space.
        """
        places, channels = Places.of(problem.archive, shape), len(problem.archive.channels)
        most = max(1, FITTED_ROWS // places.count)
        train, validation = (part[:: max(1, -(-len(part) // most))] for part in (problem.train, problem.validation))
        both = np.concatenate([train, validation])
        seen = cls(problem, places, features, Ridge())._around(both)
        now = _patches(problem, places, fields(problem.reader).read(both))
        targets = [rows_of(_patches(problem, places, each.read(both)) - now) for each in problem.targets]
        cut = len(train) * places.count
        weights = np.ones(targets[0].width)
        ridge = Ridge().fit(
            rows_of(seen), targets, np.arange(cut), np.arange(cut, len(seen)), weights=weights, groups=channels
        )
        return cls(problem, places, features, ridge)

    def predict(self, times: np.ndarray) -> list[np.ndarray]:
        """For each lead, the field of the issue time and its predicted change."""
        around, channels = rows_of(self._around(times)), len(self.problem.archive.channels)
        now = fields(self.problem.reader).read(times)
        self.ridge.features_ = around
        found = self.ridge.predict(np.arange(len(times) * self.places.count))
        changes = (self.places.join(each.reshape(len(times), self.places.count, -1), channels) for each in found)
        return [now + change.reshape(now.shape) for change in changes]

    def _around(self, times: np.ndarray) -> np.ndarray:
        vectors = self.features.read(times).reshape(len(times), self.places.count, -1)
        around = self.places.with_neighbours(vectors)
        return around.reshape(-1, around.shape[-1])


def local_windows(problem: Problem, shape: Sequence[int]) -> Rows:
    """Patches of the whole issue window, a vector of each place: what a local ridge on the raw window sees."""
    places, context, reader = Places.of(problem.archive, shape), problem.context, problem.reader

    def read(steps: np.ndarray) -> np.ndarray:
        values = reader.read(steps - context + 1, context).values.flatten(1, 2).numpy()
        return places.cut(values).reshape(len(steps), -1)

    return Rows(read, len(problem.archive.channels) * context * int(np.prod(problem.archive.shape)))


def _patches(problem: Problem, places: Places, rows: np.ndarray) -> np.ndarray:
    """Rows (n, V * cells) of whole fields -> rows (n * places, V * cells of a patch)."""
    cut = places.cut(rows.reshape(len(rows), len(problem.archive.channels), *problem.archive.shape))
    return cut.reshape(-1, cut.shape[-1])
