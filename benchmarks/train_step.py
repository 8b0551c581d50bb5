"""Samples per second of a training step, beside I-JEPA's own code and beside the matrix products of this machine.

    python benchmarks/train_step.py                                    # tiny, small, base and the reference's sizes
    python benchmarks/train_step.py --reference ../ijepa --sizes small --json train_step.json
    python benchmarks/train_step.py --reference ../ijepa --sizes small --compile           # where there is a GPU
    python benchmarks/train_step.py --sizes base large --batch 256 --dtypes bfloat16 --compile

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

With --compile a step of sciJEPA is compiled at once, which needs sizes that do not change, as those of its own masks do
not: then its masks have the collator's average sizes (`REFERENCE_MASKS`), and not those of each batch.

Methods take turns: one step of each in a round, and in every round a matrix product in each precision. Printed are
medians of the rounds after the first. On a GPU a turn is many steps (--steps), which nothing stops to read a clock, and
batches are drawn and pinned before it begins, on both sides, as loaders do in their workers: there "data" is their way
to the GPU. Model FLOPs are the multiplications and additions of the matrix products that the
step needs (a backward pass is two forward passes); "of matrix" is their rate over that of a product of square matrices.
"""

import argparse
import contextlib
import copy
import functools
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
from sciJEPA.jepa import JEPA, ObjectiveConfig, compiled_in_training
from sciJEPA.masking import MaskPlan
from sciJEPA.memory import keep_freed_memory
from sciJEPA.plan import precision, step_flops
from sciJEPA.predictor import PredictorConfig
from sciJEPA.tokenizers.base import Batch
from sciJEPA.tokenizers.grid import GridSpec, GridTokenizer, GridTokenizerConfig

