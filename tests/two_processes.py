"""What test_distributed runs in each of two processes: it must be importable where processes are spawned."""

import dataclasses
import importlib
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from sciJEPA.config import RunConfig
from sciJEPA.encoder import EncoderConfig
from sciJEPA.errors import UserError
from sciJEPA.jepa import JEPA, ObjectiveConfig
from sciJEPA.masking import Masker, MaskingConfig, MaskPlan
from sciJEPA.predictor import PredictorConfig
from sciJEPA.tokenizers.base import Batch
from sciJEPA.tokenizers.grid import GridSpec, GridTokenizer, GridTokenizerConfig
from sciJEPA.training.distributed import all_sum, gather, own, touch
from sciJEPA.training.sharding import shard, whole

SPEC = GridSpec(
    channels=("z",), latitude=tuple(10.0 * i for i in range(8)), longitude=tuple(45.0 * i for i in range(8)),
    cadence=24.0, periodic=True, window=4, context=2,
)  # fmt: skip
TOKENIZER = GridTokenizer(GridTokenizerConfig(), SPEC)  # patches of 4 x 4: 4 tokens a time


def build(objective: dict[str, Any]) -> JEPA:
    """A JEPA with the same weights every time; its target encoder is another one, as after some steps."""
    torch.manual_seed(0)
    jepa = JEPA(
        {"grid": TOKENIZER},
        EncoderConfig(width=16, depth=1, heads=2),
        PredictorConfig(width=8, depth=1, heads=2),
        ObjectiveConfig(**objective),
    )
    for weight in jepa.target.parameters():
        weight.add_(0.1 * torch.randn(weight.shape))
    return jepa


def windows(missing: bool) -> tuple[Batch, MaskPlan]:
    """Eight windows; where something is missing it is patches of the odd ones: processes see unlike numbers."""
    torch.manual_seed(1)
    values = torch.randn(8, 1, 4, 8, 8)
    observed = torch.ones(values.shape, dtype=torch.bool)
    if missing:
        observed[1::2, :, :, :4, :4] = False
        observed[1::4, :, 1:, :, 3:] = False
        values = values * observed
    batch = Batch(values, observed if missing else None, torch.rand(8, 4, 4), torch.arange(8))
    masker = Masker(TOKENIZER.grid, MaskingConfig(forecast=1, context_share=0.8))
    return batch, masker(range(8), epoch=0, step=0)


def share(batch: Batch, plan: MaskPlan, rank: int, count: int) -> tuple[Batch, MaskPlan]:
    """What one process has of it; flags only where something is missing there, as a loader has it."""

    def rows(x: torch.Tensor) -> torch.Tensor:
        return x[rank::count]

    observed = None if batch.observed is None else rows(batch.observed)
    observed = None if observed is None or bool(observed.all()) else observed
    own = Batch(rows(batch.values), observed, rows(batch.calendar), rows(batch.samples))
    return own, dataclasses.replace(plan, context=rows(plan.context), target=rows(plan.target))


def losses(objectives: list[dict[str, Any]], missing: bool, out: str) -> None:
    """Loss terms and averaged gradients of this process, for each objective, in a file."""
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    results = []
    for objective in objectives:
        jepa = build(objective)
        # Weights of missing values have no gradient where nothing is missing: see `touch`.
        parallel = DistributedDataParallel(_Loss(jepa))
        loss = parallel(*share(*windows(missing), rank, count))
        loss.backward()
        results.append((loss.item(), gradients(jepa)))
    torch.save(results, Path(out) / f"{rank}.pt")


def shares(objectives: list[dict[str, Any]], missing: bool, out: str) -> None:
    """Loss, whole gradients and the share of the values that this process keeps, for each objective, in a file."""
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    results = []
    for objective in objectives:
        jepa = build(objective)
        values = sum(weight.numel() for weight in jepa.parameters())
        shard(jepa, init_device_mesh("cpu", (count,)))
        loss = step_loss(jepa, *share(*windows(missing), rank, count))
        loss.backward()
        kept = sum(weight.numel() for weight in own(jepa.parameters()))
        results.append((loss.item(), whole(gradients(jepa)), kept / values))
    torch.save(results, Path(out) / f"{rank}.pt")


class _Loss(nn.Module):
    def __init__(self, jepa: JEPA) -> None:
        super().__init__()
        self.jepa = jepa

    def forward(self, batch: Batch, plan: MaskPlan) -> torch.Tensor:
        """The loss, as a training step takes it."""
        return step_loss(self.jepa, batch, plan)


def step_loss(jepa: JEPA, batch: Batch, plan: MaskPlan) -> torch.Tensor:
    """The loss, as a training step takes it."""
    return touch(jepa(batch, plan, step=3).terms.total, jepa.encoder.domains.parameters())


def gradients(jepa: JEPA) -> dict[str, torch.Tensor]:
    """Gradients by name."""
    return {name: weight.grad.clone() for name, weight in jepa.named_parameters() if weight.grad is not None}


def sums(out: str) -> None:
    """A sum, its gradient, and rows brought together, in a file."""
    rank = torch.distributed.get_rank()
    x = torch.tensor([1.0 + rank, 2.0], requires_grad=True)
    all_sum(x).pow(2).sum().backward()
    together = gather(torch.tensor([[10.0 * rank], [10.0 * rank + 1]]))
    torch.save((all_sum(x).detach(), x.grad, together), Path(out) / f"{rank}.pt")


def fail() -> None:
    """An error of one process, while the other waits for it."""
    if torch.distributed.get_rank() == 1:
        raise UserError("the second process has a complaint.")
    torch.distributed.barrier()


def die_after(config: RunConfig, out: str, step: int) -> None:
    """Pretrain, and be killed after this step."""
    home = importlib.import_module("sciJEPA.pretrain")

    whole = home.Checkpoint.on_train_batch_end

    def last(self: Any, trainer: Any, *rest: Any) -> None:
        whole(self, trainer, *rest)
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    home.Checkpoint.on_train_batch_end = last  # type: ignore[method-assign]
    home.pretrain(config, out, progress=False)
