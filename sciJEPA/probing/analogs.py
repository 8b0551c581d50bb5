"""Latents -> forecasts by analogy: what followed the most similar states of the training times.

Arrives: features of each issue time and the targets that followed. Leaves: a probe with the verbs of `Ridge`. Nothing
is fitted but a distance, so that it shows whether states that are near each other in latent space have like futures. We
decided against keeping the training targets: those that are wanted are read again, block by block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse

from sciJEPA.probes import CHOICE_TARGETS, Rows, row_blocks
from sciJEPA.probing.principal import principal_axes

NEIGHBOURS = (1, 2, 4, 8, 16, 32, 64, 128)
COMPONENTS = (8, 32, 128)

Neighbours = tuple[np.ndarray, np.ndarray]
"""Positions among the training times and distances, nearest first, each (times, most neighbours)."""


@dataclass
class Analogs:
    """Mean of the targets of the k nearest training times, weighted by the inverse of their distance.

    Distances are Euclidean among the leading principal components of the features. The number of neighbours and of
    components are chosen on the validation times, for each lead and group. A time at distance zero stands alone.

    Source: Lorenz 1969, "Atmospheric predictability as revealed by naturally occurring analogues",
    https://doi.org/10.1175/1520-0469(1969)26<636:APARBN>2.0.CO;2.

    Parameters
    ----------
    neighbours, components
        Candidates; those beyond the number of training times or of directions are left out.
    whiten
        Give every component the same variance. Without, their relative size is part of the representation.

    Attributes after `fit`
    ----------------------
    features_
        Rows that `predict` reads; those of other samples may be put in their place.
    neighbours_, components_
        Chosen numbers, shape (leads, groups).
    error_
        Weighted mean squared error on the validation times with them, shape (leads, groups).
    """

    neighbours: Sequence[int] = NEIGHBOURS
    components: Sequence[int] = COMPONENTS
    whiten: bool = False
    seed: int = 0
    features_: Rows = field(init=False, repr=False)
    neighbours_: np.ndarray = field(init=False)
    components_: np.ndarray = field(init=False)
    error_: np.ndarray = field(init=False)

    def fit(
        self,
        features: Rows,
        targets: Sequence[Rows],
        train: np.ndarray,
        validation: np.ndarray,
        *,
        weights: np.ndarray,
        groups: int = 1,
    ) -> "Analogs":
        """Find the components on `train`, choose on `validation`. Arguments as in `Ridge.fit`."""
        self.features_, self._targets, self._train = features, list(targets), np.asarray(train)
        self._basis = principal_axes(features, train, max(self.components), seed=self.seed)
        self._states = self._project(train)
        most = self._states.shape[1]
        sizes = sorted({min(size, most) for size in self.components})
        counts = sorted({min(count, len(train)) for count in self.neighbours})
        self._most = counts[-1]
        self._parts = np.split(np.arange(targets[0].width), groups)
        weights = np.asarray(weights, dtype=np.float64)
        candidates = [(size, count) for size in sizes for count in counts]
        errors = np.zeros((len(candidates), len(targets), groups))
        for block in row_blocks(validation):
            near = {size: self._nearest(block, size) for size in sizes}
            shares = [self._shares(near[size], count) for size, count in candidates]
            for lead, target in enumerate(targets):
                errors[:, lead] += self._squares(shares, target, block, weights)
        best = errors.argmin(axis=0)
        self.components_, self.neighbours_ = (np.array(candidates)[best][..., number] for number in (0, 1))
        self.error_ = np.take_along_axis(errors, best[None], axis=0)[0] / len(validation)
        return self

    def predict(self, times: np.ndarray) -> list[np.ndarray]:
        """Predictions of each lead for these issue times, each (len(times), targets)."""
        out = [np.empty((len(times), target.width), dtype=np.float32) for target in self._targets]
        first = 0
        for block in row_blocks(times):
            near = {int(size): self._nearest(block, int(size)) for size in np.unique(self.components_)}
            for lead, target in enumerate(self._targets):
                cells = zip(self.components_[lead], self.neighbours_[lead], strict=True)
                shares = [self._shares(near[int(size)], int(count)) for size, count in cells]
                for part, mean in zip(self._parts, self._means(shares, target, self._parts), strict=True):
                    out[lead][first : first + len(block), part] = mean
            first += len(block)
        return out

    def _project(self, times: np.ndarray) -> np.ndarray:
        parts = [self._basis.components(self.features_.read(block)) for block in row_blocks(times)]
        states = np.concatenate(parts)
        return states / self._basis.deviation if self.whiten else states

    def _nearest(self, times: np.ndarray, size: int) -> Neighbours:
        """The nearest training times of each of these, in the first `size` components."""
        states, train = self._project(times)[:, :size], self._states[:, :size]
        squares = (train**2).sum(axis=1) - 2 * states @ train.T  # plus a constant of each time
        if self._most < len(train):
            found = np.argpartition(squares, self._most - 1, axis=1)[:, : self._most]
        else:
            found = np.tile(np.arange(len(train)), (len(times), 1))
        # Once more from the differences: the formula above loses the digits of small distances.
        distance = np.stack(
            [np.linalg.norm(train[row] - state, axis=1) for row, state in zip(found, states, strict=True)]
        )
        order = np.argsort(distance, axis=1, kind="stable")
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(distance, order, axis=1)

    def _shares(self, near: Neighbours, count: int) -> scipy.sparse.csr_matrix:
        """Weight of each training time in each forecast, shape (times, training times); rows sum to 1."""
        found, distance = near[0][:, :count], near[1][:, :count]
        same = distance <= 1e-9 * self._basis.deviation[0]
        inverse = np.where(same.any(axis=1, keepdims=True), same, 1 / np.where(same, 1, distance))
        inverse /= inverse.sum(axis=1, keepdims=True)
        starts = np.arange(0, found.size + 1, count)
        return scipy.sparse.csr_matrix((inverse.ravel(), found.ravel(), starts), (len(found), len(self._train)))

    def _means(
        self, shares: Sequence[scipy.sparse.csr_matrix], target: Rows, columns: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Weighted means of the training targets in these columns, for each matrix of shares; targets read once."""
        means = [np.zeros((share.shape[0], len(part))) for share, part in zip(shares, columns, strict=True)]
        wanted = np.unique(np.concatenate([share.indices for share in shares]))
        for block in row_blocks(wanted):
            values = target.read(self._train[block])
            for mean, share, part in zip(means, shares, columns, strict=True):
                mean += share[:, block] @ values[:, part]
        return means

    def _squares(
        self, shares: Sequence[scipy.sparse.csr_matrix], target: Rows, times: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """Weighted squared error of each candidate and group, summed over these times, a mean over targets."""
        truth = target.read(times)
        some = [part[:: -(-len(part) // CHOICE_TARGETS)] for part in self._parts]
        # All groups in one call, so that the targets are read once.
        means = self._means([share for share in shares for _ in some], target, some * len(shares))
        sums = [
            ((mean - truth[:, part]) ** 2 @ weights[part]).sum() / len(part)
            for mean, part in zip(means, some * len(shares), strict=True)
        ]
        return np.array(sums).reshape(len(shares), len(some))
