"""Models as folders: safetensors, JSON and a card; loading runs nobody's code.

A model folder holds `model.safetensors` (weights), `statistics.safetensors` (climatology and spread of every domain),
`config.json` (how to build it, for which places and channels, where it comes from, and the SHA-256 of the two and of
itself) and `README.md` (the card). `repository.py` carries such folders to the Hugging Face hub and back.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import xarray as xr
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from sciJEPA.archive import Archive, open_archive
from sciJEPA.config import DomainConfig, RunConfig, config_from_dict, config_to_dict
from sciJEPA.errors import UserError
from sciJEPA.folders import complete_folder
from sciJEPA.jepa import JEPA
from sciJEPA.model_files import CARD, CONFIG, STATISTICS, WEIGHTS, add_digests, check_digests
from sciJEPA.normalize import Normalizer
from sciJEPA.tokenizers.base import Tokenizer

ARRAYS = ("coefficients", "spread", "missing_share", "unit", "tendency")
PLAIN = ("annual", "daily", "trained_on", "modes", "seasonal", "series")
"""Fields of a Normalizer that are saved as arrays, and those that go into the description."""


@dataclass(frozen=True, eq=False)
class Domain:
    """One kind of archive that a model knows: how it is cut, masked and normalised, and of which places and channels.

    `spec` and `tokenizer` are those of the archive at hand; `trained` is the specification of the training archive.
    """

    name: str
    config: DomainConfig
    spec: Any
    normalizer: Normalizer
    units: tuple[str, ...]
    tokenizer: Tokenizer
    trained: Any

    @classmethod
    def of(cls, name: str, config: DomainConfig, spec: Any, normalizer: Normalizer, units: Sequence[str]) -> "Domain":
        """The domain as it was trained."""
        return cls(name, config, spec, normalizer, tuple(units), config.tokenizer.build(spec), spec)

    def open(self, archive: str | os.PathLike | xr.Dataset | Archive) -> Archive:
        """The archive with those variables of the domain that it has."""
        variables = list(dict.fromkeys(name.split("@")[0] for name in self.trained.channels))
        opened = open_archive(archive, **self.config.data.how)
        present = [name for name in variables if name in opened.ds.data_vars]
        return open_archive(archive, variables=present or variables, **self.config.data.how)

    def meet(self, archive: Archive) -> "Domain":
        """The domain for this archive; refused where it differs from the training archive in what must agree.

        A part of the channels may be absent. What else may differ is the tokenizer's to say (`may_differ`).
        """
        data = self.config.data
        spec = self.config.tokenizer.describe(archive, data.window, data.context)
        if hasattr(spec, "scaled_as"):  # known parameters, on the scale of training
            spec = spec.scaled_as(self.trained)
        numbers = [self.trained.channels.index(name) for name in spec.channels if name in self.trained.channels]
        if len(numbers) != len(spec.channels):
            _refuse("channels", ", ".join(spec.channels), ", ".join(self.trained.channels), archive)
        units = tuple(self.units[number] for number in numbers)
        found = tuple(channel.units for channel in archive.channels)
        if found != units:
            _refuse("units", ", ".join(found), ", ".join(units), archive)
        free = ("channels", *getattr(self.config.tokenizer, "may_differ", ()))
        for part in dataclasses.fields(spec):
            own, given = getattr(self.trained, part.name), getattr(spec, part.name)
            if part.name not in free and not _agree(own, given, 0.05 if part.name == "cadence" else 0.0):
                unit = " hours" if part.name == "cadence" else ""
                _refuse(part.name, f"{_in_words(given)}{unit}", f"{_in_words(own)}{unit}", archive)
        tokenizer = self.config.tokenizer.build(spec)
        normalizer = self.normalizer.select(numbers).onto(archive.shape)
        return dataclasses.replace(self, spec=spec, normalizer=normalizer, units=units, tokenizer=tokenizer)


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A JEPA with all that it needs to meet archives: for each domain tokenizer and statistics, and provenance."""

    jepa: JEPA
    domains: Mapping[str, Domain]
    config: RunConfig
    provenance: dict[str, Any]
    folder: Path | None = None
    """Where it was loaded from; other processes load it from there, if the weights are still the same."""

    @property
    def id(self) -> str:
        """First twelve digits of the SHA-256 of the weights: what latents and forecasts are labelled with."""
        return _weights_digest(self.jepa)[:12]

    @property
    def only(self) -> Domain:
        """The domain of a model that has one."""
        if len(self.domains) > 1:
            raise UserError(f"the model has {len(self.domains)} domains; name one of {', '.join(self.domains)}.")
        return next(iter(self.domains.values()))

    @property
    def normalizer(self) -> Normalizer:
        """Statistics of a model of one domain."""
        return self.only.normalizer

    @property
    def spec(self) -> Any:
        """What the tokenizer of a model of one domain knows of its archive."""
        return self.only.spec

    def open(
        self, archive: str | os.PathLike | xr.Dataset | Archive, domain: str | None = None
    ) -> tuple[Archive, Domain]:
        """The archive with the variables of this model, and the domain that it belongs to, checked.

        Parameters
        ----------
        domain
            Name of the domain; in a joint model found from the archive if not given.
        """
        if domain is not None and domain not in self.domains:
            raise UserError(f"the model has no domain '{domain}'; its domains are {', '.join(self.domains)}.")
        if domain is None and len(self.domains) > 1:
            return self._find(archive)
        chosen = self.only if domain is None else self.domains[domain]
        opened = chosen.open(archive)
        return opened, chosen.meet(opened)

    def _find(self, archive: str | os.PathLike | xr.Dataset | Archive) -> tuple[Archive, Domain]:
        """The one domain that the archive fits."""
        fitting, reasons = [], []
        for domain in self.domains.values():
            try:
                opened = domain.open(archive)
                fitting.append((opened, domain.meet(opened)))
            except UserError as error:
                reasons.append(f"{domain.name}: {error}")
        if not fitting:
            raise UserError("the archive fits no domain of the model. " + " ".join(reasons))
        if len(fitting) > 1:
            names = ", ".join(domain.name for _, domain in fitting)
            raise UserError(
                f"the archive fits several domains of the model; say which with domain= (--domain): {names}."
            )
        return fitting[0]

    def embed(self, archive: str | os.PathLike | xr.Dataset | Archive, **options: Any) -> xr.Dataset:
        """Labelled latents; see `sciJEPA.embed`."""
        from sciJEPA.latents import embed

        return embed(self, archive, **options)

    def energy(self, archive: str | os.PathLike | xr.Dataset | Archive, **options: Any) -> xr.Dataset:
        """How surprising each sample is, per token; see `sciJEPA.latents.energy`."""
        from sciJEPA.latents import energy

        return energy(self, archive, **options)

    def __repr__(self) -> str:
        parts = []
        for name, domain in self.domains.items():
            grid = domain.tokenizer.grid
            tokens = f"{grid.context_times * grid.per_time} tokens"
            parts.append(f"{name} ({len(domain.spec.channels)} channels, {tokens})")
        parameters = sum(p.numel() for p in self.jepa.encoder.parameters())
        width = self.jepa.encoder.latent_width
        return f"<Model {self.id}: {', '.join(parts)}, latents of width {width}, {parameters:,} encoder parameters>"

    def save(self, folder: str | os.PathLike) -> Path:
        """Write the model folder, complete or not at all; nothing is written over.

        Raises
        ------
        UserError
            If the folder exists.
        """
        with complete_folder(folder) as partial:
            save_file({k: v.contiguous() for k, v in self.jepa.state_dict().items()}, partial / WEIGHTS)
            save_arrays(
                {
                    f"{name}/{key}": np.ascontiguousarray(getattr(domain.normalizer, key))
                    for name, domain in self.domains.items()
                    for key in ARRAYS
                },
                partial / STATISTICS,
            )
            description = {
                "format": 2,
                "id": self.id,
                "config": config_to_dict(self.config),
                "domains": {name: _describe(domain) for name, domain in self.domains.items()},
                "provenance": self.provenance,
            }
            description = add_digests(partial, description)
            (partial / CONFIG).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
            (partial / CARD).write_text(_card(self), encoding="utf-8")
        return Path(folder)

    def push(self, address: str, *, private: bool = True) -> str:
        """Write the model as a commit of a repository of the Hugging Face hub (extra `hub`).

        The archive's path and the options of its storage stay here; its name, climatology and spread go along.

        Parameters
        ----------
        address
            `hf://org/name`; the repository is made if it is not there.
        private
            Whether a repository that is made here is for its owners only; one that is there stays as it is.

        Returns
        -------
        str
            `hf://org/name@commit`: what to hand on, since `sciJEPA.load` gives the same model for it for ever.

        Raises
        ------
        UserError
            If the hub refuses, or the repository holds other files than those of a model.
        """
        from sciJEPA.repository import push

        return push(self, address, private=private)


