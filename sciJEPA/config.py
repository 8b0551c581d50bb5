"""A run's configuration: presets, files and dotted overrides -> one frozen tree.

Arrives: the name of a preset in `configs/` or a YAML file, and overrides such as {"training.steps": "100"}. Leaves: a
`RunConfig`. Each part is defined beside the thing it builds; here they only come together. A preset states what differs
from the defaults and no more.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from sciJEPA.encoder import EncoderConfig
from sciJEPA.errors import UserError
from sciJEPA.jepa import ObjectiveConfig
from sciJEPA.masking import MaskingConfig
from sciJEPA.predictor import LATENT, PredictorConfig
from sciJEPA.resources import configs_folder
from sciJEPA.samples import DataConfig
from sciJEPA.tokenizers import config_class
from sciJEPA.tokenizers.base import TokenizerConfig
from sciJEPA.tokenizers.grid import GridTokenizerConfig


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long and how fast; every schedule counts optimizer steps."""

    steps: int = 1500
    """Optimizer steps of the run."""
    batch_size: int = 32
    """Windows in a batch, over all devices."""
    accumulate: int = 1
    """Batches in a step, whose gradients are averaged; statistics are those of a batch."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.05
    """Weight decay of matrices; vectors have none."""
    weight_decay_end: float | None = None
    """Weight decay at the end of the run, reached along half a cosine; constant if not given."""
    warmup: float = 0.1
    """Share of the run in which the learning rate rises linearly."""
    schedule: str = "cosine"
    """cosine: the learning rate falls as half a cosine; constant: it falls linearly over the last part of the run."""
    cooldown: float = 0.2
    """Share of the run over which a constant learning rate falls at its end."""
    half_life: float = 0.1
    """Half-life of the target encoder's moving average, as a share of the run."""
    clip: float = 1.0
    """Largest gradient norm."""
    balance: bool = True
    """In a joint run, divide each domain's loss by its value, so that domains that are hard to predict do not rule."""
    precision: str = "auto"
    """float32, bfloat16, or auto: bfloat16 where the processor computes in it."""
    devices: int = 1
    """Processes of a machine, each with a GPU where there are GPUs; they share every batch."""
    shard: bool = False
    """Share the weights out over the processes too: for models that one GPU cannot train."""
    compile: bool = False
    """Compile the step on a single GPU, elsewhere the transformer blocks; needs a C++ compiler, pays in long runs."""
    checkpoint_activations: bool = False
    """Compute the blocks' activations again in the backward pass: less memory, a third more work."""
    keep: str = "last"
    """Which weights become the model: the last ones, or the best: those with the lowest probe error of all rows."""
    stop_on_collapse: bool = False
    """End the run when latents have collapsed, and not only warn."""
    checkpoint_every: int = 100
    """Steps between checkpoints; a killed run loses no more than these."""
    log_every: int = 20
    """Steps between rows of metrics.csv."""
    threads: int | None = None
    """Threads of a process; torch's choice if not given."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "devices", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"training.{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("learning_rate", "half_life", "clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"training.{name} must be above 0, got {getattr(self, name)}.")
        if self.shard and self.devices == 1:
            raise UserError(
                "training.shard shares weights out over processes, but training.devices is 1; set it to 2 or more."
            )
        if not self.weight_decay >= 0:
            raise UserError(
                f"training.weight_decay must be at least 0, got {self.weight_decay}; a usual value is 0.05."
            )
        if self.threads is not None and self.threads < 1:
            raise UserError(
                f"training.threads must be at least 1, got {self.threads}; leave it out for torch's choice."
            )
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise UserError(f"training.precision must be auto, float32 or bfloat16, got '{self.precision}'.")
        for name, allowed in (("schedule", ("cosine", "constant")), ("keep", ("last", "best"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"training.{name} must be {' or '.join(allowed)}, got '{getattr(self, name)}'.")
        if not 0 <= self.cooldown <= 1 or (self.weight_decay_end or 0) < 0:
            raise UserError(
                f"training.cooldown must lie in [0, 1] and weight_decay_end be at least 0, got {self.cooldown} and "
                f"{self.weight_decay_end}."
            )
        if not 0 <= self.warmup < 1:
            raise UserError(f"training.warmup must lie in [0, 1), got {self.warmup}; a usual value is 0.1.")


@dataclass(frozen=True, kw_only=True)
class DomainConfig:
    """One archive of a run, and how it is cut and masked."""

    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=GridTokenizerConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    weight: float = 1.0
    """Weight of the domain's loss in a joint run."""
    batch_size: int | None = None
    """Windows of this domain in a step; training.batch_size if not given."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"the weight of a domain must be above 0, got {self.weight}; leave the domain out instead.")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"the batch_size of a domain must be at least 1, got {self.batch_size}.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run depends on, besides the archive's content."""

    seed: int = 0
    """Seed of the initial weights, the order of samples and the masks."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=GridTokenizerConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    domains: dict[str, DomainConfig] = field(default_factory=dict)
    """Several archives for one backbone, by names of your own; data, tokenizer and masking are then left alone."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed must be at least 0, got {self.seed}.")
        if self.domains and self.data.archive:
            raise UserError(
                "data.archive and domains are both given; in a joint run every archive has a name under domains."
            )
        for part in self.parts.values():
            size = part.batch_size or self.training.batch_size
            if size % self.training.devices:
                raise UserError(
                    f"a batch of {size} windows cannot be shared by {self.training.devices} devices alike; make "
                    "batch_size a multiple of training.devices."
                )
        for name in self.domains:
            if not name.isidentifier():
                raise UserError(f"'{name}' cannot name a domain; use letters, digits and _, as in 'climate'.")
            if name == LATENT or hasattr(nn.ModuleDict(), name):
                raise UserError(f"'{name}' cannot name a domain, as torch's modules use that name; choose another.")

    @property
    def parts(self) -> dict[str, DomainConfig]:
        """The domains by name; a run of one archive has one, named after the kind of its tokenizer."""
        if self.domains:
            return self.domains
        return {self.tokenizer.kind: DomainConfig(data=self.data, tokenizer=self.tokenizer, masking=self.masking)}


