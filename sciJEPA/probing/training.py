"""How a probe without closed form is trained: the part that `MLP` and `Attentive` share.

Arrives: a small network, inputs of issue times, and targets as principal components. Leaves: the weights of the epoch
with the smallest validation error, for each lead and group (a cell) its own: distant leads overfit early, as they would
want a stronger ridge. The last layer begins at zero, so epoch 0 is climatology, and no cell does worse than that on the
validation times. We decided against one epoch for all leads.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sciJEPA.errors import UserError
from sciJEPA.probes import Rows, row_blocks
from sciJEPA.probing.principal import PrincipalAxes, principal_axes

CHUNK_ROWS, CHUNKS = 16, 64
"""So many neighbouring rows are read together, and so many such chunks are shuffled together."""
MEMORY_LIMIT = 2**30
"""Inputs up to this many bytes are read once and kept."""

Components = Callable[[np.ndarray], Tensor]
"""Components (n, cells, rank) of issue times."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long and how fast a probe is trained."""

    epochs: int = 200
    """At most."""
    patience: int = 20
    """Epochs without a better validation error in any cell before training ends."""
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        if min(self.epochs, self.patience, self.batch_size) < 1 or self.learning_rate <= 0 or self.weight_decay < 0:
            raise UserError(f"epochs, patience, batch_size and learning_rate of a probe must be positive, got {self}.")


@dataclass(frozen=True)
class TargetComponents:
    """Targets of each group as a few principal components, in units in which a forecast of climatology has error 1.

    The axes are those of the first lead: the fields of the other leads are the same ones, a few steps later.
    """

    parts: Sequence[np.ndarray]  # columns of each group
    bases: Sequence[PrincipalAxes]  # of each group
    rank: int  # components a cell, the largest of the groups'; the others are filled up with zeros

    @classmethod
    def fit(cls, target: Rows, train: np.ndarray, rank: int, *, weights: np.ndarray, groups: int) -> "TargetComponents":
        """Axes of each group over the training times, every column weighted by its share in the error."""
        parts = np.split(np.arange(target.width), groups)
        bases = []
        for part in parts:
            columns = Rows(lambda times, part=part: target.read(times)[:, part], len(part))  # type: ignore[misc]
            bases.append(principal_axes(columns, train, rank, scale=np.sqrt(np.asarray(weights)[part])))
        return cls(parts, bases, max(len(basis.deviation) for basis in bases))

    def unit(self, group: int) -> float:
        """Root of the summed variance of a group's components."""
        return float(np.sqrt((self.bases[group].deviation ** 2).sum()))

    def components(self, values: np.ndarray) -> np.ndarray:
        """Targets (n, width) -> (n, groups, rank)."""
        out = np.zeros((len(values), len(self.parts), self.rank), dtype=np.float32)
        for group, (part, basis) in enumerate(zip(self.parts, self.bases, strict=True)):
            out[:, group, : len(basis.deviation)] = basis.components(values[:, part]) / self.unit(group)
        return out

    def lost(self, values: np.ndarray) -> np.ndarray:
        """Weighted mean square of what the components leave out, for each group."""
        squares = []
        for part, basis in zip(self.parts, self.bases, strict=True):
            centred = (values[:, part] - basis.mean) * basis.scale
            squares.append(((centred**2).sum() - (basis.components(values[:, part]) ** 2).sum()) / len(part))
        return np.maximum(squares, 0) / len(values)

    def restore(self, components: np.ndarray) -> np.ndarray:
        """Inverse of `components`: (n, groups, rank) -> (n, width)."""
        parts = [
            basis.restore(components[:, group, : len(basis.deviation)] * self.unit(group))
            for group, basis in enumerate(self.bases)
        ]
        return np.concatenate(parts, axis=1).astype(np.float32)


@dataclass(frozen=True)
class Trained:
    """A network with the weights of several epochs and the epoch that each cell takes."""

    network: nn.Module
    weights: dict[int, dict[str, Tensor]]
    epoch: np.ndarray  # (cells,)
    error: np.ndarray  # (cells,) of the components on the validation times, 1 for climatology

    def __call__(self, inputs: Tensor) -> np.ndarray:
        """Inputs (n, ...) -> components (n, cells, rank), each cell with the weights of its own epoch."""
        with torch.inference_mode():
            found = {number: functional_call(self.network, state, (inputs,)) for number, state in self.weights.items()}
        return np.stack([found[number][:, cell].numpy() for cell, number in enumerate(self.epoch)], axis=1)


