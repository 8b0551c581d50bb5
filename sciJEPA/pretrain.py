"""Archive and configuration -> trained model; the only module that knows Lightning.

Arrives: a `RunConfig`. Leaves: a run folder with the resolved configuration, versions, metrics, checkpoints and the
model. Batches, masks and schedules are functions of the step, so a run that was killed and resumed ends at the same
weights, bit for bit on a CPU. We decided against Lightning's epochs (a run is one stream of batches), its checkpoint
names (one file, replaced atomically) and its loggers (one tidy CSV that a resumed run continues).
"""

import contextlib
import csv
import dataclasses
import io
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from tqdm import tqdm

from sciJEPA.archive import Archive
from sciJEPA.config import RunConfig, config_to_yaml
from sciJEPA.errors import UserError
from sciJEPA.hub import Domain, Model, build_jepa, load, tokenizers_of
from sciJEPA.jepa import JEPA, StepOutput
from sciJEPA.loader import BatchStream, WindowReader
from sciJEPA.losses import LossTerms
from sciJEPA.masking import Masker, MaskPlan
from sciJEPA.monitor import diagnose, warn_of_collapse
from sciJEPA.normalize import fit_normalizer
from sciJEPA.plan import open_configured, precision, versions
from sciJEPA.samples import DataConfig, Splits, split_steps, window_starts
from sciJEPA.saved_statistics import read_statistics
from sciJEPA.target import momentum
from sciJEPA.tokenizers.base import Batch

VALIDATION_BATCHES = 4
Item = tuple[Batch, MaskPlan]
"""A batch of one domain and its masks."""


