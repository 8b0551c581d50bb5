"""Samples per second of a training step, beside I-JEPA's own code and beside the matrix products of this machine.

    python benchmarks/train_step.py                                    # tiny, small, base and the reference's sizes
    python benchmarks/train_step.py --reference ../ijepa --sizes small --json train_step.json

Inputs are images of 3 channels and 224 x 224 values in memory, cut into 196 patches of 16 x 16, in batches of 32. A
step is all that training does: draw masks and stack the batch (data), encode all tokens by the moving average (target),
encode the visible ones (context), predict (predictor, with the loss and the regularisers), the latter two forward and
backward, and clip, AdamW and move the average (optimizer). For the sizes of the dial half the tokens are hidden.

With --reference PATH, a checkout of https://github.com/facebookresearch/ijepa, its encoder, predictor and mask collator
are run too, at width 384, depth 12, 6 heads, a predictor of 6 blocks of width 384, and 4 targets, and in bfloat16 under
the same autocast. Equal on both sides: images, masks (all from its collator, whose time both pay), visible tokens and
targets, one number for every feature of every target, targets normalised over their features, smooth L1, AdamW, moving
average, threads, and a process that keeps freed memory, as sciJEPA's training does. What differs: sciJEPA's predictor
answers all four targets in one pass in which the context is only looked at, where the reference runs a copy of the
context through its blocks for each target; sciJEPA clips gradients; its attention is fused in float32; its AdamW is
fused, as in its training, where the reference's is torch's choice, as in its code. The reference's loop is a script
that cannot be imported: its step is put together here, with torch's multi-tensor call for the moving average.

Methods take turns: one step of each in a round, and in every round a matrix product in each precision. Printed are
medians of the rounds after the first. Model FLOPs are the multiplications and additions of the matrix products that the
step needs (a backward pass is two forward passes); "of matrix" is their rate over that of a product of square matrices.
"""

import argparse
import contextlib
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciJEPA.config import RunConfig
from sciJEPA.encoder import EncoderConfig
from sciJEPA.jepa import JEPA, ObjectiveConfig
from sciJEPA.masking import MaskPlan
from sciJEPA.memory import keep_freed_memory
from sciJEPA.plan import precision, step_flops
from sciJEPA.predictor import PredictorConfig
from sciJEPA.tokenizers.base import Batch
from sciJEPA.tokenizers.grid import GridSpec, GridTokenizer, GridTokenizerConfig

