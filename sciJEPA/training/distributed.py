"""Sums over the processes of a run, with gradient: W processes of b windows each learn as one of W * b.

Arrives: a tensor of this process. Leaves: its sum over all processes, in every process; without a process group the
tensor itself. We decided against averaging each process's own statistics: a variance of b windows is not that of W * b,
and a mean of means forgets that processes see different numbers of tokens.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch import multiprocessing as processes

from sciJEPA.errors import UserError

_ALONE = [False]


def world() -> int:
    """Processes that a sum runs over: 1 without a process group."""
    if _ALONE[0] or not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within, sums are this process's own: for what one process looks at while the others wait."""
    before, _ALONE[0] = _ALONE[0], True
    try:
        yield
    finally:
        _ALONE[0] = before


class _Sum(torch.autograd.Function):
    """Sum over processes; the gradient of a process's part is the sum of what all processes ask of the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        total = gradient[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


def all_sum(x: Tensor) -> Tensor:
    """Sum over processes, with gradient.

    A loss that is made of such sums is the same number in every process. Its gradient with respect to a process's own
    tensors comes out W times too large there, which the mean over W processes of data-parallel training undoes.
    """
    return x if world() == 1 else _Sum.apply(x)


def gather(x: Tensor) -> Tensor:
    """Rows of all processes, without gradient, in the order of the whole batch (row k is process k % W's)."""
    if world() == 1:
        return x.detach()
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
    distributed.all_gather(parts, x.detach().contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def own(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of them: its shares where weights are shared out (`sharding`), else the tensors."""
    return [tensor.to_local() if hasattr(tensor, "to_local") else tensor.detach() for tensor in tensors]


class _Touch(torch.autograd.Function):
    """The loss itself; the gradient of every parameter is zero."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        return gradient[0], *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


def touch(loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """The loss, with a gradient of zero for these parameters on top.

    Data-parallel training waits for a gradient of every parameter. What stands for missing values has none where
    nothing is missing, and which process meets a gap differs from step to step.
    """
    return _Touch.apply(loss, *parameters)


def launched() -> bool:
    """Whether something else (torchrun) has started this process as one of several, or a process group exists."""
    return "LOCAL_RANK" in os.environ or (distributed.is_available() and distributed.is_initialized())


def first() -> bool:
    """Whether this is the first process of a run: the one that writes files."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def launch(count: int, task: Callable[..., None], *arguments: Any) -> None:
    """Run `task(*arguments)` in `count` new processes that form a process group, and wait for them.

    The processes are spawned, so the task must be a function of a module and its arguments plain values. On a machine
    with as many GPUs each process has its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        messages = processes.get_context("spawn").SimpleQueue()
        try:
            processes.spawn(_member, (count, meeting, messages, task, arguments), nprocs=count)
        except processes.ProcessExitedException as error:
            if messages.empty():
                raise UserError(f"one of {count} training processes ended unexpectedly: {error}.") from error
            raise UserError(messages.get()) from None


def _member(rank: int, count: int, meeting: str, messages: Any, task: Callable[..., None], arguments: Any) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(count)}
    gpus = torch.cuda.device_count() >= count
    if gpus:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if gpus else "gloo", init_method=f"file://{meeting}", rank=rank, world_size=count
    )
    try:
        task(*arguments)
    except UserError as error:
        messages.put(str(error))
        os._exit(1)  # the others may wait for this one: no farewell
    distributed.destroy_process_group()
