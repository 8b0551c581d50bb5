"""Models as folders: safetensors, JSON and a card; loading runs nobody's code.

A model folder holds `model.safetensors` (weights), `statistics.safetensors` (climatology and spread), `config.json`
(how to build it, for which grid and channels, where it comes from, and the SHA-256 of the two) and `README.md` (the
card).
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from sciJEPA.archive import Archive, open_archive
from sciJEPA.config import RunConfig, config_from_dict, config_to_dict
from sciJEPA.errors import UserError
from sciJEPA.folders import complete_folder
from sciJEPA.jepa import JEPA
from sciJEPA.normalize import Normalizer
from sciJEPA.tokenizers.grid import GridSpec, GridTokenizer

WEIGHTS, STATISTICS, CONFIG, CARD = "model.safetensors", "statistics.safetensors", "config.json", "README.md"


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A JEPA with all that it needs to meet an archive: tokenizer, statistics, configuration and provenance."""

    jepa: JEPA
    normalizer: Normalizer
    config: RunConfig
    spec: GridSpec
    units: tuple[str, ...]
    provenance: dict[str, Any]

    @property
    def id(self) -> str:
        """First twelve digits of the SHA-256 of the weights: what latents and forecasts are labelled with."""
        return _weights_digest(self.jepa)[:12]

    def check(self, archive: Archive) -> None:
        """Refuse an archive that differs from the training archive in channels, units, grid or cadence."""
        found = tuple(channel.name for channel in archive.channels)
        _same("channels", ", ".join(found), ", ".join(self.spec.channels), archive)
        _same("units", ", ".join(c.units for c in archive.channels), ", ".join(self.units), archive)
        for axis in ("latitude", "longitude"):
            own, given = np.asarray(getattr(self.spec, axis)), getattr(archive, axis)
            if own.shape != given.shape or not np.allclose(own, given, atol=1e-3):
                _same(axis, _span(given), _span(own), archive, force=True)
        if not np.isclose(archive.cadence, self.spec.cadence, rtol=0.05):
            _same("cadence", f"{archive.cadence:g} hours", f"{self.spec.cadence:g} hours", archive, force=True)

    def open(self, archive: str | os.PathLike | xr.Dataset | Archive) -> Archive:
        """The archive with the variables of this model, checked."""
        variables = list(dict.fromkeys(name.split("@")[0] for name in self.spec.channels))
        opened = open_archive(archive, variables=variables)
        self.check(opened)
        return opened

    def embed(self, archive: str | os.PathLike | xr.Dataset | Archive, **options: Any) -> xr.Dataset:
        """Labelled latents; see `sciJEPA.embed`."""
        from sciJEPA.latents import embed

        return embed(self, archive, **options)

    def energy(self, archive: str | os.PathLike | xr.Dataset | Archive, **options: Any) -> xr.Dataset:
        """How surprising each sample is, per token; see `sciJEPA.latents.energy`."""
        from sciJEPA.latents import energy

        return energy(self, archive, **options)

    def __repr__(self) -> str:
        grid = self.jepa.tokenizer.grid
        width = self.jepa.encoder.latent_width
        parameters = sum(p.numel() for p in self.jepa.encoder.parameters())
        return (
            f"<Model {self.id}: {len(self.spec.channels)} channels on {len(self.spec.latitude)} x "
            f"{len(self.spec.longitude)}, {grid.context_times * grid.per_time} tokens of width {width}, "
            f"{parameters:,} encoder parameters>"
        )

    def save(self, folder: str | os.PathLike) -> Path:
        """Write the model folder, complete or not at all; nothing is written over.

        Raises
        ------
        UserError
            If the folder exists.
        """
        with complete_folder(folder) as partial:
            save_file({k: v.contiguous() for k, v in self.jepa.state_dict().items()}, partial / WEIGHTS)
            arrays = ("coefficients", "spread", "missing_share")
            save_arrays(
                {name: np.ascontiguousarray(getattr(self.normalizer, name)) for name in arrays}, partial / STATISTICS
            )
            description = {
                "format": 1,
                "id": self.id,
                "config": config_to_dict(self.config),
                "spec": dataclasses.asdict(self.spec),
                "units": list(self.units),
                "statistics": {
                    "annual": self.normalizer.annual,
                    "daily": self.normalizer.daily,
                    "trained_on": list(self.normalizer.trained_on),
                },
                "provenance": self.provenance,
                "sha256": {name: _file_digest(partial / name) for name in (WEIGHTS, STATISTICS)},
            }
            (partial / CONFIG).write_text(json.dumps(description, indent=1) + "\n")
            (partial / CARD).write_text(_card(self))
        return Path(folder)