CHANNELS, PIXELS, PATCH = 3, 224, 16
PATCHES = (PIXELS // PATCH) ** 2
REFERENCE_MASKS = 56, 4 * 33  # visible tokens and targets where the reference does not draw them: its averages
HALF = PATCHES // 2, PATCHES // 2
PREDICTORS = {"tiny": (64, 2), "small": (96, 2), "base": (192, 4), "large": (384, 6)}
PARTS = ("data", "target", "context", "predictor", "at once", "optimizer")
"""Of a step; at once: target, context and predictor where they are compiled together."""
MATRIX = {"cpu": 1024, "cuda": 8192}
STEPS = {"cpu": 1, "cuda": 20}
MASKS = {"pred_mask_scale": (0.15, 0.2), "enc_mask_scale": (0.85, 1.0), "aspect_ratio": (0.75, 1.5), "min_keep": 10}
"""Those of the reference's configurations."""

Drawn = tuple[Tensor, list[Tensor], list[Tensor]]
"""A stack of images, visible token numbers and target token numbers of each image, as lists of masks."""
Draw = Callable[[list[Tensor]], Drawn]
OURS = "reference sizes"
"""Name of sciJEPA at the sizes of the reference."""


class Clock:
    """Seconds by part of a step; on a GPU by marks in its queue of work, for which nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.spans = device, list[tuple[str, Any, Any, int]]()

    def now(self) -> Any:
        """A moment: on a GPU that at which it gets here."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def count(self, part: str, start: Any, stop: Any, sign: int = 1) -> None:
        """Count the time between two moments as that of a part, or as not that of it."""
        self.spans.append((part, start, stop, sign))

    @contextlib.contextmanager
    def part(self, name: str, within: str | None = None) -> Iterator[None]:
        """Count the time until the end of the context, and not as that of the part around it."""
        start = self.now()
        yield
        stop = self.now()
        self.count(name, start, stop)
        if within:
            self.count(within, start, stop, -1)

    def seconds(self) -> dict[str, float]:
        """By part."""
        found = dict.fromkeys(PARTS, 0.0)
        wait(self.device)
        for part, start, stop, sign in self.spans:
            found[part] += sign * (stop - start if isinstance(start, float) else start.elapsed_time(stop) / 1e3)
        return found


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Method:
    """One model in one precision."""

    name: str
    dtype: str
    draw: Draw
    step: Callable[[Callable[[], Drawn], Clock], None]
    flops: Callable[[], float]
    """Of a sample, in the last step."""
    seconds: list[float] = field(default_factory=list)
    """Of a step, in each turn."""
    parts: list[dict[str, float]] = field(default_factory=list)
    counted: list[float] = field(default_factory=list)
    """FLOPs of a sample in each turn: masks differ in size."""

    def turn(self, images: list[list[Tensor]], device: torch.device, seed: int) -> float:
        """Seconds of a step, taken from one for each batch; the seed makes the masks of a round the same for all."""
        torch.manual_seed(seed)
        drawn = [functools.partial(self.draw, batch) for batch in images]
        if device.type == "cuda":
            drawn = [functools.partial(_same, pinned(draw())) for draw in drawn]
        clock, flops = Clock(device), []
        wait(device)
        start = time.perf_counter()
        for draw in drawn:
            self.step(draw, clock)
            flops.append(self.flops())
        wait(device)
        self.seconds.append((time.perf_counter() - start) / len(images))
        self.parts.append({part: spent / len(images) for part, spent in clock.seconds().items()})
        self.counted.append(statistics.mean(flops))
        return self.seconds[-1]

    def median(self) -> tuple[float, float]:
        """Seconds of a step, and FLOPs of a sample, without the first round."""
        return statistics.median(self.seconds[1:]), statistics.mean(self.counted[1:])


def pinned(drawn: Drawn) -> Drawn:
    """The same where the GPU can fetch it by itself."""
    stack, visible, wanted = drawn
    return stack.pin_memory(), [mask.pin_memory() for mask in visible], [mask.pin_memory() for mask in wanted]


def _same(drawn: Drawn) -> Drawn:
    return drawn


# --- sciJEPA ----------------------------------------------------------------------------------------------------------


def build(encoder: EncoderConfig, predictor: PredictorConfig, objective: ObjectiveConfig) -> JEPA:
    degrees = tuple(np.linspace(-80, 80, PIXELS).tolist())
    spec = GridSpec(("red", "green", "blue"), degrees, degrees, 24.0, False, window=1, context=1)
    config = GridTokenizerConfig(patch_latitude=PATCH, patch_longitude=PATCH)
    return JEPA({"image": GridTokenizer(config, spec)}, encoder, predictor, objective)


class Ours:
    """The step of `sciJEPA.pretrain` without Lightning around it."""

    def __init__(self, jepa: JEPA, dtype: str, device: torch.device, compile_as: str | None = None) -> None:
        self.jepa, self.dtype, self.device, self.at_once = jepa.to(device), dtype, device, False
        if compile_as == "blocks":
            for block in [*jepa.encoder.blocks, *jepa.predictor.blocks, *jepa.target_encoder.blocks]:
                block.compile()
        elif compile_as:
            mode = None if compile_as == "step" else "reduce-overhead"
            jepa.__dict__["compare"], self.at_once = compiled_in_training(jepa.compare, mode=mode), True
        learned = [p for p in jepa.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.learned, self.optimizer = learned, torch.optim.AdamW(groups, lr=1e-4, fused=True)
        self.sizes = (0, 0)

    def flops(self) -> float:
        return step_flops(self.jepa, "image", *self.sizes, scope=PATCHES)

    def __call__(self, draw: Callable[[], Drawn], clock: Clock) -> None:
        with clock.part("data"):
            stack, visible, wanted = draw()
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
        if self.at_once:
            with clock.part("at once"):
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
                    output = self.jepa(batch, plan)
                output.terms.total.backward()
            return
        start = clock.now()
        encoder, target = self.jepa.encoder, self.jepa.target_encoder
        with timed(encoder, "forward", clock, "context"), timed(target, "outputs", clock, "target"):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
                output = self.jepa(batch, plan)
            # When the gradient of the context's latents is there, the rest of the backward pass is the encoder's.
            reached: list[Any] = []
            output.context.register_hook(lambda gradient: reached.append(clock.now()))
            output.terms.total.backward()
        clock.count("context", reached[0], clock.now())
        clock.count("predictor", start, reached[0])


@contextlib.contextmanager
def timed(module: torch.nn.Module, method: str, clock: Clock, part: str) -> Iterator[None]:
    """Count the time within a method of a module as that of a part and not of the predictor while this lasts."""
    original = getattr(module, method)

    def counted(*arguments: Any) -> Any:
        with clock.part(part, within="predictor"):
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

    def __init__(self, dtype: str, device: torch.device) -> None:
        from src.masks.utils import apply_masks  # type: ignore[import-not-found]
        from src.models.vision_transformer import vit_predictor, vit_small  # type: ignore[import-not-found]

        self.dtype, self.device, self.apply_masks = dtype, device, apply_masks
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

    def __call__(self, draw: Callable[[], Drawn], clock: Clock) -> None:
        with clock.part("data"):
            stack, visible, wanted = draw()
            stack = stack.to(self.device, non_blocking=True)
            visible, wanted = (
                [mask.to(self.device, non_blocking=True) for mask in masks] for masks in (visible, wanted)
            )
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
        reached: list[Any] = []
        context.register_hook(lambda gradient: reached.append(clock.now()))
        start = clock.now()
        loss.backward()
        clock.count("predictor", start, reached[0])
        clock.count("context", reached[0], clock.now())
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
    """All that takes turns."""
    methods = []
    for dtype in dtypes:
        if options.reference:
            masks = collator(options.reference)  # one each, as it counts its calls; and it finds the checkout
            reference = Reference(dtype, device)
            methods.append(Method("reference", dtype, masks, reference, reference.flops))
        for size in [*(["reference"] if options.reference else []), *options.sizes]:
            ours = Ours(build(*configs_of(size)), dtype, device, options.compile)
            masks = random_masks(*(REFERENCE_MASKS if size == "reference" else HALF))
            if options.reference and size == "reference" and options.compile not in ("step", "graphs"):
                masks = collator(options.reference)
            methods.append(Method(OURS if size == "reference" else size, dtype, masks, ours, ours.flops))
    return methods


def configs_of(size: str) -> tuple[EncoderConfig, PredictorConfig, ObjectiveConfig]:
    """Those of a size of the dial, or of the reference."""
    if size == "reference":
        objective = ObjectiveConfig(distance="smooth_l1", standardise="token", variance=0.0, covariance=0.0)
        return EncoderConfig(width=384, depth=12, heads=6), PredictorConfig(width=384, depth=6, heads=6), objective
    width, depth = PREDICTORS[size]
    return EncoderConfig(size=size), PredictorConfig(width=width, depth=depth), ObjectiveConfig()


def matrix_rate(dtype: str, device: torch.device, repeats: int = 5) -> float:
    """FLOP/s of a product of two square matrices."""
    size = MATRIX[device.type]
    matrix, seconds = torch.randn(size, size, device=device).to(getattr(torch, dtype)), []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[1:])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Samples per second by method, which take turns; prints the table."""
    device = torch.device(options.device)
    dtypes = options.dtypes or (["float32", "bfloat16"] if precision(RunConfig()) == "bfloat16" else ["float32"])
    torch.manual_seed(0)
    methods = methods_of(options, device, dtypes)
    pool = torch.randn(4 * options.batch, CHANNELS, PIXELS, PIXELS)
    rates: dict[str, list[float]] = {dtype: [] for dtype in dtypes}
    for number in range(options.rounds + 1):
        orders = [torch.randperm(len(pool))[: options.batch] for _ in range(options.steps or STEPS[device.type])]
        for dtype in dtypes:
            rates[dtype].append(matrix_rate(dtype, device))
        for method in methods:
            speed = options.batch / method.turn([list(pool[order]) for order in orders], device, seed=number)
            print(f"round {number} {method.name} {method.dtype}: {speed:.2f} samples/s", file=sys.stderr)
    print(f"matrix products of {MATRIX[device.type]} x {MATRIX[device.type]} on {name_of(device)}")
    return table(methods, {dtype: statistics.median(found[1:]) for dtype, found in rates.items()}, options.batch)


def name_of(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of a processor"


def table(methods: list[Method], rates: dict[str, float], batch: int) -> dict[str, Any]:
    """Print a line a method; gives what --json writes."""
    for dtype, rate in rates.items():
        print(f"{dtype}: {rate / 1e9:.0f} GFLOP/s")
    shown_parts = [part for part in PARTS if any(spent[part] for method in methods for spent in method.parts)]
    parts = "".join(f"{part + ' ms':>14}" for part in shown_parts)
    print(f"{'':<17}{'':<10}{'samples/s':>10}{'tokens/s':>10}{'GFLOP':>8}{'GFLOP/s':>9}{'of matrix':>10}{parts}")
    sizes: dict[str, dict[str, Any]] = {}
    for method in methods:
        seconds, flops = method.median()
        speed = batch / seconds
        fraction = flops * speed / rates[method.dtype]
        split = {part: statistics.median(s[part] for s in method.parts[1:]) for part in shown_parts}
        shown = "".join(f"{spent * 1e3:>14.3g}" for spent in split.values())
        print(
            f"{method.name:<17}{method.dtype:<10}{speed:>10.2f}{speed * PATCHES:>10.0f}{flops / 1e9:>8.2f}"
            f"{flops * speed / 1e9:>9.0f}{fraction:>10.0%}{shown}"
        )
        found = {"samples_per_second": speed, "flops_per_sample": flops, "matrix_fraction": fraction, "seconds": split}
        sizes.setdefault(method.name, {})[method.dtype] = found
    for dtype in rates:
        if "reference" in sizes:
            ours, theirs = (sizes[name][dtype]["samples_per_second"] for name in (OURS, "reference"))
            print(f"{dtype}: {ours / theirs:.2f} times the reference's samples/s")
    return results(sizes)


def results(sizes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Samples per second at the reference's sizes, and the fraction that `small` reaches in the fastest precision."""

    def speed(name: str, dtype: str) -> float | None:
        found = sizes.get(name, {}).get(dtype)
        return found and found["samples_per_second"]

    shown = sizes.get("small", list(sizes.values())[-1])
    return {
        "reference": speed("reference", "float32"),
        "reference_bfloat16": speed("reference", "bfloat16"),
        "float32": speed(OURS, "float32"),
        "bfloat16": speed(OURS, "bfloat16"),
        "matrix_fraction": shown[list(shown)[-1]]["matrix_fraction"],
        "sizes": sizes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", choices=["reference", *PREDICTORS], default=["tiny", "small", "base"])
    parser.add_argument(
        "--reference", type=Path, help="checkout of facebookresearch/ijepa, timed in the same rounds, as is its size"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of a turn; by default 1, on a GPU 20")
    parser.add_argument("--dtypes", nargs="*", choices=["float32", "bfloat16"], help="by default all that it has")
    parser.add_argument("--threads", type=int, default=1, help="of the processor; more pay where cores are not shared")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--compile",
        nargs="?",
        const="graphs",
        choices=["blocks", "step", "graphs"],
        help="compile sciJEPA's step and start it as CUDA graphs, as training.compile does on a GPU; the step without "
        "graphs; or its blocks alone, as training.compile does elsewhere",
    )
    parser.add_argument("--json", type=Path, help="write samples/s, matrix_fraction and the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    torch.backends.cuda.enable_cudnn_sdp(False)  # as in sciJEPA's training; the reference does not use it
    found = measure(options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
