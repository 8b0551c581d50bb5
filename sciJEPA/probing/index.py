"""Latents -> a number or a class of each sample: a Nino index, a station, a drag coefficient, a regime.

Arrives: labelled latents and an `xr.DataArray` along one of their dimensions. Leaves: predictions under the target's
name, units and coordinates. Strengths, neighbours and epochs are chosen on samples held out of those that `fit` was
given, so that a test set never is. We decided against joining latents and target quietly where only some samples match.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, Self

import numpy as np
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.probes import Ridge, Rows, rows_of
from sciJEPA.probing.analogs import Analogs
from sciJEPA.probing.attentive import Attentive
from sciJEPA.probing.index_samples import (
    Latents,
    TokenAxes,
    hold_out,
    is_time,
    matching,
    sample_rows,
    tokens_of,
    told_apart,
)
from sciJEPA.probing.logistic import Logistic
from sciJEPA.probing.mlp import MLP


class TargetProbe(Protocol):
    """Anything with the verbs of `Ridge`."""

    features_: Rows
    """What `predict` reads; rows of other samples may be put in their place."""

    def fit(
        self,
        features: Rows,
        targets: Sequence[Rows],
        train: np.ndarray,
        validation: np.ndarray,
        *,
        weights: np.ndarray,
        groups: int = 1,
    ) -> Any:
        """Fit on `train`, choose on `validation`."""
        ...

    def predict(self, times: np.ndarray) -> list[np.ndarray]:
        """Predictions of each lead."""
        ...


KINDS: dict[str, Callable[[int, int], TargetProbe]] = {
    "ridge": lambda tokens, seed: Ridge(),
    "knn": lambda tokens, seed: Analogs(seed=seed),
    "mlp": lambda tokens, seed: MLP(seed=seed),
    "attentive": lambda tokens, seed: Attentive(tokens=tokens, seed=seed),
}


@dataclass(kw_only=True)
class IndexProbe:
    """What probes of numbers and of classes share; use `RegressionProbe` or `ClassificationProbe`."""

    pool: str = "area"
    validation: float = 0.2
    seed: int = 0
    target_: xr.DataArray = field(init=False, repr=False)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name, as scikit-learn has it."""
        return {parameter.name: getattr(self, parameter.name) for parameter in fields(self) if parameter.init}

    def set_params(self, **parameters: Any) -> Self:
        """Set parameters by name."""
        for name, value in parameters.items():
            if name not in self.get_params():
                raise UserError(
                    f"{type(self).__name__} has no parameter '{name}'; it has {', '.join(self.get_params())}."
                )
            setattr(self, name, value)
        return self

    def _begin(
        self, latents: Latents, target: xr.DataArray, dim: str, groups: Any, pool: str, held_out: Any = None
    ) -> tuple[Rows, np.ndarray, np.ndarray]:
        """Rows of the samples, and which are for training and which for validation."""
        self.target_, self.dim_ = matching(latents, target, dim).transpose(dim, ...), dim
        if held_out is None:
            self.train_, self.validation_ = hold_out(latents, dim, groups, self.validation, self.seed)
        else:
            self.train_, self.validation_ = told_apart(latents, dim, held_out)
        self._axes = TokenAxes.fit(latents, dim, self.train_) if pool == "moments" else None
        rows = sample_rows(latents, dim, pool, self._axes)
        self._trained_on = (latents.attrs.get("model_id", ""), rows.width)
        return rows, self.train_, self.validation_

    def _rows(self, latents: Latents, pool: str) -> Rows:
        """Rows of the samples to be predicted."""
        if not hasattr(self, "target_"):
            raise UserError(f"the {type(self).__name__} is not fitted; call fit(latents, target) first.")
        rows = sample_rows(latents, self.dim_, pool, self._axes)
        model_id, width = self._trained_on
        found = latents.attrs.get("model_id", "")
        if (found, rows.width) != self._trained_on:
            raise UserError(
                f"the probe was fitted on {width} numbers a sample from model '{model_id}', these are {rows.width} "
                f"from model '{found}'; embed with the same model and pass the same tokens."
            )
        return rows

    def _refuse_hindsight(self, latents: Latents) -> None:
        """Times that the probe was fitted on are no test of it. Trajectories may share their numbers with others."""
        if not is_time(latents, self.dim_) or not {self.dim_} <= set(latents.indexes) & set(self.target_.indexes):
            return
        shared = latents.indexes[self.dim_].intersection(self.target_.indexes[self.dim_])
        if len(shared):
            raise UserError(
                f"{len(shared)} of {latents.sizes[self.dim_]} times to be scored were given to fit, the first "
                f"{shared[0]}: skill there would be hindsight. Score other times."
            )

    def _label(self, values: np.ndarray, latents: Latents, dims: Sequence[Any], coords: Any, **attrs: Any) -> Any:
        """Predictions with the samples' coordinates and the target's name and units."""
        ours = {name: c for name, c in latents.coords.items() if c.dims == (self.dim_,)}
        attributes = self.target_.attrs | {"model_id": self._trained_on[0]} | attrs
        return xr.DataArray(values, dims=dims, coords={**ours, **coords}, name=self.target_.name, attrs=attributes)


