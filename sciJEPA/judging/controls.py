"""Names -> methods: the controls that a reviewer would ask for, and the encoders that are judged beside them.

Arrives: a problem and a name. Leaves: a fitted `Forecaster`. Every method gets the same times, and latents of whatever
origin the same probe. We decided against counting the supervised network among the controls: it is made for this one
task, so it is a ceiling that a frozen encoder need not reach.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from sciJEPA.config import RunConfig, config_to_yaml, load_config
from sciJEPA.errors import UserError
from sciJEPA.forecasting.labelling import latent_rows, latest_tokens
from sciJEPA.forecasting.rollout import Carrier, LatentRollout, foresees
from sciJEPA.hub import Model, random_model
from sciJEPA.judging.baselines import (
    Climatology,
    DampedPersistence,
    EOFRidge,
    Forecaster,
    Persistence,
    SeasonalNaive,
    cycle_steps,
    patch_components,
    windows,
)
from sciJEPA.judging.leakage import refuse_hindsight
from sciJEPA.judging.local_ridge import LocalRidge, Places
from sciJEPA.judging.panel_cache import Cache
from sciJEPA.judging.problem import Problem, remembered
from sciJEPA.judging.supervised import Supervised
from sciJEPA.probes import Rows, side_by_side
from sciJEPA.probing.index import KINDS

ALWAYS = ("persistence", "climatology")
QUICK = (
    "persistence",
    "climatology",
    "damped_persistence",
    "seasonal_naive",
    "eof_ridge",
    "pca",
    "raw_ridge",
    "random_init",
)
"""Controls that train no network."""
CONTROLS = (*QUICK, "mae", "mae_predicted")
CEILINGS = ("supervised",)
"""Shown, but never the best control."""
JUDGED = ("jepa_online", "jepa_target", "jepa_predicted", "latent_rollout")
LATENT = ("random_init", "mae", "jepa_online", "jepa_target")
"""Methods that every kind of probe is fitted on; the others have one of their own, or none."""
LINEAR = ("raw_ridge", "mae_predicted", "jepa_predicted")
"""Methods that only ridges are fitted on, local ones too."""
PROBES = (*KINDS, "local")


def chosen_controls(controls: Sequence[str] | str, problem: Problem) -> tuple[str, ...]:
    """Names of the controls and ceilings that were asked for, persistence and climatology always among them.

    A seasonal naive forecast comes with "all" and "quick" for series at stations whose calendar has a cycle, what a
    masked autoencoder's predictor foresees with "all" where it was trained to.
    """
    named = [controls] if isinstance(controls, str) else list(controls)
    sets = {"all": (*CONTROLS, *CEILINGS), "quick": QUICK}
    unknown = [name for name in named if name not in (*CONTROLS, *CEILINGS, *sets)]
    if unknown:
        known = ", ".join((*CONTROLS, *CEILINGS, *sets))
        raise UserError(f"there is no control '{unknown[0]}'; choose from {known}.")
    cyclic = problem.archive.space.kind == "stations" and cycle_steps(problem.archive) is not None
    without = (set() if cyclic else {"seasonal_naive"}) | (set() if foresees(problem.inputs[0]) else {"mae_predicted"})
    wanted = set(ALWAYS)
    for name in named:
        wanted |= set(sets[name]) - without if name in sets else {name}
    return tuple(name for name in (*CONTROLS, *CEILINGS) if name in wanted)


def chosen_probes(probes: Sequence[str] | str | None, problem: Problem) -> tuple[str, ...]:
    """Kinds of probes that were asked for; without a wish a ridge, and a local one where places have neighbours."""
    if probes is None:
        return ("ridge",) if problem.archive.space.kind == "stations" else ("ridge", "local")
    named = [probes] if isinstance(probes, str) else list(dict.fromkeys(probes))
    for kind in named:
        if kind not in PROBES:
            raise UserError(f"there is no probe '{kind}'; choose from {', '.join(PROBES)}.")
    if "local" in named:
        Places.of(problem.archive, problem.inputs[0].tokenizer.grid.space)
    return tuple(named)


def judged_methods(problem: Problem, model: Model) -> tuple[str, ...]:
    """The methods that are judged: latents of both encoders, and those of a predictor that foresees."""
    domain = problem.inputs[0]
    possible = {"jepa_predicted": foresees(domain), "latent_rollout": LatentRollout.possible(model, domain)}
    return tuple(name for name in JUDGED if possible.get(name, True))


@dataclass(frozen=True)
class Methods:
    """Makes methods by name.

    Attributes
    ----------
    trained : folder of the networks that are trained here; each goes on where it was killed.
    run_config : the configuration of the run with the places of its archives, where it is known.
    """

    problem: Problem
    model: Model
    cache: Cache
    trained: Path
    run_config: RunConfig
    progress: bool

    def entries(self, names: Sequence[str], probes: Sequence[str]) -> list[tuple[str, str]]:
        """Names with kinds of probes, in the order of the table."""
        kinds: dict[str, Sequence[str]] = dict.fromkeys(("eof_ridge", "pca", "latent_rollout"), ("ridge",))
        kinds |= dict.fromkeys(LATENT, tuple(probes))
        kinds |= dict.fromkeys(LINEAR, tuple(kind for kind in probes if kind in ("ridge", "local")) or ("ridge",))
        return [(name, kind) for name in names for kind in kinds.get(name, ("none",))]

    def key(self, name: str, probe: str) -> str:
        """Digest of what the errors of a method depend on, beside the archive."""
        learned = {"mae": self._mae_config, "mae_predicted": self._mae_config, "supervised": self._supervised_key}
        origin = learned[name]() if name in learned else self.model.id
        return self.problem.digest(probe=probe, origin=origin, domain=self.problem.domain.name)

    def make(self, name: str, probe: str = "ridge") -> Forecaster:
        """The method of that name, fitted on training times and tuned on validation times."""
        problem = self.problem
        reader, leads = problem.reader, problem.leads
        makers: dict[str, Callable[[], Forecaster]] = {
            "persistence": lambda: Persistence(reader, leads),
            "climatology": lambda: Climatology(reader, leads),
            "damped_persistence": lambda: DampedPersistence.fit(reader, leads, problem.train),
            "seasonal_naive": lambda: SeasonalNaive.of(reader, leads),
            "eof_ridge": lambda: EOFRidge.fit(
                reader, leads, problem.train, problem.validation, problem.weights, unlabelled=problem.unlabelled
            ),
            "pca": self._pca,
            "raw_ridge": lambda: self._ridge([], probe),
            "random_init": lambda: self.latent_probe(random_model(self.model), "online", probe),
            "mae": lambda: self.latent_probe(self.masked_autoencoder(), "target", probe),
            "supervised": self._supervised,
            "jepa_online": lambda: self.latent_probe(self.model, "online", probe),
            "jepa_target": lambda: self.latent_probe(self.model, "target", probe),
            "mae_predicted": lambda: self.predicted_probe(self.masked_autoencoder(), "target", probe),
            "jepa_predicted": lambda: self.predicted_probe(self.model, self.model.jepa.objective.encoder, probe),
            "latent_rollout": lambda: LatentRollout.fit(problem, self.model),
        }
        return makers[name]()

    def latent_probe(self, model: Model, encoder: str, kind: str) -> Forecaster:
        """A probe on latents of the issue time."""
        latents = self._latents(model, encoder)
        rows = latent_rows([latents], self.problem.archive)
        if kind in ("ridge", "local"):
            return self._ridge([rows], kind)
        tokens = latest_tokens(latents).sizes["token"]
        return self.problem.fit(KINDS[kind](tokens, self.problem.seed), rows)

    def predicted_probe(self, model: Model, encoder: str, kind: str = "ridge") -> Forecaster:
        """A ridge on latents of the issue time beside what the predictor foresees from there."""
        problem = self.problem
        if not foresees(problem.inputs[0]):
            raise UserError(
                "jepa_predicted and mae_predicted need a predictor that was trained on times to come: data.window "
                "above data.context, and masking.forecast above 0 without horizons."
            )
        latents = latent_rows([self._latents(model, encoder)], problem.archive)
        ahead = Carrier.bare(problem, model).foreseen_rows
        if kind == "ridge" and not problem.narrows(latents.width + ahead.width):
            ahead = remembered(ahead, np.concatenate([problem.train, problem.validation, problem.test]))
        return self._ridge([latents, ahead], kind)

    def _ridge(self, parts: Sequence[Rows], kind: str) -> Forecaster:
        """A ridge on features of several kinds, on the raw window where there are none.

        One that all places share reads the raw window beside them: what it adds to its own control is theirs.
        """
        problem = self.problem
        if kind == "local":
            return LocalRidge.beside_window(problem, parts, problem.inputs[0].tokenizer.grid.space)
        parts = parts or [windows(problem.input_reader, problem.context)]
        rows = side_by_side(parts, problem.train) if len(parts) > 1 else parts[0]
        return problem.fit(KINDS["ridge"](1, problem.seed), rows)

    def _latents(self, model: Model, encoder: str) -> xr.Dataset:
        """Latents of the issue windows."""
        archive = self.problem.inputs[1]
        # Of another model than the one at hand, the domain has its own weights but the same places and channels.
        domain = model.domains[self.problem.domain.name].meet(archive)
        latents = self.cache.latents(model, domain, archive, encoder, progress=self.progress)
        refuse_hindsight(latents)
        return latents

    def masked_autoencoder(self) -> Model:
        """The same architecture, data, steps and masks, but trained to predict patches; trained once for a run."""
        return train_masked_autoencoder(self.run_config, self.trained, progress=self.progress)

    def _pca(self) -> Forecaster:
        problem, width = self.problem, self.model.jepa.encoder.latent_width
        reader, tokenizer = problem.input_reader, problem.inputs[0].tokenizer
        rows = patch_components(reader, tokenizer, problem.context, problem.unlabelled, width)
        return problem.fit(KINDS["ridge"](1, problem.seed), rows)

    def _supervised(self) -> Forecaster:
        out = self.trained / f"supervised-{_digest(self._supervised_key())}"
        return Supervised.fit(self.problem, self.run_config, self.model, out, progress=self.progress)

    def _mae_config(self) -> str:
        return _digest(config_to_yaml(masked_autoencoder_of(self.run_config)))

    def _supervised_key(self) -> str:
        config = config_to_yaml(self.run_config)
        return _digest(config + self.cache.archive_id + self.problem.domain.name + self.problem.digest())


def train_masked_autoencoder(config: RunConfig, folder: Path, *, progress: bool) -> Model:
    """The masked autoencoder of a run with this configuration, trained once and kept in the folder."""
    from sciJEPA.pretrain import pretrain

    masked = masked_autoencoder_of(config)
    out = folder / f"mae-{_digest(config_to_yaml(masked))}"
    return pretrain(masked, out, resume=out.exists(), progress=progress)


def masked_autoencoder_of(config: RunConfig) -> RunConfig:
    """The same run with patches as targets; refused where its archives are not there."""
    for part in config.parts.values():
        if "://" not in part.data.archive and not Path(part.data.archive).exists():
            raise UserError(
                f"the masked autoencoder is trained on the archive of the run, but {part.data.archive or 'it'} is not "
                "there; move it back, or leave mae out with controls='quick' (--controls quick)."
            )
    # What keeps latents from collapsing has no work where patches are predicted.
    objective = dataclasses.replace(
        config.objective, target="mae", variance=0.0, covariance=0.0, sigreg=0.0, reconstruction=0.0
    )
    return dataclasses.replace(config, objective=objective)


def run_configuration(run: Path | None, model: Model) -> RunConfig:
    """The configuration of a run, with the places of its archives where there is a run folder."""
    stored = run / "config.yaml" if run is not None else None
    return load_config(stored) if stored is not None and stored.is_file() else model.config


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
