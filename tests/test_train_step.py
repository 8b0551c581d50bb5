"""benchmarks/train_step.py runs, and counts what a step takes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "train_step.py"
PEER = {
    "src/__init__.py": "",
    "src/masks/__init__.py": "",
    "src/models/__init__.py": "",
    "src/masks/utils.py": """
        import torch
        def apply_masks(x, masks):
            return torch.cat([x.take_along_dim(mask[..., None], dim=1) for mask in masks])
    """,
    "src/masks/multiblock.py": """
        import torch
        class MaskCollator:
            def __init__(self, npred, **options):
                self.npred = npred
            def __call__(self, images):
                count = len(images)
                masks = [torch.arange(40 + k, 45 + k).expand(count, -1) for k in range(self.npred)]
                return torch.stack(images), [torch.arange(30).expand(count, -1)], masks
    """,
    "src/models/vision_transformer.py": """
        import torch
        from torch import nn
        from src.masks.utils import apply_masks
        class Encoder(nn.Conv2d):
            def forward(self, images, masks=None):
                tokens = super().forward(images).flatten(2).transpose(1, 2)
                return tokens if masks is None else apply_masks(tokens, masks)
        class Predictor(nn.Linear):
            def forward(self, context, visible, wanted):
                whole = super().forward(context.mean(dim=1, keepdim=True))
                return torch.cat([whole.expand(-1, mask.shape[1], -1) for mask in wanted])
        def vit_small(img_size, patch_size):
            return Encoder(3, 384, patch_size, patch_size)
        def vit_predictor(embed_dim, **sizes):
            return Predictor(embed_dim, embed_dim)
    """,
}
"""A checkout with the names of the reference, and next to nothing in them."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_step", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_step"] = module
    spec.loader.exec_module(module)
    return module


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True)


def test_a_small_run_beside_a_reference_writes_its_rates(tmp_path: Path) -> None:
    for name, text in PEER.items():
        path = tmp_path / "peer" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line[8:] for line in text.splitlines()))
    words = ["--batch", 1, "--rounds", 1, "--sizes", "tiny", "--reference", tmp_path / "peer"]
    done = run(*words, "--json", tmp_path / "rates.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "rates.json").read_text())
    assert found["reference"] > found["float32"] > 0
    assert 0 < found["matrix_fraction"] < 1
    parts = found["sizes"]["tiny"]["float32"]["seconds"]
    assert list(parts) == ["data", "target", "context", "predictor", "optimizer"] and min(parts.values()) > 0
    assert "times the reference's samples/s" in done.stdout


def test_what_is_no_checkout_is_refused(tmp_path: Path) -> None:
    done = run("--reference", tmp_path)
    assert done.returncode == 1 and "is no checkout of facebookresearch/ijepa" in done.stderr


def test_flops_agree_with_a_count_of_a_real_step(script: ModuleType) -> None:
    device = torch.device("cpu")
    configs = script.EncoderConfig(size="tiny"), script.PredictorConfig(width=64, depth=2)
    jepa = script.build(*configs, script.ObjectiveConfig(variance=0.0, covariance=0.0))
    step, draw = script.Ours(jepa, "float32", device), script.random_masks(*script.HALF)
    images = list(torch.randn(2, script.CHANNELS, script.PIXELS, script.PIXELS))
    # The counter knows matrix products, and not the fused attention of a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step(lambda: draw(images), script.Clock(device))
    assert 2 * step.flops() == pytest.approx(counter.get_total_flops(), rel=0.05)
