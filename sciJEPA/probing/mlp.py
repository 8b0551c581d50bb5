"""Latents -> forecasts through one hidden layer, to see what a linear probe cannot read.

Arrives: features of each issue time and the targets that followed. Leaves: a probe with the verbs of `Ridge`. Features
and targets pass through their principal components, so that a whole field costs few parameters. We decided against
deeper networks: a probe that learns a representation of its own judges itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sciJEPA.probes import Rows
from sciJEPA.probing.principal import principal_axes
from sciJEPA.probing.training import ComponentProbe, TargetComponents, TrainingOptions


class HiddenLayer(nn.Module):
    """Linear, GELU, linear: inputs to the components of every cell."""

    def __init__(self, width: int, hidden: int, cells: int, rank: int) -> None:
        super().__init__()
        self.cells = cells
        self.first, self.last = nn.Linear(width, hidden), nn.Linear(hidden, cells * rank)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Float[Tensor, "B K"]) -> Float[Tensor, "B C R"]:
        """Components (rows, cells, rank)."""
        out: Tensor = self.last(nn.functional.gelu(self.first(x)))
        return out.unflatten(-1, (self.cells, -1))


@dataclass
class MLP(ComponentProbe):
    """One hidden layer from the leading components of the features to those of the targets, trained with AdamW.

    Parameters
    ----------
    hidden
        Units of the hidden layer.
    components
        Leading components of the features. Their relative size is kept, as it is in `Ridge`: with unit variance for
        each, forecasts of sea-level pressure were worse at every lead.
    rank
        Components of the targets of each group; a group with fewer targets loses nothing.
    options
        Epochs, patience, batch size, learning rate and weight decay.

    Attributes after `fit`
    ----------------------
    features_
        Rows that `predict` reads; those of other samples may be put in their place.
    epoch_
        Chosen epoch, shape (leads, groups); 0 is climatology.
    error_
        Weighted mean squared error on the validation times, shape (leads, groups).
    """

    hidden: int = 256
    components: int = 256
    rank: int = 128
    options: TrainingOptions = field(default_factory=lambda: TrainingOptions(learning_rate=3e-4))
    seed: int = 0
    features_: Rows = field(init=False, repr=False)
    epoch_: np.ndarray = field(init=False)
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
    ) -> "MLP":
        """Train on `train`, choose the epoch of each lead and group on `validation`. Arguments as in `Ridge.fit`."""
        self.features_, self._shape = features, (len(targets), groups)
        self._axes = principal_axes(features, train, self.components, seed=self.seed)
        self._outputs = TargetComponents.fit(targets[0], train, self.rank, weights=weights, groups=groups)
        known = self._components_of(targets, np.concatenate([train, validation]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = HiddenLayer(len(self._axes.deviation), self.hidden, len(targets) * groups, self._outputs.rank)
        self._train(network, targets, known, train, validation)
        return self

    def _inputs(self, times: np.ndarray) -> np.ndarray:
        size = np.sqrt((self._axes.deviation**2).mean())
        return (self._axes.components(self.features_.read(times)) / size).astype(np.float32)