@dataclass(kw_only=True)
class RegressionProbe(IndexProbe):
    """Numbers of each sample from its latents, with scikit-learn's verbs on labelled data.

    Parameters
    ----------
    kind
        "ridge", "knn" (analogs), "mlp" or "attentive"; the last attends over the tokens and does not pool them.
    pool
        How the tokens of a sample become one row: "area" (mean weighted by `token_area`), "mean" (not weighted),
        "moments" (area mean and logarithm of the spread along the principal axes of tokens) or "flatten" (side by
        side). What is pooled leaves out tokens with missing values.
    standardise
        Bring every number of a row to the same variance over the training samples: a parameter may show in what hardly
        varies. Attentive probes always do, over samples and tokens.
    validation
        Share of the samples given to `fit` that is held out for choices: the last ones along a time axis, whole groups
        where `fit` is given groups, else drawn at random.
    seed
        Of that draw and of the probe.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> latents = xr.DataArray(rng.normal(size=(60, 3, 2)), dims=("time", "token", "latent"))
    >>> index = latents.mean("token").isel(latent=0).rename("index").assign_attrs(units="K")
    >>> probe = RegressionProbe(kind="ridge").fit(latents[:50], index[:50])
    >>> round(probe.score(latents[50:], index[50:]), 3), probe.predict(latents[50:]).units
    (1.0, 'K')
    """

    kind: str = "ridge"
    standardise: bool = False
    probe_: TargetProbe = field(init=False, repr=False)

    def fit(
        self,
        latents: Latents,
        target: xr.DataArray,
        dim: str = "time",
        *,
        groups: Any = None,
        held_out: Any = None,
    ) -> Self:
        """Fit on these samples.

        Parameters
        ----------
        latents
            From `embed`, or any array with dims (`dim`, ..., "latent"), training samples only.
        target
            One number a sample along `dim`, or several along further dimensions, any units.
        groups
            Samples of a group, such as the snapshots of one trajectory, are held out together; one label a sample.
        held_out
            True for samples that choices are made on, such as those of a validation split; drawn if not given.
        """
        if self.kind not in KINDS:
            raise UserError(f"there is no probe '{self.kind}'; choose from {', '.join(KINDS)}.")
        rows, train, validation = self._begin(latents, target, dim, groups, self._pool, held_out)
        self._scale = _scale(rows, train) if self.standardise and self.kind != "attentive" else None
        rows = _scaled(rows, self._scale)
        wanted = self.target_.to_numpy().astype(np.float64).reshape(len(self.target_), -1)
        # In units of their scatter, so that the choice of a strength and the learning rates mean the same for each.
        self._mean, self._deviation = wanted[train].mean(axis=0), wanted[train].std(axis=0)
        if not (self._deviation > 0).all():
            raise UserError(f"{self.target_.name or 'the target'} does not vary over the training samples.")
        self.probe_ = KINDS[self.kind](tokens_of(latents, dim), self.seed)
        count = wanted.shape[1]
        scaled = rows_of((wanted - self._mean) / self._deviation)
        self.probe_.fit(rows, [scaled], train, validation, weights=np.ones(count), groups=count)
        return self

    def predict(self, latents: Latents) -> xr.DataArray:
        """The target of each sample, with the target's name, units and further dimensions."""
        self.probe_.features_ = _scaled(self._rows(latents, self._pool), self._scale)
        further = self.target_.isel({self.dim_: 0}, drop=True)
        values = self.probe_.predict(np.arange(latents.sizes[self.dim_]))[0] * self._deviation + self._mean
        shape = (-1, *further.shape)
        return self._label(values.reshape(shape), latents, self.target_.dims, further.coords, probe=self.kind)

    def score(self, latents: Latents, target: xr.DataArray) -> float:
        """R2 = 1 - squared error / squared distance from the mean of these samples; the mean over several targets."""
        predicted = self.predict(latents)
        self._refuse_hindsight(latents)
        truth = matching(latents, target, self.dim_).transpose(*predicted.dims).astype(np.float64)
        rest = ((truth - predicted.to_numpy()) ** 2).sum(self.dim_)
        return float((1 - rest / ((truth - truth.mean(self.dim_)) ** 2).sum(self.dim_)).mean())

    @property
    def _pool(self) -> str:
        return "flatten" if self.kind == "attentive" else self.pool


