"""Features -> probabilities of classes: multinomial logistic regression with a ridge.

Arrives: `Rows` and the number of each time's class. Leaves: probabilities. The problem is convex, so that the answer
does not depend on a seed or on when one stops. We decided against scikit-learn as a dependency for one function; the
tests compare with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.optimize
import scipy.special

from sciJEPA.errors import UserError
from sciJEPA.probes import Rows, row_blocks
from sciJEPA.probing.principal import principal_axes

STRENGTHS = tuple(10.0**power for power in np.arange(-5, 1.01, 0.5))


@dataclass
class Logistic:
    """Minimises mean cross-entropy + s / 2 |W|^2 / v, the strength s chosen on the validation times.

    v is the mean square of the features times their number, so that a strength means the same in any unit. The offsets
    are not penalised. Features pass through their principal components.

    Attributes after `fit`
    ----------------------
    features_
        Rows that `predict` reads; those of other samples may be put in their place.
    strength_
        Chosen strength.
    error_
        Mean cross-entropy on the validation times with it, in nats.
    """

    strengths: Sequence[float] = STRENGTHS
    components: int = 256
    seed: int = 0
    features_: Rows = field(init=False, repr=False)
    strength_: float = field(init=False)
    error_: float = field(init=False)

    def fit(
        self, features: Rows, classes: np.ndarray, train: np.ndarray, validation: np.ndarray, *, count: int
    ) -> "Logistic":
        """Fit on `train`, choose the strength on `validation`; `classes` are numbers from 0 to `count` - 1."""
        lacking = np.setdiff1d(np.arange(count), classes[train])
        if len(lacking):
            raise UserError(
                f"{len(lacking)} of {count} classes never occur in the {len(train)} training samples, so nothing can "
                "be learnt of them; use more samples or other groups."
            )
        self.features_ = features
        self._basis = principal_axes(features, train, self.components, seed=self.seed)
        self._size = float((self._basis.deviation**2).sum()) ** 0.5
        inputs, held_out = self._read(train), self._read(validation)
        wanted = np.eye(count)[classes[train]]
        solution = np.zeros((inputs.shape[1] + 1, count))
        self.error_ = np.inf
        for strength in sorted(self.strengths, reverse=True):  # each begins where the stronger one ended
            solution = _minimum(inputs, wanted, strength, solution)
            chances = scipy.special.log_softmax(held_out @ solution[:-1] + solution[-1], axis=1)
            error = float(-chances[np.arange(len(validation)), classes[validation]].mean())
            if error < self.error_:
                self.strength_, self.error_, self._solution = strength, error, solution
        return self

    def predict(self, times: np.ndarray) -> np.ndarray:
        """Probability of each class, shape (len(times), classes)."""
        return np.asarray(scipy.special.softmax(self._read(times) @ self._solution[:-1] + self._solution[-1], axis=1))

    def _read(self, times: np.ndarray) -> np.ndarray:
        parts = [self._basis.components(self.features_.read(block)) for block in row_blocks(times)]
        return np.concatenate(parts) / self._size


def _minimum(inputs: np.ndarray, wanted: np.ndarray, strength: float, start: np.ndarray) -> np.ndarray:
    """Weights and, in the last row, offsets."""

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(start.shape)
        logs = scipy.special.log_softmax(inputs @ weights[:-1] + weights[-1], axis=1)
        excess = (np.exp(logs) - wanted) / len(inputs)
        slope = np.concatenate([inputs.T @ excess + strength * weights[:-1], excess.sum(axis=0, keepdims=True)])
        return float(-(wanted * logs).sum() / len(inputs) + strength / 2 * (weights[:-1] ** 2).sum()), slope.ravel()

    found = scipy.optimize.minimize(
        loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-12, "gtol": 1e-7}
    )
    return np.asarray(found.x).reshape(start.shape)
