"""Context latents -> latents of the future -> forecasts: what the predictor knows.

Arrives: a model and issue times. Leaves: a `Forecaster`. The predictor carries the latents of the issue window to later
token times, at once or in strides, where what it has predicted becomes its next context; a ridge that was fitted on
latents of the target encoder decodes them. Targets of the training are standardised over a batch; here over the
training windows, once, and undone before they serve as context. The stride of each lead is chosen on the validation
times. We decided against a decoder that is fitted on predicted latents: it would correct the predictor, and hide it.
The probe that does is a method of its own and reads `Carrier.foreseen` beside the latents.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sciJEPA.errors import UserError
from sciJEPA.forecasting.labelling import issue_steps, valid_times
from sciJEPA.hub import Domain, Model
from sciJEPA.judging.baselines import fields
from sciJEPA.judging.leakage import only_at
from sciJEPA.judging.problem import Problem, Projection, narrowing
from sciJEPA.probes import Ridge, Rows
from sciJEPA.probing.training import kept_in_memory
from sciJEPA.samples import split_steps
from sciJEPA.target import standardise
from sciJEPA.tokenizers.base import Batch, Tokens
from sciJEPA.training.monitor import effective_rank

BATCH = 64
SOME = 512
"""Windows from which statistics and ranks come, and validation times that choose a stride; evenly spaced."""


def foresees(domain: Domain) -> bool:
    """Whether predictors of this domain were trained to predict all places of times to come."""
    data, masking = domain.config.data, domain.config.masking
    # Where channels have tokens of their own, those of forcings are never predicted.
    apart = domain.tokenizer.channels_per_token < len(domain.tokenizer.channels)
    return (
        data.window > data.context and masking.forecast > 0 and not masking.horizons and not (data.forcings and apart)
    )


@dataclass(frozen=True)
class Carrier:
    """A model's predictor on the windows of one archive.

    Attributes
    ----------
    mean, deviation : of each number of a target latent over the training windows.
    """

    problem: Problem
    model: Model
    mean: Tensor
    deviation: Tensor

    @classmethod
    def bare(cls, problem: Problem, model: Model) -> "Carrier":
        """Without statistics."""
        width = model.jepa.encoder.width
        return cls(problem, model, torch.zeros(width), torch.ones(width))

    @classmethod
    def fit(cls, problem: Problem, model: Model, train: np.ndarray) -> "Carrier":
        """Statistics of target latents over the windows issued at these training steps."""
        width, bare = model.jepa.encoder.width, cls.bare(problem, model)
        if model.jepa.objective.standardise != "batch":
            return bare
        count, total, squares = 0, torch.zeros(width).double(), torch.zeros(width).double()
        for steps in _batches(evenly(train, SOME)):
            latents, seen = bare.encoded(steps)
            kept = (latents.flatten(0, 1) if seen is None else latents[seen]).double()
            count, total, squares = count + len(kept), total + kept.sum(0), squares + (kept**2).sum(0)
        mean = total / count
        deviation = (squares / count - mean**2).clamp_min(0).add(1e-6).sqrt()
        return cls(problem, model, mean.float(), deviation.float())

    @property
    def domain(self) -> Domain:
        """The domain with its forcings."""
        return self.problem.inputs[0]

    @property
    def places(self) -> int:
        """Tokens of one time."""
        return self.domain.tokenizer.grid.per_time

    @property
    def ahead(self) -> int:
        """Token times that the predictor reaches at once."""
        grid = self.domain.tokenizer.grid
        return grid.times - grid.context_times

    @property
    def steps_per_token(self) -> int:
        """Steps of the archive in a token."""
        return self.domain.config.data.window // self.domain.tokenizer.grid.times

    def encoded(self, steps: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Target latents of whole windows issued at these steps, as in training but for the standardisation."""
        jepa, data = self.model.jepa, self.domain.config.data
        batch = self.problem.input_reader.read(steps - data.context + 1, data.window)
        tokens = jepa.tokens(self._named(batch), tokenizer=self.domain.tokenizer)
        past = self.domain.tokenizer.grid.context_times * self.places
        scope = tokens.span(past if jepa.objective.scope == "future" else 0, None)
        encoder = jepa.target_encoder
        with torch.inference_mode():
            return encoder(scope).float().cpu(), scope.seen

    def targets(self, steps: np.ndarray) -> Tensor:
        """What the predictor should meet: standardised latents (n, token times ahead, places, L)."""
        parts = [self._standard(self.encoded(part)[0])[:, -self.ahead * self.places :] for part in _batches(steps)]
        return torch.cat(parts).unflatten(1, (self.ahead, self.places))

    def carried(self, steps: np.ndarray, reach: int, stride: int) -> Tensor:
        """Predicted latents (n, reach, places, L), standardised; `stride` token times at each application."""
        return torch.cat([self._carried(part, reach, stride) for part in _batches(steps)])

    def foreseen(self, steps: np.ndarray) -> np.ndarray:
        """What the predictor's answers for the token times ahead are read from: rows (n, places * ahead * width)."""
        return np.concatenate([self._foreseen(part) for part in _batches(steps)])

    @property
    def foreseen_rows(self) -> Rows:
        """`foreseen`, as features of a probe."""
        return Rows(self.foreseen, self.places * self.ahead * self.model.config.predictor.width)

    def _foreseen(self, steps: np.ndarray) -> np.ndarray:
        jepa, batch = self.model.jepa, self._issue_windows(steps)
        with torch.inference_mode():
            visible = self.domain.tokenizer(batch)
            known, asked = self._known_and_asked(batch, steps, 0, self.ahead)
            may_see, memory = asked.attendable(known, visible.seen), jepa.norm(jepa.encoder(visible))
            states = jepa.predictor.states(memory, known.features, asked.features, may_see, visible.domain)
        return states.float().unflatten(1, (self.ahead, self.places)).transpose(1, 2).flatten(1).cpu().numpy()

    def _carried(self, steps: np.ndarray, reach: int, stride: int) -> Tensor:
        jepa, batch = self.model.jepa, self._issue_windows(steps)
        past = self.domain.tokenizer.grid.context_times * self.places
        with torch.inference_mode():
            visible = self.domain.tokenizer(batch)
            memory, seen = jepa.encoder(visible), visible.seen
            found: list[Tensor] = []
            for shift in range(0, reach, stride):
                known, asked = self._known_and_asked(batch, steps, shift, min(stride, reach - shift))
                may_see, count = asked.attendable(known, seen), asked.features.shape[1]
                predicted = jepa.predictor(
                    jepa.norm(memory), known.features, asked.features, may_see, visible.domain
                ).float()
                found.append(predicted)
                restored = predicted * self.deviation.to(memory) + self.mean.to(memory)
                memory = torch.cat([memory, restored], dim=1)[:, -past:]
                if seen is not None:
                    seen = torch.cat([seen, torch.ones_like(seen[:, :1]).expand(-1, count)], dim=1)[:, -past:]
        return torch.cat(found, dim=1).unflatten(1, (reach, self.places)).cpu()

    def _issue_windows(self, steps: np.ndarray) -> Batch:
        context = self.domain.config.data.context
        return self._named(self.problem.input_reader.read(steps - context + 1, context))

    def _known_and_asked(self, batch: Batch, steps: np.ndarray, shift: int, count: int) -> tuple[Tokens, Tokens]:
        """Tokens of an issue window `shift` token times later, and of the `count` token times after it: places only."""
        past = self.domain.tokenizer.grid.context_times * self.places
        later = self.domain.tokenizer(self._later(batch, steps, shift))
        return later.span(0, past), later.span(past, past + count * self.places)

    def _later(self, batch: Batch, steps: np.ndarray, shift: int) -> Batch:
        """Whole windows that begin `shift` token times later: their calendar, and of values the issue window's alone.

        Tokenizers make position features of the calendar and of what the issue window holds; of the future, which is
        zero here, they may know nothing.
        """
        data, archive, known = self.domain.config.data, self.problem.archive, self.domain.normalizer.calendar
        first = 1 - data.context + shift * self.steps_per_token
        seasons = [
            known(valid_times(archive, steps, ahead) if ahead > 0 else archive.time[steps + ahead])
            for ahead in range(first, first + data.window)
        ]
        space = [0, 0] * (batch.values.ndim - 3)
        padding = (*space, 0, data.window - data.context)
        observed = batch.observed
        if observed is not None:
            observed = torch.nn.functional.pad(observed, padding, value=True)
        calendar = torch.from_numpy(np.stack(seasons, axis=1))
        values = torch.nn.functional.pad(batch.values, padding)
        return dataclasses.replace(batch, values=values, observed=observed, calendar=calendar.to(values.device))

    def _named(self, batch: Batch) -> Batch:
        device = next(self.model.jepa.parameters()).device
        return dataclasses.replace(batch, domain=self.domain.name).to(device)

    def _standard(self, latents: Tensor) -> Tensor:
        if self.model.jepa.objective.standardise == "token":
            return standardise(latents, "token")
        return (latents - self.mean) / self.deviation