def pretrain(config: RunConfig, out: str | os.PathLike, *, resume: bool = False, progress: bool = True) -> Model:
    """Pretrain on `config.data.archive` and write the run folder `out`.

    Parameters
    ----------
    config
        The run; on resume it must equal the one that the folder was started with.
    out
        A folder that does not exist yet; with `resume` one that a killed run has left.
    resume
        Continue from the last checkpoint (from the start if there is none).
    progress
        Show a progress bar on stderr where somebody is watching.

    Raises
    ------
    UserError
        If the folder exists (or, on resume, is of another configuration), or the archive or configuration is at fault.
    """
    out = Path(out)
    resolved = config_to_yaml(_resolved(config))
    _check_folder(out, resolved, resume)
    if (out / "model").is_dir():
        return load(out)
    archives = open_configured(config)
    jepa = build_jepa(config, tokenizers_of(archives, config))
    parts = {name: _Part.of(name, config, archives[name], jepa) for name in config.parts}
    data = _Batches(config, parts)
    domains = {name: part.domain for name, part in parts.items()}
    model = Model(jepa, domains, config, _provenance(out, archives))
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    _write_whole(out / "config.yaml", resolved)
    _write_whole(out / "versions.json", json.dumps(versions(), indent=1) + "\n")
    last = out / "checkpoints" / "last.ckpt"
    with _settings(config):
        trainer = _trainer(config, out, data, progress)
        trainer.fit(_Run(jepa, config), datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    jepa.eval()
    if trainer.is_global_zero:
        model.save(out / "model")
    return model


@dataclass(frozen=True)
class _Part:
    """One domain of a run: its statistics, and where its batches come from."""

    domain: Domain
    reader: WindowReader
    masker: Masker
    splits: Splits
    batch_size: int
    seed: int

    @classmethod
    def of(cls, name: str, config: RunConfig, archive: Archive, jepa: JEPA) -> "_Part":
        """Statistics from the training split, and a reader that applies them."""
        part, tokenizer = config.parts[name], jepa.tokenizers[name]
        splits = split_steps(archive, part.data)
        normalizer = read_statistics(archive, splits.train, part.data.normalize)
        if normalizer is None:
            normalizer = fit_normalizer(archive, splits.train, part.data.normalize)
        spec = part.tokenizer.describe(archive, part.data.window, part.data.context)
        domain = Domain.of(name, part, spec, normalizer, [channel.units for channel in archive.channels])
        reader = WindowReader(archive, normalizer, memory_mb=part.data.memory_mb)
        masker = Masker(tokenizer.grid, part.masking, config.seed)
        return cls(domain, reader, masker, splits, part.batch_size or config.training.batch_size, config.seed)

    def stream(self, batches: int) -> BatchStream:
        """The batches of a run."""
        length = self.domain.config.data.window
        starts = window_starts(self.reader.archive, self.splits.train, length)
        return BatchStream(self.reader, self.masker, starts, length, batches, self.batch_size, self.seed)

    def validation(self) -> list[Item]:
        """A few batches of the validation split, evenly spaced, with masks that never change."""
        length = self.domain.config.data.window
        starts = window_starts(self.reader.archive, self.splits.validation, length)
        if not len(starts):
            return []
        size = min(self.batch_size, len(starts))
        chosen = starts[torch.linspace(0, len(starts) - 1, size * VALIDATION_BATCHES).long().unique().numpy()]
        batches = []
        for number in range(max(1, len(chosen) // size)):
            rows = chosen[number * size : (number + 1) * size]
            plan = self.masker(rows.tolist(), epoch=0, step=number)
            batches.append((dataclasses.replace(self.reader.read(rows, length), domain=self.domain.name), plan))
        return batches


class _Run(lightning.LightningModule):
    """One optimizer step and its schedule."""

    def __init__(self, jepa: JEPA, config: RunConfig) -> None:
        super().__init__()
        self.jepa, self.training_config = jepa, config.training
        self.weight = momentum(config.training.half_life, config.training.steps)
        self.weights = {name: part.weight for name, part in config.parts.items()}
        self.outputs: dict[str, StepOutput] = {}

    def training_step(self, batch: list[Item], index: int) -> torch.Tensor:
        """Sum over domains of weight times loss, over the sum of the weights: every step has a batch of each."""
        self.outputs = {data.domain: self.jepa(data, plan) for data, plan in batch}
        if len(batch) == 1:
            return next(iter(self.outputs.values())).terms.total
        losses = [self.weights[name] * self.balanced(output.terms) for name, output in self.outputs.items()]
        return torch.stack(losses).sum() / sum(self.weights.values())

    def balanced(self, terms: LossTerms) -> torch.Tensor:
        """The loss over its own value: domains pull alike, however hard each is to predict."""
        if not self.training_config.balance:
            return terms.total
        return terms.total / terms.prediction.detach().clamp_min(1e-3)

    def transfer_batch_to_device(self, batch: list[Item], device: torch.device, dataloader_idx: int) -> list[Item]:
        return [
            (data.to(device), MaskPlan(plan.context.to(device), plan.target.to(device), plan.strategy))
            for data, plan in batch
        ]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.jepa.target.update(self.jepa.encoder, self.weight)

    def configure_optimizers(self) -> Any:
        training = self.training_config
        learned = [p for p in self.jepa.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": training.weight_decay},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=training.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, training.steps, training.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear rise over the first `warmup` of the run, times half a cosine over all of it.

    >>> [round(learning_rate_factor(step, 100, 0.1), 3) for step in (0, 9, 50, 100)]
    [0.1, 0.98, 0.5, 0.0]
    """
    rise = min(1.0, (step + 1) / max(1.0, warmup * steps))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


class _Batches(lightning.LightningDataModule):
    """The stream of batches; its state is the number of batches processed, which makes a mid-run resume exact."""

    def __init__(self, config: RunConfig, parts: Mapping[str, _Part]) -> None:
        super().__init__()
        self.parts, self.first = parts, 0
        self.streams = {name: part.stream(config.training.steps) for name, part in parts.items()}

    def train_dataloader(self) -> "_Together":
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return _Together(
            {
                name: dataclasses.replace(stream, first=self.first, rank=rank, world=world)
                for name, stream in self.streams.items()
            }
        )

    def state_dict(self) -> dict[str, int]:
        assert self.trainer is not None
        return {"batches": self.trainer.global_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.first = state_dict["batches"]


@dataclass(frozen=True)
class _Together:
    """Steps of a run: a batch of every domain in each. Domains are not padded to each other: each is its own tensor."""

    streams: Mapping[str, BatchStream]

    def __len__(self) -> int:
        return len(next(iter(self.streams.values())))

    def __iter__(self) -> Iterator[list[Item]]:
        with contextlib.ExitStack() as open_streams:
            streams = [open_streams.enter_context(contextlib.closing(iter(s))) for s in self.streams.values()]
            for items in zip(*streams, strict=True):
                yield [
                    (dataclasses.replace(batch, domain=name), plan)
                    for name, (batch, plan) in zip(self.streams, items, strict=True)
                ]


class _Metrics(lightning.Callback):
    """Writes metrics.csv; a resumed run drops the rows after its checkpoint and goes on."""

    def __init__(self, path: Path, config: RunConfig, data: _Batches) -> None:
        self.path, self.config, self.data = path, config, data
        self.warned = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.validation = {name: part.validation() for name, part in self.data.parts.items()}
        if self.path.exists():
            with self.path.open(newline="") as file:
                whole = [row for row in csv.DictReader(file) if None not in row.values()]
            rows = [row for row in whole if int(row["step"]) <= trainer.global_step]
            _write_whole(self.path, _csv(rows, header=True))

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or (step % self.config.training.log_every and step != self.config.training.steps):
            return
        loss = sum(float(output.terms.total.detach()) for output in pl_module.outputs.values())
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {step}; lower training.learning_rate "
                f"(now {self.config.training.learning_rate:g}) or use training.precision float32."
            )
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        numbers: dict[str, Any] = {"step": step, "learning_rate": rate}
        joint = len(pl_module.outputs) > 1
        if joint:
            numbers["loss"] = loss / len(pl_module.outputs)
        for name, output in pl_module.outputs.items():
            own = {**diagnose(output), "validation_loss": self._validation_loss(pl_module, name)}
            if not self.warned and step >= self.config.training.warmup * self.config.training.steps:
                self.warned = warn_of_collapse(own, step)
            numbers |= {f"{name}.{key}": value for key, value in own.items()} if joint else own
        header = not self.path.exists() or not self.path.stat().st_size
        with self.path.open("a", newline="") as file:
            file.write(_csv([numbers], header=header))

    @torch.no_grad()
    def _validation_loss(self, pl_module: Any, domain: str) -> float:
        losses = []
        for item in self.validation[domain]:
            (moved,) = pl_module.transfer_batch_to_device([item], pl_module.device, 0)
            with pl_module.trainer.precision_plugin.forward_context():
                losses.append(float(pl_module.jepa(*moved).terms.prediction))
        return sum(losses) / len(losses) if losses else math.nan


def _csv(rows: list[dict[str, Any]], *, header: bool) -> str:
    """Rows as text; nothing for no rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [])
    if rows and header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class _Checkpoint(lightning.Callback):
    """One checkpoint at regular steps, in place of the one before."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path, self.every, self.steps = path, config.training.checkpoint_every, config.training.steps

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        if trainer.global_step % self.every == 0 or trainer.global_step == self.steps:
            trainer.save_checkpoint(self.path, weights_only=False)


class _AtomicFile(TorchCheckpointIO):
    """Writes beside the file and renames: a kill in mid-write leaves the one before.

    Lightning's own goes by way of the system's temporary folder, which may be small.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        # By way of memory: torch's own writer does not say that a disk is full.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        partial = Path(path).with_suffix(".partial")
        partial.write_bytes(content.getbuffer())
        os.replace(partial, path)


class _Bar(lightning.Callback):
    """A progress bar on stderr; silent where nobody is watching."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.bar = tqdm(
            total=self.config.training.steps, initial=trainer.global_step, desc="pretrain", unit="step",
            disable=None if trainer.is_global_zero else True, file=sys.stderr,
        )  # fmt: skip

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        self.bar.update(1)
        if trainer.global_step % self.config.training.log_every == 0:
            losses = [float(output.terms.total.detach()) for output in pl_module.outputs.values()]
            self.bar.set_postfix(loss=" ".join(f"{loss:.3f}" for loss in losses), refresh=False)

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


def _trainer(config: RunConfig, out: Path, data: _Batches, progress: bool) -> lightning.Trainer:
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    callbacks: list[lightning.Callback] = [
        _Metrics(out / "metrics.csv", config, data),
        _Checkpoint(out / "checkpoints" / "last.ckpt", config),
    ]
    if progress:
        callbacks.append(_Bar(config))
    return lightning.Trainer(
        max_steps=config.training.steps,
        accelerator="auto",
        devices=1,
        precision="bf16-mixed" if precision(config) == "bfloat16" else "32-true",
        gradient_clip_val=config.training.clip,
        callbacks=callbacks,
        plugins=[_AtomicFile()],
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _check_folder(out: Path, resolved: str, resume: bool) -> None:
    if out.exists() and not resume:
        raise UserError(
            f"{out} exists already and nothing is written over; choose another --out, or continue it with --resume."
        )
    if resume and not out.is_dir():
        raise UserError(f"there is no run folder {out} to resume; leave --resume out to start it.")
    started = out / "config.yaml"
    if resume and started.exists() and started.read_text() != resolved:
        raise UserError(
            f"{out} was started with another configuration; resume it with --config {started}, or choose another --out."
        )


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the one before, or none."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, newline="")
    os.replace(partial, path)


@contextlib.contextmanager
def _settings(config: RunConfig) -> Iterator[None]:
    """Torch's threads as configured and Lightning's hints silenced, while the run lasts."""
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        try:
            if config.training.threads:
                torch.set_num_threads(config.training.threads)
            yield
        finally:
            if config.training.threads:
                torch.set_num_threads(threads)


def _resolved(config: RunConfig) -> RunConfig:
    """The configuration with what depends on this machine and folder spelled out: archive paths and precision."""

    def whole(data: DataConfig) -> DataConfig:
        path = str(Path(data.archive).resolve()) if Path(data.archive).exists() else data.archive
        return dataclasses.replace(data, archive=path)

    return dataclasses.replace(
        config,
        data=whole(config.data) if config.data.archive else config.data,
        domains={n: dataclasses.replace(part, data=whole(part.data)) for n, part in config.domains.items()},
        training=dataclasses.replace(config.training, precision=precision(config)),
    )


def _provenance(out: Path, archives: Mapping[str, Archive]) -> dict[str, Any]:
    names = ", ".join(Path(archive.source).name for archive in archives.values())
    return {"name": out.name, "archive": names, "sciJEPA": versions()["sciJEPA"]}