def load(path: str | os.PathLike) -> Model:
    """A model from a run folder, a model folder or the Hugging Face hub.

    Parameters
    ----------
    path
        A folder; or, with the extra `hub`, an address such as `hf://org/name@revision`. Name a commit as the revision,
        and it is the same model for ever, loaded without a network once it has been fetched.

    Raises
    ------
    UserError
        If a file is missing, truncated or was changed after saving.
    """
    folder = Path(path)
    if str(path).startswith("hf://"):
        from sciJEPA.repository import fetch

        folder = fetch(str(path))
    if not folder.is_dir():
        raise UserError(f"there is no run or model folder at {folder}; train one with 'scijepa pretrain'.")
    if not (folder / CONFIG).is_file():
        if not (folder / "model" / CONFIG).is_file():
            unfinished = (folder / "checkpoints").is_dir()
            advice = "the run is unfinished: complete it with --resume." if unfinished else "name the folder of a run."
            raise UserError(f"{folder} holds no model ({CONFIG} is missing); {advice}")
        folder = folder / "model"
    try:
        description = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        check_digests(folder, description)
        config = config_from_dict(description["config"], str(folder / CONFIG))
        weights, arrays = load_file(folder / WEIGHTS), load_arrays(folder / STATISTICS)
        domains = {
            name: _restore(name, part, config.parts[name], arrays) for name, part in description["domains"].items()
        }
        jepa = build_jepa(config, {name: domain.tokenizer for name, domain in domains.items()})
        jepa.load_state_dict(weights)
        return Model(jepa.eval(), domains, config, description["provenance"], folder.absolute())
    except UserError:
        raise
    except (OSError, SafetensorError, LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        at = f" at {folder / CONFIG}" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else ""
        reason = (str(error) or "no reason given").splitlines()[0][:200]
        raise UserError(
            f"the model in {folder} is incomplete or damaged ({type(error).__name__}{at}: {reason}); save it again."
        ) from error


def saved_id(folder: Path) -> str | None:
    """Id of the model that lies in a model folder, None if there is none; its weights are not read."""
    try:
        return str(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, LookupError):
        return None


def _describe(domain: Domain) -> dict[str, Any]:
    """A domain as plain values."""
    statistics = {key: getattr(domain.normalizer, key) for key in PLAIN}
    return {"spec": dataclasses.asdict(domain.spec), "units": list(domain.units), "statistics": statistics}


def _restore(name: str, part: Mapping[str, Any], config: DomainConfig, arrays: Mapping[str, np.ndarray]) -> Domain:
    statistics: dict[str, Any] = {key: arrays[f"{name}/{key}"] for key in ARRAYS}
    statistics |= {key: tuple(value) if isinstance(value, list) else value for key, value in part["statistics"].items()}
    normalizer = Normalizer(**statistics)
    return Domain.of(name, config, config.tokenizer.restore(part["spec"]), normalizer, part["units"])


def tokenizers_of(archives: Mapping[str, Archive], config: RunConfig) -> dict[str, Tokenizer]:
    """The tokenizer of each domain's training archive."""
    built = {}
    for name, part in config.parts.items():
        spec = part.tokenizer.describe(archives[name], part.data.window, part.data.context)
        built[name] = part.tokenizer.build(spec)
    return built


def build_jepa(config: RunConfig, tokenizers: Mapping[str, Tokenizer]) -> JEPA:
    """The untrained model: weights follow from the configuration's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        forcings = {name: part.data.forcings for name, part in config.parts.items()}
        return JEPA(tokenizers, config.encoder, config.predictor, config.objective, forcings)


def random_model(model: Model) -> Model:
    """The same architecture with the weights it had before training: the control of that name."""
    jepa = build_jepa(model.config, model.jepa.tokenizers)
    return dataclasses.replace(model, jepa=jepa.eval(), folder=None)


def _refuse(what: str, found: str, needed: str, archive: Archive) -> NoReturn:
    verb = "are" if what.endswith("s") else "is"  # channels, units; latitude, cadence
    raise UserError(
        f"the model does not fit {archive.source}: its {what} {verb} {found or 'none'}, the model was trained on "
        f"{needed or 'none'}; select, convert or regrid the archive to match."
    )


def _agree(own: Any, given: Any, tolerance: float) -> bool:
    """Equal values; numbers up to rounding, or to a relative tolerance."""
    try:
        first, second = np.asarray(own), np.asarray(given)
    except ValueError:  # rows of unequal length
        return bool(own == given)
    if first.dtype.kind not in "fiu" or second.dtype.kind not in "fiu":
        return bool(own == given)
    return first.shape == second.shape and np.allclose(first, second, rtol=tolerance, atol=0 if tolerance else 1e-3)


def _in_words(value: Any) -> str:
    """A value for a message: number and ends of many, all of a few."""
    values = np.asarray(value)
    if values.dtype.kind in "fiu" and values.size > 1:
        return f"{len(values)} from {values.ravel()[0]:g} to {values.ravel()[-1]:g}"
    if values.ndim and values.size > 4:
        return f"{len(values)} of them"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _weights_digest(jepa: JEPA) -> str:
    digest = hashlib.sha256()
    for name, value in _sorted_state(jepa):
        digest.update(name.encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _sorted_state(jepa: JEPA) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in sorted(jepa.state_dict().items()):
        yield name, value.detach().cpu().contiguous().numpy()


def _card(model: Model) -> str:
    config, provenance = model.config, model.provenance
    parts = []
    for name, domain in model.domains.items():
        forcings = f" (forcings: {', '.join(domain.config.data.forcings)})" if domain.config.data.forcings else ""
        parts.append(
            f"- {name}: {', '.join(domain.spec.channels)}{forcings}, every {domain.spec.cadence:g} hours; statistics "
            f"and weights from {' to '.join(domain.normalizer.trained_on)} only"
        )
    return f"""# {provenance.get("name", "sciJEPA model")} ({model.id})

A joint-embedding predictive architecture, pretrained without labels by sciJEPA {provenance.get("sciJEPA")}.

- archive: {provenance.get("archive")}
{chr(10).join(parts)}
- objective: {config.objective.target}, {config.training.steps} steps of {config.training.batch_size} windows

    import sciJEPA
    model = sciJEPA.load("this folder")
    latents = sciJEPA.embed(model, "your archive")

Its latents say what a probe finds in them on data like the above, and no more: see the scores beside it.
"""
