"""What a run would be, before it is one: windows, tokens, parameters and floating-point operations.

Arrives: a `RunConfig`. Leaves: what `--dry-run` prints. Nothing is read but coordinates, and nothing is written.
"""

import dataclasses
import importlib.metadata
import platform
from typing import Any

import torch

from sciJEPA.archive import Archive, open_archive
from sciJEPA.config import RunConfig
from sciJEPA.encoder import Encoder
from sciJEPA.errors import UserError
from sciJEPA.hub import build_jepa, grid_spec
from sciJEPA.jepa import JEPA
from sciJEPA.masking import Masker
from sciJEPA.samples import require_batch, split_steps, window_starts


def open_configured(config: RunConfig) -> Archive:
    """The archive of a configuration, with its variables."""
    if not config.data.archive:
        raise UserError("no archive is given: set data.archive in the configuration, or pass --archive PATH.")
    return open_archive(config.data.archive, variables=config.data.variables)


def describe_run(config: RunConfig) -> dict[str, Any]:
    """What a run would be: windows, tokens, parameters and FLOPs; reads no field and writes nothing.

    FLOPs count multiplications and additions of the matrix products: a backward pass is twice its forward pass.
    """
    archive = open_configured(config)
    splits = split_steps(archive, config.data)
    jepa = build_jepa(config, grid_spec(archive, config))
    grid, training = jepa.tokenizer.grid, config.training
    masker = Masker(grid, config.masking, config.seed)
    windows = {
        name: len(window_starts(archive, getattr(splits, name), config.data.window))
        for name in ("train", "validation", "test")
    }
    require_batch(windows["train"], archive, training.batch_size, config.data.window)
    flops = sum(share * _step_flops(jepa, masker, name) for name, share in config.masking.mixture.items())
    return {
        "archive": archive.source,
        "channels": [channel.name for channel in archive.channels],
        "space": list(archive.shape),
        "windows": windows,
        "tokens": {"context": grid.context_times * grid.per_time, "window": grid.count},
        "patch_values": len(archive.channels) * jepa.tokenizer.patch_size,
        "parameters": {
            "encoder": sum(p.numel() for p in jepa.encoder.parameters()),
            "predictor": sum(p.numel() for p in jepa.predictor.parameters()),
        },
        "steps": training.steps,
        "epochs": training.steps * training.batch_size / max(windows["train"], 1),
        "precision": precision(config),
        "flops_per_step": flops * training.batch_size,
        "flops_total": flops * training.batch_size * training.steps,
    }


def precision(config: RunConfig) -> str:
    """float32 or bfloat16: what `training.precision` comes to on this machine."""
    if config.training.precision != "auto":
        return config.training.precision
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bfloat16" if supported else "float32"


def versions() -> dict[str, str]:
    """Python, platform and the packages that a result depends on."""
    packages = ("sciJEPA", "torch", "pytorch-lightning", "numpy", "xarray", "zarr", "pandas", "scipy")
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _step_flops(jepa: JEPA, masker: Masker, strategy: str) -> float:
    """Matrix FLOPs of one sample's step: context and predictor forward and backward, target forward."""
    weights: dict[str, Any] = {name: float(name == strategy) for name in ("forecast", "blocks", "random")}
    only = dataclasses.replace(masker.config, **weights)
    plan = dataclasses.replace(masker, config=only)([0], epoch=0, step=0)
    context, targets = plan.context.shape[1], plan.target.shape[1]
    past = masker.grid.context_times * masker.grid.per_time
    scope = masker.grid.count if strategy == "forecast" else past
    if strategy == "forecast" and jepa.objective.scope == "future":
        scope -= past
    passes = {"ema": 1, "online": 3, "mae": 0}[jepa.objective.target]  # a target with gradient goes backward as well
    target = passes * _encoder_flops(jepa.encoder, scope)
    predictor = jepa.predictor
    width = predictor.enter.out_features
    per_block = 2 * targets * 10 * width**2 + 2 * context * 2 * width**2 + 4 * targets * context * width
    ends = 2 * context * jepa.encoder.width * width + 2 * targets * width * predictor.leave.out_features
    return 3 * (_encoder_flops(jepa.encoder, context) + len(predictor.blocks) * per_block + ends) + target


def _encoder_flops(encoder: Encoder, tokens: int) -> float:
    width = encoder.width
    patch = sum(weight.shape[0] for weight in encoder.embedding.value.values())
    return tokens * 2 * patch * width + len(encoder.blocks) * (24 * tokens * width**2 + 4 * tokens**2 * width)
