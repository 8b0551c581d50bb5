"""What a run would be, before it is one: windows, tokens, parameters and floating-point operations.

Arrives: a `RunConfig`. Leaves: what `--dry-run` prints. Nothing is read but coordinates, and nothing is written.
"""

import dataclasses
import importlib.metadata
import platform
import time
from dataclasses import dataclass
from typing import Any

import torch

from sciJEPA.archive import Archive, open_archive
from sciJEPA.config import DomainConfig, RunConfig
from sciJEPA.encoder import Block, Encoder, EncoderConfig
from sciJEPA.errors import UserError
from sciJEPA.forcings import check_forcings, masker_of
from sciJEPA.hub import build_jepa, tokenizers_of
from sciJEPA.jepa import JEPA, target_values
from sciJEPA.masking import STRATEGIES, Masker
from sciJEPA.samples import require_batch, split_steps, window_starts

TOKENS, MEASURED = 128, 0.2
"""Tokens of the windows on which a block is timed, and for how many seconds."""
WORK = {"cpu": 3e9, "cuda": 1e12}
"""At most about so many FLOPs at a time."""
UNITS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}


def open_configured(config: RunConfig) -> dict[str, Archive]:
    """The archive of every domain of a configuration, with its variables."""
    for name, part in config.parts.items():
        if not part.data.archive:
            key = f"domains.{name}.data.archive" if config.domains else "data.archive"
            option = "" if config.domains else ", or pass --archive PATH"
            raise UserError(f"no archive is given: set {key} in the configuration{option}.")
    archives = {
        name: open_archive(part.data.archive, variables=part.data.inputs, **part.data.how)
        for name, part in config.parts.items()
    }
    for name, part in config.parts.items():
        check_forcings(archives[name], part.data.forcings)
    return archives


def describe_run(config: RunConfig) -> dict[str, Any]:
    """What a run would be: windows, tokens, parameters and FLOPs; reads no field and writes nothing.

    FLOPs count multiplications and additions of the matrix products: a backward pass is twice its forward pass.
    """
    archives = open_configured(config)
    jepa = build_jepa(config, tokenizers_of(archives, config))
    domains = {name: _describe_domain(config, name, part, archives[name], jepa) for name, part in config.parts.items()}
    flops, steps = sum(domain["flops_per_step"] for domain in domains.values()), config.training.steps
    only = next(iter(domains.values())) if len(domains) == 1 else {"domains": domains}
    return {
        **only,
        "parameters": {
            "encoder": sum(p.numel() for p in jepa.encoder.parameters()),
            "predictor": sum(p.numel() for p in jepa.predictor.parameters()),
        },
        "steps": steps,
        "precision": precision(config),
        "flops_per_step": flops,
        "flops_total": flops * steps,
    }


def _describe_domain(config: RunConfig, name: str, part: DomainConfig, archive: Archive, jepa: JEPA) -> dict[str, Any]:
    """Windows, tokens and FLOPs of one domain."""
    splits, tokenizer, length = split_steps(archive, part.data), jepa.tokenizers[name], part.data.window
    masker = masker_of(tokenizer, part.masking, config.seed, part.data.forcings)
    windows = {
        split: len(window_starts(archive, getattr(splits, split), length)) for split in ("train", "validation", "test")
    }
    size = part.batch_size or config.training.batch_size
    require_batch(windows["train"], archive, size, length)
    grid, mixture = tokenizer.grid, part.masking.mixture.items()
    return {
        "archive": archive.source,
        "channels": [channel.name for channel in archive.channels],
        **({"forcings": list(part.data.forcings)} if part.data.forcings else {}),
        "space": list(archive.shape),
        "series": archive.repeats,
        "windows": windows,
        "tokens": {"context": grid.context_times * grid.per_time, "window": grid.count},
        "patch_values": target_values(tokenizer),
        "batch_size": size,
        "epochs": config.training.steps * size / max(windows["train"], 1),
        "flops_per_step": size * sum(share * _step_flops(jepa, masker, name, strategy) for strategy, share in mixture),
    }