def load_config(name_or_file: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """A configuration from a preset or a YAML file, with overrides by dotted key.

    Parameters
    ----------
    name_or_file
        Name of a preset (see `list_configs`) or path of a YAML file.
    overrides
        Dotted key -> value; a string is read as YAML, as on the command line.

    Raises
    ------
    UserError
        For an unknown preset or key (names the nearest valid one), or a value of the wrong type.
    """
    path = Path(name_or_file)
    if not path.is_file():
        path = configs_folder() / f"{name_or_file}.yaml"
        if not path.is_file():
            names = list(list_configs())
            raise UserError(
                f"there is no configuration file or preset '{name_or_file}'; {_nearest(str(name_or_file), names)}"
                f"the presets are {', '.join(names)}."
            )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no YAML file: it is not text in UTF-8.") from error
    tree = _parse(text, str(path))
    for key, value in (overrides or {}).items():
        _set(tree, key, _parse_value(value, key))
    return config_from_dict(tree, str(path))


def config_from_dict(tree: Mapping[str, Any], source: str = "configuration") -> RunConfig:
    """A configuration from nested mappings; keys that are left out take their defaults."""
    return _build(RunConfig, tree, "", source)


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Nested plain mappings, lists and numbers; the inverse of `config_from_dict`."""
    tree: dict[str, Any] = yaml.safe_load(config_to_yaml(config))
    return tree


def config_to_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML, defaults included."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        return [plain(part) for part in value] if isinstance(value, tuple | list) else value

    return yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False)


def list_configs() -> dict[str, str]:
    """The presets in `configs/` and the first comment line of each."""
    files = sorted(configs_folder().glob("*.yaml"))
    return {file.stem: file.read_text().splitlines()[0].removeprefix("#").strip() for file in files}


def config_text(name: str) -> str:
    """The preset as it is written."""
    names = list(list_configs())
    if name not in names:
        raise UserError(f"there is no preset '{name}'; {_nearest(name, names)}the presets are {', '.join(names)}.")
    return (configs_folder() / f"{name}.yaml").read_text()


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise UserError(f"{source} is not valid YAML{line}: {getattr(error, 'problem', None) or error}.") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{source} holds a {type(tree).__name__}; a configuration is a mapping such as 'seed: 0'.")
    return tree


def _parse_value(value: Any, key: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"the value '{value}' of {key} is not valid YAML; quote it.") from error


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if tree.get(parent) is None:  # also a section whose keys are all commented out
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise UserError(f"'{key}' is no key: '{parent}' holds a value, not a section.")
    tree[last] = value


def _build(cls: type, tree: Any, prefix: str, source: str) -> Any:
    if not isinstance(tree, Mapping):
        raise UserError(f"{source}: '{prefix[:-1]}' is a section with keys of its own, got {tree!r}.")
    hints = _settable(cls)
    values = {}
    for key, value in tree.items():
        if key not in hints:
            everywhere = _all_keys(RunConfig) + [f"{prefix}{hint}" for hint in hints]
            raise UserError(
                f"{source}: there is no key '{prefix}{key}'; "
                + (_nearest(f"{prefix}{key}", everywhere).rstrip() or f"the keys here are {', '.join(hints)}.")
            )
        if key == "domains":
            values[key] = _domains(value, source)
        elif hints[key] is TokenizerConfig:
            kind = value.get("kind", "grid") if isinstance(value, Mapping) else "grid"
            values[key] = _build(config_class(kind), value or {}, f"{prefix}{key}.", source)
        elif dataclasses.is_dataclass(hints[key]):
            values[key] = _build(
                typing.cast(type, hints[key]), {} if value is None else value, f"{prefix}{key}.", source
            )
        else:
            values[key] = _convert(hints[key], value, f"{prefix}{key}", source)
    return cls(**values)


def _domains(value: Any, source: str) -> dict[str, DomainConfig]:
    if not isinstance(value, Mapping | None):
        raise UserError(f"{source}: domains is a section with a name for every archive, got {value!r}.")
    return {
        str(name): _build(DomainConfig, part or {}, f"domains.{name}.", source) for name, part in (value or {}).items()
    }


def _convert(hint: Any, value: Any, key: str, source: str) -> Any:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    wanted = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    if isinstance(value, bool) and bool not in (hint, *typing.get_args(hint)):
        raise UserError(f"{source}: {key} must be {wanted}, got {value!r}.")  # else it would be taken for 0 or 1
    try:
        if isinstance(value, str) and tuple[str, ...] in (hint, *typing.get_args(hint)):
            value = [part.strip() for part in value.split(",")]  # one name needs no brackets on a command line
        # YAML reads 1e-3 as text; numbers in text are meant as numbers wherever a number is asked for.
        return TypeAdapter(hint, config=ConfigDict(coerce_numbers_to_str=False)).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{source}: {key} must be {wanted}, got {value!r}.") from error


def _settable(cls: type) -> dict[str, Any]:
    """Fields of a configuration and their types."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _all_keys(cls: type, prefix: str = "") -> list[str]:
    keys = []
    for key, hint in _settable(cls).items():
        if hint is TokenizerConfig:
            hint = GridTokenizerConfig
        section = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        keys += _all_keys(hint, f"{prefix}{key}.") if section else [f"{prefix}{key}"]
    return keys


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.7) or difflib.get_close_matches(
        name.rpartition(".")[2], [n.rpartition(".")[2] for n in names], n=1, cutoff=0.6
    )
    full = next((n for n in names if close and f".{n}".endswith(f".{close[0]}")), None)
    return f"did you mean '{full}'? " if full else ""
