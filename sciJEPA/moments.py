"""Part of normalisation: sums over the training steps, from which climatology and spread are solved.

Arrives: blocks of fields and the basis functions of their times. Leaves: for every place the least-squares fit, for
every channel its variance. In one pass, in tiles, by threads. We decided against means and squares of raw values:
pressure varies by a hundredth of itself, and float32 would keep three digits of that.
"""

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

TILE_VALUES, TILE_STEPS = 2**19, 64
"""Values worked on at once, 2 MB of float32, and steps of such a tile, or more where there are few points. Tiles that
fit into a core's own cache are slower: threads hand the interpreter over at every call."""
PAIRS = 8
"""Of so many pairs of neighbouring steps, one is taken for the spread of tendencies."""
SHORT_SUM = 2**8
"""Squares are summed in float32 over so many values; over a whole tile rounding would be no longer even."""
QUICK_PRODUCT = 10**6
"""Multiplications up to which OpenBLAS multiplies matrices without packing them first, where it knows how to."""
GAP_RIDGE = 1e-3
"""Weight of a missing step as an observation of "no cycle here"; see `Moments`."""
_thread = threading.local()


def scratch(shape: tuple[int, ...]) -> np.ndarray:
    """Two tiles of memory of this thread: fresh memory costs more than filling it."""
    count = 2 * math.prod(shape)
    if len(getattr(_thread, "values", ())) < count:
        _thread.values = np.empty(count, dtype=np.float32)
    return _thread.values[:count].reshape(2, *shape)