CHANNELS, PIXELS, PATCH = 3, 224, 16
PATCHES = (PIXELS // PATCH) ** 2
REFERENCE_MASKS = 56, 4 * 33  # visible tokens and targets where there is no reference to draw them: its averages
HALF = PATCHES // 2, PATCHES // 2
PREDICTORS = {"tiny": (64, 2), "small": (96, 2), "base": (192, 4), "large": (384, 6)}
PARTS = ("data", "target", "context", "predictor", "optimizer")
MATRIX = 1024
MASKS = {"pred_mask_scale": (0.15, 0.2), "enc_mask_scale": (0.85, 1.0), "aspect_ratio": (0.75, 1.5), "min_keep": 10}
"""Those of the reference's configurations."""

Draw = Callable[[list[Tensor]], tuple[Tensor, list[Tensor], list[Tensor]]]
"""Images -> their stack, visible token numbers and target token numbers of each image, as lists of masks."""


class Clock:
    """Seconds by part of a step."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict.fromkeys(PARTS, 0.0)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[name] += self.now() - start


@dataclass
class Method:
    """One model in one precision."""

    name: str
    dtype: str
    step: Callable[[list[Tensor], Clock], None]
    flops: Callable[[], float]
    """Of a sample, in the last step."""
    seconds: list[dict[str, float]] = field(default_factory=list)
    counted: list[float] = field(default_factory=list)
    """FLOPs of a sample in each step: masks differ in size."""

    def time(self, images: list[Tensor], device: torch.device, seed: int) -> float:
        """Seconds of a step; the seed makes the masks of a round the same for all."""
        torch.manual_seed(seed)
        clock = Clock(device)
        self.step(images, clock)
        self.seconds.append(clock.seconds)
        self.counted.append(self.flops())
        return sum(clock.seconds.values())

    def median(self) -> tuple[float, float]:
        """Seconds of a step, and FLOPs of a sample, without the first round."""
        return statistics.median(sum(parts.values()) for parts in self.seconds[1:]), statistics.mean(self.counted[1:])


# --- sciJEPA ----------------------------------------------------------------------------------------------------------


def build(encoder: EncoderConfig, predictor: PredictorConfig, objective: ObjectiveConfig) -> JEPA:
    degrees = tuple(np.linspace(-80, 80, PIXELS).tolist())
    spec = GridSpec(("red", "green", "blue"), degrees, degrees, 24.0, False, window=1, context=1)
    config = GridTokenizerConfig(patch_latitude=PATCH, patch_longitude=PATCH)
    return JEPA({"image": GridTokenizer(config, spec)}, encoder, predictor, objective)


class Ours:
    """The step of `sciJEPA.pretrain` without Lightning around it."""

    def __init__(self, jepa: JEPA, dtype: str, device: torch.device, draw: Draw) -> None:
        self.jepa, self.dtype, self.device, self.draw = jepa.to(device), dtype, device, draw
        learned = [p for p in jepa.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.learned, self.optimizer = learned, torch.optim.AdamW(groups, lr=1e-4, fused=True)
        self.sizes = (0, 0)

    def flops(self) -> float:
        return step_flops(self.jepa, "image", *self.sizes, scope=PATCHES)

    def __call__(self, images: list[Tensor], clock: Clock) -> None:
        with clock.part("data"):
            stack, visible, wanted = self.draw(images)
            plan = MaskPlan(visible[0], torch.cat(wanted, dim=1), "blocks").to(self.device)
            batch = Batch(stack[:, :, None], None, torch.zeros(len(stack), 1, 4), torch.arange(len(stack)))
            batch = batch.to(self.device)
        self.sizes = plan.context.shape[1], plan.target.shape[1]
        self.learn(batch, plan, clock)
        with clock.part("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.jepa.target.update(self.jepa.encoder, 0.99)

    def learn(self, batch: Batch, plan: MaskPlan, clock: Clock) -> None:
        """Forward and backward; what is neither target nor context is the predictor's."""
        start, before = clock.now(), clock.seconds["target"] + clock.seconds["context"]
        encoder, target = self.jepa.encoder, self.jepa.target_encoder
        with timed(encoder, "forward", clock, "context"), timed(target, "outputs", clock, "target"):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
                output = self.jepa(batch, plan)
            # When the gradient of the context's latents is there, the rest of the backward pass is the encoder's.
            reached: list[float] = []
            output.context.register_hook(lambda gradient: reached.append(clock.now()))
            output.terms.total.backward()
        stop = clock.now()
        clock.seconds["context"] += stop - reached[0]
        known = clock.seconds["target"] + clock.seconds["context"] - before
        clock.seconds["predictor"] += stop - start - known


@contextlib.contextmanager
def timed(module: torch.nn.Module, method: str, clock: Clock, part: str) -> Iterator[None]:
    """Count the time within a method of a module as that of a part, while the context lasts."""
    original = getattr(module, method)

    def counted(*arguments: Any) -> Any:
        with clock.part(part):
            return original(*arguments)

    setattr(module, method, counted)
    try:
        yield
    finally:
        delattr(module, method)


def random_masks(context: int, targets: int) -> Draw:
    """Token numbers of fixed sizes; where they lie does not matter for speed."""

    def draw(images: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        order = torch.rand(len(images), PATCHES).argsort(dim=1)
        visible, wanted = order[:, -context:], order[:, :targets]
        return torch.stack(images), [visible.sort(dim=1).values], [wanted.sort(dim=1).values]

    return draw


# --- the reference ----------------------------------------------------------------------------------------------------


class Reference:
    """The step of I-JEPA's training script, by the functions of its checkout."""

    def __init__(self, dtype: str, device: torch.device, draw: Draw) -> None:
        from src.masks.utils import apply_masks  # type: ignore[import-not-found]
        from src.models.vision_transformer import vit_predictor, vit_small  # type: ignore[import-not-found]

        self.dtype, self.device, self.draw, self.apply_masks = dtype, device, draw, apply_masks
        self.encoder = vit_small(img_size=[PIXELS], patch_size=PATCH).to(device)
        self.predictor = vit_predictor(
            num_patches=PATCHES, embed_dim=384, predictor_embed_dim=384, depth=6, num_heads=6
        ).to(device)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        learned = [p for module in (self.encoder, self.predictor) for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4)
        self.sizes = (0, 0)

    def flops(self) -> float:
        """Blocks of width 384 on all patches, on the visible ones, and on these with one of four targets."""
        visible, target = self.sizes

        def blocks(tokens: int) -> int:
            return 24 * tokens * 384**2 + 4 * tokens**2 * 384

        ends = 2 * (visible + 4 * target) * 384**2  # into the predictor, and out of it
        embedding = 2 * PATCHES * PATCH**2 * CHANNELS * 384  # of the whole image, whatever is visible
        context = 12 * blocks(visible) + 6 * 4 * blocks(visible + target) + ends
        return 12 * blocks(PATCHES) + 3 * context + 3 * embedding

    def __call__(self, images: list[Tensor], clock: Clock) -> None:
        with clock.part("data"):
            stack, visible, wanted = self.draw(images)
            stack = stack.to(self.device)
            visible, wanted = ([mask.to(self.device) for mask in masks] for masks in (visible, wanted))
        self.sizes = visible[0].shape[1], wanted[0].shape[1]
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
            with clock.part("target"), torch.no_grad():
                latents = self.target(stack)
                answers = self.apply_masks(torch.nn.functional.layer_norm(latents, latents.shape[-1:]), wanted)
            with clock.part("context"):
                context = self.encoder(stack, visible)
            with clock.part("predictor"):
                predicted = self.predictor(context, visible, wanted)
                loss = torch.nn.functional.smooth_l1_loss(predicted, answers)
        reached: list[float] = []
        context.register_hook(lambda gradient: reached.append(clock.now()))
        start = clock.now()
        loss.backward()
        clock.seconds["predictor"] += reached[0] - start
        clock.seconds["context"] += clock.now() - reached[0]
        with clock.part("optimizer"), torch.no_grad():
            self.optimizer.step()
            self.optimizer.zero_grad()
            torch._foreach_lerp_(list(self.target.parameters()), list(self.encoder.parameters()), 0.01)


def collator(path: Path) -> Draw:
    """The reference's own, which stacks images and draws one context and four targets for each."""
    if not (path / "src" / "masks" / "multiblock.py").exists():
        raise SystemExit(f"{path} is no checkout of facebookresearch/ijepa: it has no src/masks/multiblock.py.")
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    from src.masks.multiblock import MaskCollator  # type: ignore[import-not-found]

    return MaskCollator(input_size=(PIXELS, PIXELS), patch_size=PATCH, nenc=1, npred=4, allow_overlap=False, **MASKS)


# --- the run ----------------------------------------------------------------------------------------------------------


def methods_of(options: argparse.Namespace, device: torch.device, dtypes: list[str]) -> list[Method]:
    """All that takes turns; "reference sizes" is sciJEPA at the sizes of the reference."""

    def draw() -> Draw:
        # A collator each, as it counts its calls.
        return collator(options.reference) if options.reference else random_masks(*REFERENCE_MASKS)

    methods = []
    for dtype in dtypes:
        if options.reference:
            reference = Reference(dtype, device, draw())
            methods.append(Method("reference", dtype, reference, reference.flops))
        configs = {
            "reference sizes": (
                EncoderConfig(width=384, depth=12, heads=6),
                PredictorConfig(width=384, depth=6, heads=6),
                ObjectiveConfig(distance="smooth_l1", standardise="token", variance=0.0, covariance=0.0),
            )
        }
        for size in options.sizes:
            width, depth = PREDICTORS[size]
            configs[size] = EncoderConfig(size=size), PredictorConfig(width=width, depth=depth), ObjectiveConfig()
        for name, config in configs.items():
            jepa = build(*config)
            if options.compile:
                for block in [*jepa.encoder.blocks, *jepa.predictor.blocks, *jepa.target_encoder.blocks]:
                    block.compile()
            ours = Ours(jepa, dtype, device, draw() if name == "reference sizes" else random_masks(*HALF))
            methods.append(Method(name, dtype, ours, ours.flops))
    return methods


def matrix_rate(dtype: str, device: torch.device, repeats: int = 5) -> float:
    """FLOP/s of a product of two square matrices."""
    matrix = torch.randn(MATRIX, MATRIX, device=device).to(getattr(torch, dtype))
    clock, seconds = Clock(device), []
    for _ in range(repeats):
        start = clock.now()
        torch.mm(matrix, matrix)
        seconds.append(clock.now() - start)
    return 2 * MATRIX**3 / statistics.median(seconds[1:])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Samples per second by method, which take turns; prints the table."""
    device = torch.device(options.device)
    dtypes = ["float32", "bfloat16"] if precision(RunConfig()) == "bfloat16" else ["float32"]
    torch.manual_seed(0)
    methods = methods_of(options, device, dtypes)
    pool = torch.randn(4 * options.batch, CHANNELS, PIXELS, PIXELS)
    rates: dict[str, list[float]] = {dtype: [] for dtype in dtypes}
    for number in range(options.rounds + 1):
        images = list(pool[torch.randperm(len(pool))[: options.batch]])
        for dtype in dtypes:
            rates[dtype].append(matrix_rate(dtype, device))
        for method in methods:
            speed = options.batch / method.time(images, device, seed=number)
            print(f"round {number} {method.name} {method.dtype}: {speed:.2f} samples/s", file=sys.stderr)
    return table(methods, {dtype: statistics.median(found[1:]) for dtype, found in rates.items()}, options.batch)


def table(methods: list[Method], rates: dict[str, float], batch: int) -> dict[str, Any]:
    """Print a line a method; gives what --json writes."""
    for dtype, rate in rates.items():
        print(f"matrix product of {MATRIX} x {MATRIX}, {dtype}: {rate / 1e9:.0f} GFLOP/s")
    parts = "".join(f"{part + ' ms':>14}" for part in PARTS)
    print(f"{'':<17}{'':<10}{'samples/s':>10}{'tokens/s':>10}{'GFLOP':>8}{'GFLOP/s':>9}{'of matrix':>10}{parts}")
    sizes: dict[str, dict[str, Any]] = {}
    for method in methods:
        seconds, flops = method.median()
        speed = batch / seconds
        fraction = flops * speed / rates[method.dtype]
        split = {part: statistics.median(s[part] for s in method.seconds[1:]) for part in PARTS}
        shown = "".join(f"{spent * 1e3:>14.0f}" for spent in split.values())
        print(
            f"{method.name:<17}{method.dtype:<10}{speed:>10.2f}{speed * PATCHES:>10.0f}{flops / 1e9:>8.2f}"
            f"{flops * speed / 1e9:>9.0f}{fraction:>10.0%}{shown}"
        )
        found = {"samples_per_second": speed, "flops_per_sample": flops, "matrix_fraction": fraction, "seconds": split}
        sizes.setdefault(method.name, {})[method.dtype] = found
    for dtype in rates:
        if "reference" in sizes:
            ours, theirs = (sizes[name][dtype]["samples_per_second"] for name in ("reference sizes", "reference"))
            print(f"{dtype}: {ours / theirs:.2f} times the reference's samples/s (1.5 or more)")
    return results(sizes)


def results(sizes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Samples per second at the reference's sizes, and the fraction that `small` reaches in the fastest precision."""

    def speed(name: str, dtype: str) -> float | None:
        found = sizes.get(name, {}).get(dtype)
        return found and found["samples_per_second"]

    shown = sizes.get("small", sizes["reference sizes"])
    return {
        "reference": speed("reference", "float32"),
        "reference_bfloat16": speed("reference", "bfloat16"),
        "float32": speed("reference sizes", "float32"),
        "bfloat16": speed("reference sizes", "bfloat16"),
        "matrix_fraction": shown[list(shown)[-1]]["matrix_fraction"],
        "sizes": sizes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", choices=list(PREDICTORS), default=["tiny", "small", "base"])
    parser.add_argument("--reference", type=Path, help="checkout of facebookresearch/ijepa, timed in the same rounds")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the processor; more pay where cores are not shared")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile sciJEPA's blocks, as training.compile does")
    parser.add_argument("--json", type=Path, help="write samples/s, matrix_fraction and the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    found = measure(options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