@dataclass(frozen=True)
class Estimate:
    """How long a run may take, and what that is taken from."""

    seconds: float
    flops_per_second: float
    basis: str

    def __str__(self) -> str:
        unit = next((unit for unit, size in UNITS.items() if self.seconds >= 2 * size), "seconds")
        return f"roughly {float(f'{self.seconds / UNITS[unit]:.2g}'):g} {unit}: {self.basis}"


def estimate_time(config: RunConfig, flops: float) -> Estimate:
    """Time for so many FLOPs at the rate of a block of the encoder, measured on this machine."""
    devices, kind = config.training.devices, precision(config)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(config.training.threads or before)
        rate = devices * _block_rate(config.encoder, kind)
    finally:
        torch.set_num_threads(before)
    many = f" on {devices} devices" if devices > 1 else ""
    basis = (
        f"the FLOPs at {rate / 1e9:.3g} GFLOP/s, what a block of the encoder reaches here and now in {kind}{many}; "
        "reading, optimizer and validation come on top"
    )
    return Estimate(flops / rate, rate, basis)


def _block_rate(config: EncoderConfig, kind: str) -> float:
    """FLOPs per second of a block, forward and backward, over a fraction of a second.

    Bare matrix products would promise too much: those of width 96 were five times as fast as steps in bfloat16.
    """
    width, _, heads = config.resolved
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    flops = 3 * (24 * TOKENS * width**2 + 4 * TOKENS**2 * width)
    windows = max(1, min(32, int(WORK[device.type] / flops)))
    with torch.random.fork_rng(devices=[]):
        block = Block(width, heads).to(device)
    tokens = torch.ones(windows, TOKENS, width, device=device, requires_grad=True)
    count, begun = -1, time.perf_counter()
    while count < 1 or time.perf_counter() - begun < MEASURED:
        with torch.autocast(device.type, torch.bfloat16, enabled=kind == "bfloat16"):
            block(tokens, None).float().sum().backward()
        tokens.grad.sum().item()  # type: ignore[union-attr]  # a GPU has done its work when a number arrives
        count += 1
        begun = begun if count else time.perf_counter()  # the first pass warms up
    return count * windows * flops / (time.perf_counter() - begun)


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


def _step_flops(jepa: JEPA, masker: Masker, domain: str, strategy: str) -> float:
    """Matrix FLOPs of one sample's step: context and predictor forward and backward, target forward."""
    weights: dict[str, Any] = {name: float(name == strategy) for name in STRATEGIES}
    only = dataclasses.replace(masker.config, **weights)
    plan = dataclasses.replace(masker, config=only)([0], epoch=0, step=0)
    context, targets = plan.context.shape[1], plan.target.shape[1]
    past = masker.grid.context_times * masker.grid.per_time
    scope = masker.grid.count if strategy == "forecast" else past
    if strategy == "forecast" and jepa.objective.scope == "future":
        scope -= past
    return step_flops(jepa, domain, context, targets, scope)


def step_flops(jepa: JEPA, domain: str, context: int, targets: int, scope: int) -> float:
    """Matrix FLOPs of one sample's step with so many visible tokens, targets, and tokens that the target encoder sees.

    A backward pass counts as two forward passes; the regularisers are not counted.
    """
    passes = 3 if jepa.objective.gradient else 1  # a target with gradient goes backward as well
    passes = 0 if jepa.objective.target == "mae" else passes
    patch = target_values(jepa.tokenizers[domain])
    predictor, width = jepa.predictor, jepa.predictor.enter.out_features
    per_block = 2 * targets * 10 * width**2 + 2 * context * 2 * width**2 + 4 * targets * context * width
    out = patch if jepa.objective.target == "mae" else jepa.encoder.width * len(jepa.objective.layers)
    ends = 2 * context * jepa.encoder.width * width + 2 * targets * width * out
    forward = _encoder_flops(jepa.encoder, context, patch) + len(predictor.blocks) * per_block + ends
    return 3 * forward + passes * _encoder_flops(jepa.encoder, scope, patch)


def _encoder_flops(encoder: Encoder, tokens: int, patch: int) -> float:
    """The embedding counted as one linear map of the patch."""
    width = encoder.width
    return tokens * 2 * patch * width + len(encoder.blocks) * (24 * tokens * width**2 + 4 * tokens**2 * width)