def load(path: str | os.PathLike) -> Model:
    """A model from a run folder or a model folder.

    Raises
    ------
    UserError
        If a file is missing, truncated or was changed after saving.
    """
    folder = Path(path)
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
        for name, digest in description["sha256"].items():
            if _file_digest(folder / name) != digest:
                raise UserError(
                    f"{folder / name} is damaged or was changed after saving: its SHA-256 differs from {CONFIG}."
                )
        config = config_from_dict(description["config"], str(folder / CONFIG))
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in description["spec"].items()}
        spec = GridSpec(**fields)
        weights, arrays = load_file(folder / WEIGHTS), load_arrays(folder / STATISTICS)
        statistics = description["statistics"]
        normalizer = Normalizer(
            **arrays,
            annual=statistics["annual"],
            daily=statistics["daily"],
            trained_on=tuple(statistics["trained_on"]),
        )
        jepa = build_jepa(config, spec)
        jepa.load_state_dict(weights)
        return Model(jepa.eval(), normalizer, config, spec, tuple(description["units"]), description["provenance"])
    except UserError:
        raise
    except (OSError, SafetensorError, LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        at = f" at {folder / CONFIG}" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else ""
        reason = (str(error) or "no reason given").splitlines()[0][:200]
        raise UserError(
            f"the model in {folder} is incomplete or damaged ({type(error).__name__}{at}: {reason}); save it again."
        ) from error


def grid_spec(archive: Archive, config: RunConfig) -> GridSpec:
    """What the tokenizer must know of the archive."""
    return GridSpec(
        channels=tuple(channel.name for channel in archive.channels),
        latitude=tuple(archive.latitude.tolist()),
        longitude=tuple(archive.longitude.tolist()),
        cadence=archive.cadence,
        periodic=archive.periodic,
        window=config.data.window,
        context=config.data.context,
    )


def build_jepa(config: RunConfig, spec: GridSpec) -> JEPA:
    """The untrained model: weights follow from the configuration's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        tokenizer = GridTokenizer(config.tokenizer, spec)
        return JEPA(tokenizer, config.encoder, config.predictor, config.objective)


def random_model(model: Model) -> Model:
    """The same architecture with the weights it had before training: the control of that name."""
    return dataclasses.replace(model, jepa=build_jepa(model.config, model.spec).eval())


def _same(what: str, found: str, needed: str, archive: Archive, *, force: bool = False) -> None:
    if force or found != needed:
        raise UserError(
            f"the model does not fit {archive.source}: its {what} are {found or 'none'}, the model was trained on "
            f"{needed or 'none'}; select, convert or regrid the archive to match."
        )


def _span(values: np.ndarray) -> str:
    return f"{len(values)} from {values[0]:g} to {values[-1]:g}"


def _weights_digest(jepa: JEPA) -> str:
    digest = hashlib.sha256()
    for name, value in _sorted_state(jepa):
        digest.update(name.encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _sorted_state(jepa: JEPA) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in sorted(jepa.state_dict().items()):
        yield name, value.detach().cpu().contiguous().numpy()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _card(model: Model) -> str:
    config, provenance = model.config, model.provenance
    return f"""# {provenance.get("name", "sciJEPA model")} ({model.id})

A joint-embedding predictive architecture, pretrained without labels by sciJEPA {provenance.get("sciJEPA")}.

- archive: {provenance.get("archive")}
- channels: {", ".join(model.spec.channels)}, every {model.spec.cadence:g} hours
- grid: latitude {_span(np.asarray(model.spec.latitude))}, longitude {_span(np.asarray(model.spec.longitude))}
- statistics and weights from {" to ".join(model.normalizer.trained_on)} only
- objective: {config.objective.target}, {config.training.steps} steps of {config.training.batch_size} windows

    import sciJEPA
    model = sciJEPA.load("this folder")
    latents = sciJEPA.embed(model, "your archive")

Its latents say what a probe finds in them on data like the above, and no more: see the scores beside it.
"""