def tiles(steps: int, points: int) -> Iterator[tuple[slice, slice]]:
    """Parts of an array (steps, points) to work on at once, all steps of some points after each other."""
    width = max(1, min(points, TILE_VALUES // min(steps, TILE_STEPS)))
    rows = max(1, TILE_VALUES // width)
    for low in range(0, points, width):
        for first in range(0, steps, rows):
            yield slice(first, first + rows), slice(low, low + width)


def flat_product(left: np.ndarray, right: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """`left @ right` for a right side of few rows or a left one of few, and many columns, in parts of the columns.

    A library that packs matrices before it multiplies them spends most of its time on that here: with parts of
    `QUICK_PRODUCT` the product is up to four times as quick.
    """
    columns = right.shape[1]
    if out is None:
        out = np.empty((len(left), columns), dtype=np.float32)
    width = 2 ** max(5, int(math.log2(QUICK_PRODUCT / math.prod(left.shape))))
    parted = columns // width * width

    def in_parts(array: np.ndarray) -> np.ndarray:
        return array[:, :parted].reshape(len(array), -1, width).transpose(1, 0, 2)

    if parted:
        np.matmul(left, in_parts(right), out=in_parts(out))
    if parted < columns:
        np.matmul(left, right[:, parted:], out=out[:, parted:])
    return out


def _squares(values: np.ndarray) -> float:
    """Their sum: float32 over `SHORT_SUM` of them, float64 over such sums; not finite where some values are not."""
    flat = values.reshape(-1)
    parted = len(flat) // SHORT_SUM * SHORT_SUM
    parts, rest = flat[:parted].reshape(-1, SHORT_SUM), flat[parted:]
    return float(np.matmul(parts[:, None], parts[:, :, None]).sum(dtype=np.float64)) + float(np.dot(rest, rest))


class Moments:
    """Sums of the least-squares fit of K basis functions at every grid point; NaN are left out, point by point.

    Where values are missing the harmonics are shrunk by a ridge of `GAP_RIDGE` times the number of missing steps:
    a point seen in one season alone would otherwise have a climatology hundreds of degrees off in the others.
    """

    def __init__(self, width: int, shape: tuple[int, ...]) -> None:
        self.shape = shape
        places = (shape[0], math.prod(shape[1:]))
        self.gram = np.zeros((width, width))
        self.absent_gram: np.ndarray | None = None
        self.absent = np.zeros(places)
        self.projection = np.zeros((width, *places))
        self.squares = np.zeros(shape[0])
        self.changes, self.pairs = np.zeros(shape[0]), np.zeros(shape[0])
        self.offset = np.full(places, np.nan, dtype=np.float32)
        self.steps = 0
        self.lock = threading.Lock()
        self.infinite: set[int] = set()
        """Channels that have infinite values."""
        self._blocks, self._turn = 0, [0] * shape[0]
        self._waiting: list[dict[int, Callable[[], None]]] = [{} for _ in range(shape[0])]

    def add(self, basis: np.ndarray, follows: np.ndarray) -> Callable[[int, np.ndarray], None]:
        """Add steps, of which one that `follows` has no gap before it.

        Comes back with a function that takes the number of a channel and its values (T, *space), and may be called by
        any thread. In each channel steps are added in the order of these calls, so that threads change no sum: values
        that come before their turn are left to the thread that is adding those before them.
        """
        single = basis.astype(np.float32)
        basis = single.astype(np.float64)  # what the sums are made with
        waves = np.ascontiguousarray(single.T)
        self.gram += basis.T @ basis
        self.steps += len(basis)
        number, self._blocks = self._blocks, self._blocks + 1

        def add_channel(channel: int, fields: np.ndarray) -> None:
            values = fields.reshape(len(fields), -1)
            places = dict.fromkeys((tile[1].start, tile[1].stop) for tile in tiles(*values.shape))
            for some in itertools.starmap(slice, places):
                if not self._add_points(channel, some, basis, waves, follows, values[:, some]):
                    self.infinite.add(channel)

        def in_turn(channel: int, fields: np.ndarray) -> None:
            with self.lock:
                self._waiting[channel][number] = partial(add_channel, channel, fields)
                if self._turn[channel] != number:
                    return
            while True:
                with self.lock:
                    add = self._waiting[channel].pop(self._turn[channel], None)
                    if add is None:
                        return
                add()
                with self.lock:
                    self._turn[channel] += 1

        return in_turn

    def _add_points(
        self,
        channel: int,
        points: slice,
        basis: np.ndarray,
        waves: np.ndarray,
        follows: np.ndarray,
        values: np.ndarray,
    ) -> bool:
        """Sums over a few steps in float32, and over those in float64; False where a value is infinite."""
        # Around a value of the point itself, sums of squares keep their digits: pressure varies by 1 % of itself.
        offset = self.offset[channel, points]
        if np.isnan(offset).any():
            first = np.isfinite(values).argmax(axis=0)
            np.copyto(offset, values[first, np.arange(len(first))], where=np.isnan(offset))
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(0, len(values), TILE_STEPS):
                steps = slice(first, first + TILE_STEPS)
                tile = np.subtract(values[steps], offset, out=scratch(values[steps].shape)[0])
                change, together = tile[1::PAIRS] - tile[:-1:PAIRS], follows[steps][1::PAIRS]
                squares, changed = _squares(tile), _squares(change)
                if not math.isfinite(squares):
                    if np.isinf(values[steps]).any():
                        return False
                    absent = np.isnan(tile)
                    tile[absent] = 0
                    squares = float(np.einsum("tp,tp->", tile, tile, dtype=np.float64))
                    if absent.any():
                        self._add_absent(channel, points, basis[steps], absent)
                if not together.all() or not math.isfinite(changed):
                    change = change[together]
                    change = change[np.isfinite(change)]
                    changed = _squares(change)
                self.projection[:, channel, points] += flat_product(waves[:, steps], tile)
                self.squares[channel] += squares
                self.changes[channel] += changed
                self.pairs[channel] += change.size
        return True

    def _add_absent(self, channel: int, points: slice, basis: np.ndarray, absent: np.ndarray) -> None:
        with self.lock:
            if self.absent_gram is None:
                self.absent_gram = np.zeros((*self.absent.shape, *self.gram.shape))
        self.absent[channel, points] += absent.sum(axis=0)
        products = basis[:, :, None] * basis[:, None, :]
        self.absent_gram[channel, points] += np.tensordot(absent.astype(np.float64), products, axes=(0, 0))

    def solve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coefficients (K, V, *space), variance of the residual of every channel (V,), and counts (V, *space)."""
        width, absent = len(self.gram), self.absent.reshape(-1)
        projection = self.projection.reshape(width, -1)
        ridge = np.full((width, len(absent)), 1e-9 * self.steps)  # for bases that are not independent
        ridge[1:] += GAP_RIDGE * absent
        if self.absent_gram is None:
            coefficients = np.linalg.solve(self.gram + np.diag(ridge[:, 0]), projection)
        else:
            grams = self.gram - self.absent_gram.reshape(-1, width, width)
            diagonal = np.arange(width)
            grams[:, diagonal, diagonal] += ridge.T
            coefficients = np.linalg.solve(grams, projection.T[..., None])[..., 0].T
        count, offset = self.steps - self.absent, np.nan_to_num(self.offset).astype(np.float64)
        # |x - Bc|^2 = x.x - c.p - c.Rc for p = B'x, ridge R and (B'B + R) c = p
        fitted = (coefficients * (projection + ridge * coefficients)).sum(axis=0).reshape(count.shape)
        residual = self.squares - fitted.sum(axis=1)
        # Rounding leaves some 1e-14 of the squares of a field, and float32 cannot show variations below 1e-7 of the
        # value; under both there is no variation to speak of. Where nothing varies, everything summed is zero.
        varying = (self.projection != 0).any(axis=0)
        seen = (count * offset**2 * varying).sum(axis=1)
        residual = np.where(residual > 1e-12 * self.squares + 1e-14 * seen, residual, 0)
        variance = residual / np.maximum(count.sum(axis=1), 1)
        coefficients[0] += offset.reshape(-1)
        return coefficients.reshape(-1, *self.shape).astype(np.float32), variance, count.reshape(self.shape)

    def pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of every channel over all places and steps together, shapes (V,), float64."""
        count, offset = self.steps - self.absent, np.nan_to_num(self.offset).astype(np.float64)
        total = np.maximum(count.sum(axis=1), 1)
        sums = self.projection[0]
        mean = (sums + count * offset).sum(axis=1) / total
        away = offset - mean[:, None]
        # x - m = (x - o) + (o - m), squared and summed
        variance = (self.squares + (2 * away * sums + count * away**2).sum(axis=1)) / total
        # Of a constant, rounding leaves some 1e-14 of its square.
        return mean, np.where(variance > 1e-12 * mean**2, variance, 0)

    @property
    def tendency(self) -> np.ndarray:
        """Root mean square of the changes from one step to the next, shape (V,)."""
        return np.sqrt(self.changes / np.maximum(self.pairs, 1)).astype(np.float32)