def _scale(rows: Rows, train: np.ndarray) -> np.ndarray:
    """One over the standard deviation of every number over the training samples; 0 where it does not vary."""
    deviation = rows.read(train).std(axis=0, dtype=np.float64)
    return np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-9 * deviation.max())


def _scaled(rows: Rows, scale: np.ndarray | None) -> Rows:
    return rows if scale is None else Rows(lambda samples: rows.read(samples) * scale, rows.width)


@dataclass(kw_only=True)
class ClassificationProbe(IndexProbe):
    """Class of each sample from its latents, such as a weather regime, by multinomial logistic regression.

    Parameters are those of `RegressionProbe`; the strength of the ridge is chosen on the samples held out.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> latents = xr.DataArray(rng.normal(size=(90, 3, 2)), dims=("time", "token", "latent"))
    >>> regime = xr.where(latents.mean("token").isel(latent=0) > 0, "blocked", "zonal").rename("regime")
    >>> probe = ClassificationProbe().fit(latents[:80], regime[:80])
    >>> probe.score(latents[80:], regime[80:]), probe.predict_proba(latents[80:]).sizes["class"]
    (1.0, 2)
    """

    probe_: Logistic = field(init=False, repr=False)

    def fit(self, latents: Latents, target: xr.DataArray, dim: str = "time", *, groups: Any = None) -> Self:
        """Fit on these samples; `target` holds one label a sample, of any type. Arguments as in `RegressionProbe`."""
        if target.dims != (dim,):
            raise UserError(f"a class needs one label a sample along '{dim}', got dimensions {target.dims}.")
        rows, train, validation = self._begin(latents, target, dim, groups, self.pool)
        self.classes_, numbers = np.unique(self.target_.to_numpy(), return_inverse=True)
        if len(self.classes_) < 2:
            raise UserError(f"{target.name or 'the target'} has one class only, {self.classes_[0]!r}.")
        self.probe_ = Logistic(seed=self.seed).fit(rows, numbers, train, validation, count=len(self.classes_))
        return self

    def predict(self, latents: Latents) -> xr.DataArray:
        """The likeliest class of each sample."""
        likeliest = self.classes_[self._chances(latents).argmax(axis=1)]
        return self._label(likeliest, latents, (self.dim_,), {}, probe="logistic")

    def predict_proba(self, latents: Latents) -> xr.DataArray:
        """Probability of each class, dims (`dim`, class)."""
        chances, attributes = self._chances(latents), {"units": "1", "probe": "logistic"}
        return self._label(chances, latents, (self.dim_, "class"), {"class": self.classes_}, **attributes)

    def score(self, latents: Latents, target: xr.DataArray) -> float:
        """Share of samples whose class is right."""
        predicted = self.predict(latents)
        self._refuse_hindsight(latents)
        truth = matching(latents, target, self.dim_)
        return float((predicted.to_numpy() == truth.to_numpy()).mean())

    def _chances(self, latents: Latents) -> np.ndarray:
        rows = self._rows(latents, self.pool)
        self.probe_.features_ = rows
        return self.probe_.predict(np.arange(latents.sizes[self.dim_]))
