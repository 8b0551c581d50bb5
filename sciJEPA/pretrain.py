"""Archive and configuration -> trained model; the only module that knows Lightning.

Arrives: a `RunConfig`. Leaves: a run folder with the resolved configuration, versions, metrics, checkpoints and the
model. Batches, masks and schedules are functions of the step, so a run that was killed and resumed ends at the same
weights, bit for bit on a CPU. Several processes share every batch, and their losses are sums over all of it, so their
number changes nothing but rounding. We decided against Lightning's epochs (a run is one stream of batches), and against
its way of starting processes, which runs the calling script again in each of them.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.checkpoint import checkpoint

from sciJEPA.archive import Archive
from sciJEPA.config import RunConfig, config_from_dict, config_to_dict, config_to_yaml, load_config
from sciJEPA.errors import UserError
from sciJEPA.forcings import masker_of
from sciJEPA.hub import Domain, Model, build_jepa, load, tokenizers_of
from sciJEPA.jepa import JEPA, StepOutput, compiled_in_training
from sciJEPA.loader import BatchStream, WindowReader
from sciJEPA.losses import LossTerms
from sciJEPA.masking import Masker
from sciJEPA.memory import keep_freed_memory
from sciJEPA.normalize import fit_normalizer
from sciJEPA.plan import open_configured, precision, versions
from sciJEPA.samples import DataConfig, Splits, split_steps, window_starts
from sciJEPA.saved_statistics import read_statistics
from sciJEPA.target import momentum
from sciJEPA.training.callbacks import AtomicFile, Bar, Best, Checkpoint, Item, Metrics, write_whole
from sciJEPA.training.distributed import alone, first, launch, launched, touch
from sciJEPA.training.schedules import learning_rate_factor, weight_decay_at
from sciJEPA.training.validation import LOSS_BATCHES, PROBED, validate


def pretrain(config: RunConfig, out: str | os.PathLike, *, resume: bool = False, progress: bool = True) -> Model:
    """Pretrain on `config.data.archive` and write the run folder `out`.

    Parameters
    ----------
    config
        The run; on resume it must equal the one that the folder was started with, but for how it is computed
        (`training.devices`, `shard`, `compile`, `checkpoint_activations` and `threads`).
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
    if first():
        _check_folder(out, _resolved(config), resume)
    if (out / "model").is_dir():
        return load(out)
    if config.training.devices > 1 and not launched():
        _check_devices(config.training.devices)
        tokenizers_of(open_configured(config), config)  # what is at fault is told before processes start
        launch(config.training.devices, _process, config, str(out), resume, progress)
        return load(out)
    return _train(config, out, resolved, progress)


def _process(config: RunConfig, out: str, resume: bool, progress: bool) -> None:
    """What each of several processes does."""
    pretrain(config, out, resume=resume, progress=progress)


