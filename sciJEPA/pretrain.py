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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from tqdm import tqdm

from sciJEPA.archive import Archive
from sciJEPA.config import RunConfig, config_to_yaml
from sciJEPA.errors import UserError
from sciJEPA.hub import Model, build_jepa, grid_spec, load
from sciJEPA.jepa import JEPA, StepOutput
from sciJEPA.loader import BatchStream, WindowReader
from sciJEPA.masking import Masker, MaskPlan
from sciJEPA.monitor import diagnose, warn_of_collapse
from sciJEPA.normalize import fit_normalizer
from sciJEPA.plan import open_configured, precision, versions
from sciJEPA.samples import Splits, split_steps, window_starts
from sciJEPA.target import momentum
from sciJEPA.tokenizers.base import Batch

VALIDATION_BATCHES = 4


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
    archive = open_configured(config)
    splits = split_steps(archive, config.data)
    spec = grid_spec(archive, config)
    jepa = build_jepa(config, spec)
    normalizer = fit_normalizer(archive, splits.train)
    reader = WindowReader(archive, normalizer, memory_mb=config.data.memory_mb)
    masker = Masker(jepa.tokenizer.grid, config.masking, config.seed)
    data = _Batches(config, reader, masker, splits)
    units = tuple(channel.units for channel in archive.channels)
    model = Model(jepa, normalizer, config, spec, units, _provenance(out, archive))
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


class _Run(lightning.LightningModule):
    """One optimizer step and its schedule."""

    def __init__(self, jepa: JEPA, config: RunConfig) -> None:
        super().__init__()
        self.jepa, self.training_config = jepa, config.training
        self.weight = momentum(config.training.half_life, config.training.steps)
        self.output: StepOutput | None = None

    def training_step(self, batch: tuple[Batch, MaskPlan], index: int) -> torch.Tensor:
        self.output = self.jepa(*batch)
        return self.output.terms.total

    def transfer_batch_to_device(
        self, batch: tuple[Batch, MaskPlan], device: torch.device, dataloader_idx: int
    ) -> tuple[Batch, MaskPlan]:
        data, plan = batch
        return data.to(device), MaskPlan(plan.context.to(device), plan.target.to(device), plan.strategy)

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

    def __init__(self, config: RunConfig, reader: WindowReader, masker: Masker, splits: Splits) -> None:
        super().__init__()
        self.config, self.reader, self.masker, self.splits = config, reader, masker, splits
        self.first = 0
        starts = window_starts(reader.archive, splits.train, config.data.window)
        self.stream = BatchStream(
            reader, masker, starts, config.data.window, config.training.steps, config.training.batch_size, config.seed
        )

    def train_dataloader(self) -> BatchStream:
        assert self.trainer is not None
        return dataclasses.replace(
            self.stream, first=self.first, rank=self.trainer.global_rank, world=self.trainer.world_size
        )

    def state_dict(self) -> dict[str, int]:
        assert self.trainer is not None
        return {"batches": self.trainer.global_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.first = state_dict["batches"]

    def validation_batches(self) -> list[tuple[Batch, MaskPlan]]:
        """A few batches of the validation split, evenly spaced, with masks that never change."""
        starts = window_starts(self.reader.archive, self.splits.validation, self.config.data.window)
        if not len(starts):
            return []
        size = min(self.config.training.batch_size, len(starts))
        chosen = starts[torch.linspace(0, len(starts) - 1, size * VALIDATION_BATCHES).long().unique().numpy()]
        batches = []
        for number in range(max(1, len(chosen) // size)):
            part = chosen[number * size : (number + 1) * size]
            plan = self.masker(part.tolist(), epoch=0, step=number)
            batches.append((self.reader.read(part, self.config.data.window), plan))
        return batches


class _Metrics(lightning.Callback):
    """Writes metrics.csv; a resumed run drops the rows after its checkpoint and goes on."""

    def __init__(self, path: Path, config: RunConfig, data: _Batches) -> None:
        self.path, self.config, self.data = path, config, data
        self.warned = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.validation = self.data.validation_batches()
        if self.path.exists():
            with self.path.open(newline="") as file:
                whole = [row for row in csv.DictReader(file) if None not in row.values()]
            rows = [row for row in whole if int(row["step"]) <= trainer.global_step]
            _write_whole(self.path, _csv(rows, header=True))

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or (step % self.config.training.log_every and step != self.config.training.steps):
            return
        loss = float(pl_module.output.terms.total.detach())
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {step}; lower training.learning_rate "
                f"(now {self.config.training.learning_rate:g}) or use training.precision float32."
            )
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        numbers = {"step": step, "learning_rate": rate, **diagnose(pl_module.output)}
        if not self.warned and step >= self.config.training.warmup * self.config.training.steps:
            self.warned = warn_of_collapse(numbers, step)
        numbers["validation_loss"] = self._validation_loss(pl_module)
        header = not self.path.exists() or not self.path.stat().st_size
        with self.path.open("a", newline="") as file:
            file.write(_csv([numbers], header=header))

    @torch.no_grad()
    def _validation_loss(self, pl_module: Any) -> float:
        losses = []
        for batch in self.validation:
            batch = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
            with pl_module.trainer.precision_plugin.forward_context():
                losses.append(float(pl_module.jepa(*batch).terms.prediction))
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
            self.bar.set_postfix(loss=f"{float(pl_module.output.terms.total.detach()):.3f}", refresh=False)

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
    """The configuration with what depends on this machine and folder spelled out: archive path and precision."""
    archive = config.data.archive
    path = str(Path(archive).resolve()) if Path(archive).exists() else archive
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, archive=path),
        training=dataclasses.replace(config.training, precision=precision(config)),
    )


def _provenance(out: Path, archive: Archive) -> dict[str, Any]:
    return {"name": out.name, "archive": Path(archive.source).name, "sciJEPA": versions()["sciJEPA"]}