class ComponentProbe:
    """What `MLP` and `Attentive` have in common: inputs and targets in, fields out. Cells are leads times groups."""

    options: TrainingOptions
    seed: int
    features_: Rows
    epoch_: np.ndarray
    error_: np.ndarray
    _outputs: TargetComponents
    _shape: tuple[int, int]
    _trained: Trained

    def predict(self, times: np.ndarray) -> list[np.ndarray]:
        """Predictions of each lead for these issue times, each (len(times), targets)."""
        blocks = [self._restore(self._trained(self._read(block))) for block in row_blocks(times)]
        return [np.concatenate(parts) for parts in zip(*blocks, strict=True)]

    def _train(
        self, network: nn.Module, targets: Sequence[Rows], known: Components, train: np.ndarray, validation: np.ndarray
    ) -> None:
        """Train the network from `_inputs(times)` to the `known` components of the targets."""
        inputs = Rows(self._inputs, self._inputs(train[:1]).shape[1])
        self._trained = fit_cells(network, inputs, known, train, validation, self.options, seed=self.seed)
        self.epoch_ = self._trained.epoch.reshape(self._shape)
        self.error_ = self._error(targets, validation, self._trained.error)

    def _read(self, times: np.ndarray) -> Tensor:
        return torch.from_numpy(self._inputs(times))

    def _inputs(self, times: np.ndarray) -> np.ndarray:
        """What the network is given of these issue times, float32."""
        return self.features_.read(times).astype(np.float32)

    def _components_of(self, targets: Sequence[Rows], times: np.ndarray) -> Components:
        """The targets of these times as components (n, leads * groups, rank), kept in memory."""
        parts = [
            np.concatenate([self._outputs.components(target.read(block)) for target in targets], axis=1)
            for block in row_blocks(times)
        ]
        found, place = torch.from_numpy(np.concatenate(parts)), _places(times)
        return lambda wanted: found[place[wanted]]

    def _error(self, targets: Sequence[Rows], validation: np.ndarray, relative: np.ndarray) -> np.ndarray:
        """Weighted mean squared error of each lead and group over all targets, as `Ridge.error_`."""
        lost = np.zeros(self._shape)
        for block in row_blocks(validation):
            for lead, target in enumerate(targets):
                lost[lead] += self._outputs.lost(target.read(block)) * len(block) / len(validation)
        units = [self._outputs.unit(group) ** 2 / len(part) for group, part in enumerate(self._outputs.parts)]
        return relative.reshape(self._shape) * np.array(units) + lost

    def _restore(self, components: np.ndarray) -> list[np.ndarray]:
        """Components (n, leads * groups, rank) -> fields of each lead."""
        cells = components.reshape(len(components), *self._shape, -1)
        return [self._outputs.restore(cells[:, lead]) for lead in range(self._shape[0])]


def fit_cells(
    network: nn.Module,
    inputs: Rows,
    targets: Components,
    train: np.ndarray,
    validation: np.ndarray,
    options: TrainingOptions,
    *,
    seed: int,
) -> Trained:
    """AdamW on the mean over cells of squared errors, with early stopping on the validation times.

    Parameters
    ----------
    network
        Maps inputs (n, width) to components (n, cells, rank).
    inputs, targets
        Rows of inputs, and components (n, cells, rank) of issue times.
    """
    inputs = kept_in_memory(inputs, np.concatenate([train, validation]))
    optimiser = torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    patience = max(1, options.patience // 4)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.3, patience=patience)
    best = validation_error(network, inputs, targets, validation)
    chosen = np.zeros(len(best), dtype=int)
    weights = {0: _copy(network)}
    for epoch in range(1, options.epochs + 1):
        for batch in batches(train, options.batch_size, seed=seed, epoch=epoch):
            optimiser.zero_grad()
            predicted = network(torch.from_numpy(inputs.read(batch)))
            (predicted - targets(batch)).pow(2).sum(dim=-1).mean().backward()
            optimiser.step()
        errors = validation_error(network, inputs, targets, validation)
        schedule.step(errors.mean())
        better = errors < best * (1 - 1e-4)
        if better.any():
            best, chosen = np.where(better, errors, best), np.where(better, epoch, chosen)
            weights = {number: state for number, state in weights.items() if number in chosen}
            weights[epoch] = _copy(network)
        if epoch - chosen.max() >= options.patience:
            break
    return Trained(network, weights, chosen, best)


def validation_error(network: nn.Module, inputs: Rows, targets: Components, validation: np.ndarray) -> np.ndarray:
    """Mean squared error of each cell, summed over its components."""
    total = torch.zeros(())
    with torch.inference_mode():
        for block in row_blocks(validation):
            predicted = network(torch.from_numpy(inputs.read(block)))
            total = total + (predicted - targets(block)).pow(2).sum(dim=(0, 2), dtype=torch.float64)
    return total.numpy() / len(validation)


def batches(times: np.ndarray, size: int, *, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """All times once in random order; neighbours are read in chunks, of which many are mixed."""
    rng = np.random.default_rng([seed, epoch])
    chunks = np.array_split(times, max(1, len(times) // CHUNK_ROWS))
    order = rng.permutation(len(chunks))
    for first in range(0, len(order), CHUNKS):
        mixed = rng.permutation(np.concatenate([chunks[number] for number in order[first : first + CHUNKS]]))
        yield from np.array_split(mixed, max(1, round(len(mixed) / size)))


def kept_in_memory(rows: Rows, times: np.ndarray) -> Rows:
    """The same rows as float32, read once if those of these times fit in memory."""
    if len(times) * rows.width * 4 > MEMORY_LIMIT:
        return Rows(lambda indices: rows.read(indices).astype(np.float32), rows.width)
    values, place = np.concatenate([rows.read(block).astype(np.float32) for block in row_blocks(times)]), _places(times)
    return Rows(lambda indices: values[place[indices]], rows.width)


def _places(times: np.ndarray) -> np.ndarray:
    """Where each time stands among these; -1 where it does not."""
    place = np.full(int(times.max()) + 1, -1)
    place[times] = np.arange(len(times))
    return place


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