def _train(config: RunConfig, out: Path, resolved: str, progress: bool) -> Model:
    """A run, or this process's share of it."""
    archives = open_configured(config)
    jepa = build_jepa(config, tokenizers_of(archives, config))
    parts = {name: _Part.of(name, config, archives[name], jepa) for name in config.parts}
    data = _Batches(config, parts)
    domains = {name: part.domain for name, part in parts.items()}
    model = Model(jepa, domains, config, _provenance(out, archives))
    if config.objective.target == "salt":
        _take_teacher(model, _teacher(config, out, progress))
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    if first():
        write_whole(out / "config.yaml", resolved)
        write_whole(out / "versions.json", json.dumps(versions(), indent=1) + "\n")
    last, best = out / "checkpoints" / "last.ckpt", out / "checkpoints" / "best.safetensors"
    keep_freed_memory()
    with _settings(config), _accelerated(jepa, config):
        trainer = _trainer(config, out, data, jepa, progress)
        run = _Run(jepa, config)
        trainer.fit(run, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    jepa = run.whole().eval()
    model = dataclasses.replace(model, jepa=jepa)
    if trainer.is_global_zero:
        if config.training.keep == "best":
            Best.restore(best, jepa)
        model.save(out / "model")
    trainer.strategy.barrier()
    return model


def _teacher(config: RunConfig, out: Path, progress: bool) -> Model:
    """The model whose encoder is the frozen teacher; one that is trained here is a run of its own in the folder."""
    objective = config.objective
    if objective.teacher is not None:
        return load(objective.teacher)
    stage_one = dataclasses.replace(
        objective, target="mae", teacher_steps=0, layers=(-1,), variance=0.0, covariance=0.0, sigreg=0.0,
        reconstruction=0.0,
    )  # fmt: skip
    training = dataclasses.replace(config.training, steps=objective.teacher_steps, keep="last")
    folder = out / "teacher"
    stage = dataclasses.replace(config, objective=stage_one, training=training)
    pretrain(stage, folder, resume=folder.exists(), progress=progress)
    return load(folder)


def _take_teacher(model: Model, teacher: Model) -> None:
    """Make the teacher's encoder the target; refused where it has another shape or other statistics."""
    same = teacher.domains.keys() == model.domains.keys() and all(
        np.array_equal(getattr(teacher.domains[name].normalizer, part), getattr(domain.normalizer, part))
        for name, domain in model.domains.items()
        for part in ("coefficients", "spread")
    )
    weights = teacher.jepa.target.module.state_dict()
    own = model.jepa.target.module.state_dict()
    alike = weights.keys() == own.keys() and all(weights[key].shape == own[key].shape for key in own)
    if not (same and alike):
        raise UserError(
            f"the teacher {teacher.id} does not fit: its {'encoder' if same else 'domains or statistics'} differ from "
            "those of this run; a teacher needs the same archive, splits, tokenizer and encoder."
        )
    model.jepa.target.module.load_state_dict(weights)


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
        masker = masker_of(tokenizer, part.masking, config.seed, part.data.forcings)
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
        count = size * max(LOSS_BATCHES, math.ceil(PROBED / size))
        chosen = starts[torch.linspace(0, len(starts) - 1, count).long().unique().numpy()]
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
        self.jepa, self.config, self.training_config = jepa, config, config.training
        self.weight = momentum(config.training.half_life, config.training.steps)
        self.weights = {name: part.weight for name, part in config.parts.items()}
        self.outputs: dict[str, StepOutput] = {}
        self.stepped = False
        """Whether the last batch completed an optimizer step."""
        self.sharded = False

    def configure_model(self) -> None:
        if self.training_config.shard and not self.sharded:
            from sciJEPA.training import sharding  # needs a newer torch than the rest

            sharding.shard(self.jepa, self.device_mesh["data_parallel"])  # type: ignore[index]
            self.sharded = True

    def whole(self) -> JEPA:
        """The model with all of its weights; where they are shared out, every process must ask for it."""
        if not self.sharded:
            return self.jepa
        from sciJEPA.training import sharding

        return sharding.assemble(self.jepa, build_jepa(self.config, self.jepa.tokenizers)).to(self.device)

    def training_step(self, batch: list[Item], index: int) -> torch.Tensor:
        """Sum over domains of weight times loss, over the sum of the weights: every step has a batch of each."""
        self.stepped = False
        step = self.global_step if self.jepa.objective.weights[2] else 0  # a number that changes is compiled again
        self.outputs = {data.domain: self.jepa(data, plan, step=step) for data, plan in batch}
        if len(batch) == 1:
            loss = next(iter(self.outputs.values())).terms.total
        else:
            losses = [self.weights[name] * self.balanced(output.terms) for name, output in self.outputs.items()]
            loss = torch.stack(losses).sum() / sum(self.weights.values())
        # Weights of missing values and hidden channels meet no data in some steps.
        return touch(loss, self.jepa.encoder.domains.parameters())

    def balanced(self, terms: LossTerms) -> torch.Tensor:
        """The loss over its own value: domains pull alike, however hard each is to predict."""
        if not self.training_config.balance:
            return terms.total
        return terms.total / terms.prediction.detach().clamp_min(1e-3)

    def transfer_batch_to_device(self, batch: list[Item], device: torch.device, dataloader_idx: int) -> list[Item]:
        return [(data.to(device), plan.to(device)) for data, plan in batch]

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        training = self.training_config
        optimizer.param_groups[0]["weight_decay"] = weight_decay_at(
            self.global_step, training.steps, training.weight_decay, training.weight_decay_end
        )
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.stepped = True
        if self.jepa.objective.target != "salt":
            self.jepa.target.update(self.jepa.encoder, self.weight)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        # Lightning refuses to clip for a fused optimizer, out of care for float16, which we do not use.
        learned = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(learned, self.training_config.clip)

    def configure_optimizers(self) -> Any:
        training = self.training_config
        learned = [p for p in self.jepa.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": training.weight_decay},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ]
        fused = self.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, fused=fused)
        factor = functools.partial(
            learning_rate_factor, steps=training.steps, warmup=training.warmup, schedule=training.schedule,
            cooldown=training.cooldown,
        )  # fmt: skip
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Batches(lightning.LightningDataModule):
    """The stream of batches; its state is the number of batches processed, which makes a mid-run resume exact."""

    def __init__(self, config: RunConfig, parts: Mapping[str, _Part]) -> None:
        super().__init__()
        self.parts, self.first, self.per_step = parts, 0, config.training.accumulate
        self.streams = {name: part.stream(config.training.steps * self.per_step) for name, part in parts.items()}

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
        return {"batches": self.trainer.global_step * self.per_step}

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


def _trainer(config: RunConfig, out: Path, data: _Batches, jepa: JEPA, progress: bool) -> lightning.Trainer:
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    validation = {name: part.validation() for name, part in data.parts.items()} if first() else {}
    with alone():  # weights are still those of the start, also in a run that resumes
        untrained = {name: validate(jepa, batches) for name, batches in validation.items()}
    best = out / "checkpoints" / "best.safetensors" if config.training.keep == "best" else None
    callbacks: list[lightning.Callback] = [
        Metrics(out / "metrics.csv", config, validation, untrained, best),
        Checkpoint(out / "checkpoints" / "last.ckpt", config),
    ]
    if progress:
        callbacks.append(Bar(config))
    devices = config.training.devices if launched() else 1
    return lightning.Trainer(
        max_steps=config.training.steps,
        accelerator="auto",
        devices=devices,
        num_nodes=max(1, int(os.environ.get("WORLD_SIZE", "1")) // devices),
        strategy=_strategy(config, devices),
        accumulate_grad_batches=config.training.accumulate,
        precision="bf16-mixed" if precision(config) == "bfloat16" else "32-true",
        gradient_clip_val=config.training.clip,
        callbacks=callbacks,
        plugins=[AtomicFile()],
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _strategy(config: RunConfig, devices: int) -> Any:
    if devices == 1:
        return "auto"
    if not config.training.shard:
        return DDPStrategy()
    from sciJEPA.training.sharding import Sharded

    return Sharded(int(os.environ.get("WORLD_SIZE", devices)))


def _check_folder(out: Path, config: RunConfig, resume: bool) -> None:
    if out.exists() and not resume:
        raise UserError(
            f"{out} exists already and nothing is written over; choose another --out, or continue it with --resume."
        )
    if resume and not out.is_dir():
        raise UserError(f"there is no run folder {out} to resume; leave --resume out to start it.")
    started, as_written = out / "config.yaml", config_from_dict(config_to_dict(config))
    if resume and started.exists() and _learned(load_config(started)) != _learned(as_written):
        raise UserError(
            f"{out} was started with another configuration; resume it with --config {started}, or choose another --out."
        )


def _learned(config: RunConfig) -> RunConfig:
    """The configuration without what changes a run by rounding alone: where it was killed, it may go on otherwise."""
    return dataclasses.replace(
        config,
        training=dataclasses.replace(
            config.training, devices=1, shard=False, compile=False, checkpoint_activations=False, threads=None
        ),
    )


def _check_devices(devices: int) -> None:
    gpus = torch.cuda.device_count()
    if 0 < gpus < devices:
        raise UserError(f"training.devices asks for {devices} GPUs, but this machine has {gpus}; ask for no more.")


@contextlib.contextmanager
def _accelerated(jepa: JEPA, config: RunConfig) -> Iterator[None]:
    """The step compiled, or its activations computed again in the backward pass, while the run lasts."""
    training = config.training
    trained = [*jepa.encoder.blocks, *jepa.predictor.blocks]
    if training.checkpoint_activations:
        for block in trained:
            # An attribute of the block that hides its class's method.
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    frozen = [block for block in jepa.target.module.modules() if type(block) is type(jepa.encoder.blocks[0])]
    # One GPU: the whole step. Otherwise block by block, as processes talk to each other in between.
    at_once = training.compile and training.devices == 1 and torch.cuda.is_available()
    compiled = [*trained, *frozen] if training.compile and not at_once else []
    for block in compiled:
        block.compile()
    if at_once:
        # CUDA graphs, which start a step's kernels at once, keep no gradients from one batch to the next.
        mode = "reduce-overhead" if training.accumulate == 1 else None
        # An attribute of the model that hides its class's method.
        jepa.__dict__["compare"] = compiled_in_training(jepa.compare, mode=mode)
    try:
        yield
    finally:
        for block in compiled:
            block._compiled_call_impl = None
        if at_once:
            del jepa.__dict__["compare"]
        if training.checkpoint_activations:
            for block in trained:
                del block.forward


@contextlib.contextmanager
def _settings(config: RunConfig) -> Iterator[None]:
    """Torch's threads and attention as they are best for training, Lightning's hints silenced, while the run lasts."""
    threads, cudnn = torch.get_num_threads(), torch.backends.cuda.cudnn_sdp_enabled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module.*returned a view")  # which nothing changes
        try:
            if config.training.threads:
                torch.set_num_threads(config.training.threads)
            torch.backends.cuda.enable_cudnn_sdp(False)
            yield
        finally:
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            if config.training.threads:
                torch.set_num_threads(threads)


def _resolved(config: RunConfig) -> RunConfig:
    """The configuration with what depends on this machine and folder spelled out: archive paths and precision."""

    def whole_path(path: str | None) -> str | None:
        return str(Path(path).resolve()) if path and Path(path).exists() else path

    def whole(data: DataConfig) -> DataConfig:
        return dataclasses.replace(data, archive=whole_path(data.archive) or "")

    return dataclasses.replace(
        config,
        data=whole(config.data) if config.data.archive else config.data,
        objective=dataclasses.replace(config.objective, teacher=whole_path(config.objective.teacher)),
        domains={n: dataclasses.replace(part, data=whole(part.data)) for n, part in config.domains.items()},
        training=dataclasses.replace(config.training, precision=precision(config)),
    )


def _provenance(out: Path, archives: Mapping[str, Archive]) -> dict[str, Any]:
    names = ", ".join(Path(archive.source).name for archive in archives.values())
    return {"name": out.name, "archive": names, "sciJEPA": versions()["sciJEPA"]}