@dataclass(frozen=True)
class LatentRollout:
    """The predictor's latents, decoded by a ridge.

    Attributes
    ----------
    strides : for each lead, token times that the predictor carries at once.
    narrow : what the decoder reads of latents that are too wide for a ridge; None: all.
    """

    carrier: Carrier
    decoder: Ridge
    strides: Sequence[int]
    narrow: Projection | None = None

    @staticmethod
    def possible(model: Model, domain: Domain) -> bool:
        """Whether the model's predictor predicts latents of times to come."""
        objective = model.jepa.objective
        return foresees(domain) and objective.target in ("ema", "vicreg", "sigreg") and objective.layers == (-1,)

    @classmethod
    def fit(cls, problem: Problem, model: Model) -> "LatentRollout":
        """Statistics and decoder from the training times, the stride of each lead from the validation times."""
        data = problem.domain.config.data
        if not cls.possible(model, problem.inputs[0]):
            raise UserError(
                "latent_rollout needs a model whose predictor predicts latents of times to come: one trained with "
                "data.window above data.context, masking.forecast above 0 without horizons, and targets that are its "
                "own last block: objective.target ema, vicreg or sigreg."
            )
        splits, further = split_steps(problem.archive, data), max(data.window - data.context, *problem.leads)
        train, validation = (
            np.intersect1d(own, issue_steps(problem.archive, split, data.context, further))
            for own, split in ((problem.train, splits.train), (problem.validation, splits.validation))
        )
        if not len(train) or not len(validation):
            raise UserError(
                f"a split of {problem.archive.source} has no whole window of {data.window} steps with labels, so there "
                "is nothing to decode latents with; use a longer archive or a larger share of labels."
            )
        unlabelled = np.intersect1d(
            problem.unlabelled, issue_steps(problem.archive, splits.train, data.context, further)
        )
        carrier = Carrier.fit(problem, model, unlabelled)
        decoder, narrow = _fit_decoder(carrier, train, validation)
        candidates = sorted({carrier.ahead, 1}, reverse=True)
        tried = [cls(carrier, decoder, [stride] * len(problem.leads), narrow) for stride in candidates]
        some = evenly(validation, SOME)
        errors = np.stack([_errors(one, some) for one in tried])
        return cls(carrier, decoder, [candidates[number] for number in errors.argmin(axis=0)], narrow)

    def predict(self, times: np.ndarray) -> list[np.ndarray]:
        """Forecasts of each lead."""
        decoded: dict[int, np.ndarray] = {}
        for stride in set(self.strides):
            mine = [number for number, own in enumerate(self.strides) if own == stride]
            reach = max(self._token_time(self._leads[number]) for number in mine)
            latents = self.carrier.carried(times, reach, stride)
            for number in mine:
                decoded[number] = self._decode(latents, self._leads[number])
        return [decoded[number] for number in range(len(self._leads))]

    def ranks(self, times: np.ndarray) -> tuple[list[float], list[float], int]:
        """Effective rank of predicted and of encoded latents of each lead at these issue steps, and how many of them.

        Encoded latents are those of the target encoder for the times forecast: what the predictor should meet.
        """
        carrier, per = self.carrier, self.carrier.steps_per_token
        reach = max(self._token_time(lead) for lead in self._leads)
        beyond = -(-reach // carrier.ahead) * carrier.ahead * per
        archive, whole = carrier.problem.archive, carrier.problem.domain.config.data.context
        inside = np.intersect1d(times, issue_steps(archive, ((0, len(archive)),), whole, beyond))
        some = evenly(inside if len(inside) else times, SOME)
        predicted, encoded = [], []
        for lead, stride in zip(self._leads, self.strides, strict=True):
            token = self._token_time(lead)
            found = carrier.carried(some, token, stride)[:, -1]
            predicted.append(effective_rank(found.flatten(0, 1)))
            if len(inside):
                shift, place = divmod(token - 1, carrier.ahead)
                truth = carrier.targets(some + shift * carrier.ahead * per)[:, place]
                encoded.append(effective_rank(truth.flatten(0, 1)))
            else:
                encoded.append(math.nan)
        return predicted, encoded, len(some)

    @property
    def _leads(self) -> Sequence[int]:
        return self.carrier.problem.leads

    def _token_time(self, lead: int) -> int:
        """Number of the token time, from 1, that holds the step `lead` after the issue time."""
        return -(-lead // self.carrier.steps_per_token)

    def _decode(self, latents: Tensor, lead: int) -> np.ndarray:
        values = latents[:, self._token_time(lead) - 1].flatten(1).numpy()
        values = values if self.narrow is None else self.narrow.apply(values)
        places = sorted({(own - 1) % self.carrier.steps_per_token for own in self._leads})
        # The decoder was fitted on rows by number of a window; here rows are handed over as they are.
        self.decoder.features_ = Rows(lambda numbers: values[numbers], values.shape[1])
        return self.decoder.predict(np.arange(len(values)))[places.index((lead - 1) % self.carrier.steps_per_token)]


def _fit_decoder(carrier: Carrier, train: np.ndarray, validation: np.ndarray) -> tuple[Ridge, Projection | None]:
    """Ridge from target latents of a token time to the fields of those of its steps that leads ask for.

    Each window gives the latents of one of its later token times, in turn.
    """
    problem, ahead, per = carrier.problem, carrier.ahead, carrier.steps_per_token
    numbers = [steps * ahead + np.arange(len(steps)) % ahead for steps in (train, validation)]

    def latents(pairs: np.ndarray) -> np.ndarray:
        steps, where = np.unique(pairs // ahead, return_inverse=True)
        return carrier.targets(steps)[where, pairs % ahead].flatten(1).numpy()

    features, narrow = Rows(latents, carrier.places * carrier.model.jepa.encoder.width), None
    if problem.narrows(features.width):
        narrow = narrowing(features, numbers[0])
        features = narrow.of(features)
    features = kept_in_memory(features, np.concatenate(numbers))
    allowed = np.concatenate(numbers)
    targets = []
    for place in sorted({(lead - 1) % per for lead in problem.leads}):
        truth = fields(problem.reader)

        def read(pairs: np.ndarray, place: int = place, truth: Rows = truth) -> np.ndarray:
            return truth.read(pairs // ahead + pairs % ahead * per + place + 1)

        targets.append(only_at(Rows(read, truth.width), allowed, "truth"))
    groups = len(problem.archive.channels)
    return Ridge().fit(features, targets, *numbers, weights=problem.weights, groups=groups), narrow


def _errors(method: LatentRollout, validation: np.ndarray) -> np.ndarray:
    """Weighted mean squared error of each lead at validation times."""
    problem = method.carrier.problem
    predicted = method.predict(validation)
    truth = [target.read(validation) for target in problem.targets]
    return np.array([((p - t) ** 2 @ problem.weights).mean() for p, t in zip(predicted, truth, strict=True)])


def evenly(steps: np.ndarray, count: int) -> np.ndarray:
    """At most so many of the steps, evenly spaced."""
    return steps[:: max(1, -(-len(steps) // count))]


def _batches(steps: np.ndarray) -> Iterator[np.ndarray]:
    return (steps[first : first + BATCH] for first in range(0, len(steps), BATCH))
