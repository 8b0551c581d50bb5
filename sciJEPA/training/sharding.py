"""Weights in shares: each process keeps a part of every weight, of its gradient and of what the optimizer remembers.

Arrives: a JEPA that every process has built alike. Leaves: the same JEPA, whose blocks are brought together while they
are computed, and whole weights for who asks: a checkpoint, the validation, the model. It is fully sharded data parallel
training: Rajbhandari et al. 2020 (https://arxiv.org/abs/1910.02054), Zhao et al. 2023 (https://arxiv.org/abs/2304.11277).
Statistics of a step are sums over processes as ever (see `distributed`). We decided against files of shares: a
checkpoint is that of a run without them, so that either kind of run goes on with the other's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from sciJEPA.encoder import Encoder
from sciJEPA.errors import UserError
from sciJEPA.jepa import JEPA

try:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor
except ImportError as error:
    raise UserError(
        f"training.shard needs torch 2.6 or newer, found {torch.__version__}; update torch, or set training.shard to "
        "false."
    ) from error


def shard(jepa: JEPA, mesh: DeviceMesh) -> None:
    """Share all weights out over the processes of the mesh, block by block."""
    average = cast(Encoder, jepa.target.module)
    for block in (*jepa.encoder.blocks, *average.blocks, *jepa.predictor.blocks):
        fully_shard(block, mesh=mesh)
    # What is left is small and stays together from the forward to the backward pass: adapters, norms, ways in and out.
    fully_shard(jepa, mesh=mesh, reshard_after_forward=False)


def whole(state: Any, *, keep: bool = True) -> Any:
    """Nested state with every tensor whole and in the processor's memory; all processes must ask for it.

    Parameters
    ----------
    keep
        Without it, what is brought together is let go: for processes that only take part.
    """
    if isinstance(state, DTensor):
        together = state.full_tensor()
        return together.cpu() if keep else None
    if isinstance(state, Mapping):
        return {key: whole(value, keep=keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole(value, keep=keep) for value in state)
    return state


def share_of(value: Tensor, like: Tensor) -> Tensor:
    """What this process keeps of a whole tensor that is split like another one; all of it where that is whole."""
    if not isinstance(like, DTensor):
        return value
    # Every process has the whole: none needs to be sent its share.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def assemble(jepa: JEPA, into: JEPA) -> JEPA:
    """Give `into` the whole weights of a JEPA in shares; all processes must ask for it."""
    into.load_state_dict(whole(jepa.state_dict()))
    return into


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for modules that shard themselves, with the files of one that does not.

    Lightning's own numbers the optimizer's states by the order of the module's parameters. Ours come in two groups and
    leave the frozen ones out, so a run without shares would give them to the wrong weights.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """States of the optimizer come from the checkpoint by way of `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights, in the process that writes."""
        assert self.lightning_module is not None
        return cast(dict[str, Any], whole(self.lightning_module.state_dict(), keep=self.global_rank == 0))

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Whole states, as the optimizer itself numbers them."""
        optimizer = getattr(optimizer, "_optimizer", optimizer)  # within Lightning's own
        return cast(dict[str, Any], whole(optimizer.state_dict(), keep=self.global_rank == 0))

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """The file as it is: every process reads it."""
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's share of the weights."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        shares = {name: share_of(value, own[name]) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(shares, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's share of the optimizer's states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(_shares(state, optimizer))


def _shares(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """States of whole parameters -> those of this process's shares, parameter by parameter in the optimizer's order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    shares = {
        number: {
            name: share_of(value, parameter) if value.shape == parameter.shape else value
            for name, value in state["state"][number].items()
        }
        for number, parameter in zip(numbers, parameters, strict=True)
    }
    return {**state, "state": shares}
