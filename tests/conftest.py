"""Fixtures that more than one test file needs."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; its threads fight over two cores

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from jaxtyping import install_import_hook

# The shapes in the signatures are enforced in tests; running code does without (the checks fight torch.compile).
SHAPED = (
    "positions",
    "tokenizers",
    "encoder",
    "predictor",
    "target",
    "losses",
    "jepa",
    "probing.mlp",
    "probing.attentive",
)
install_import_hook([f"sciJEPA.{name}" for name in SHAPED], "runtime_types.check")

if TYPE_CHECKING:
    from sciJEPA.hub import Model

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real archives for development, outside the repository: tests that want them skip where they are absent."""
    folder = Path(os.environ.get("SCIJEPA_SHARED", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data in {folder}; point SCIJEPA_SHARED at a folder that has them")
    return folder


@pytest.fixture(scope="session")
def built_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this checkout, once a session."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(REPOSITORY)]
    if importlib.util.find_spec("hatchling"):  # else build fetches it
        command.append("--no-isolation")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Zarr store of 200 days of travelling waves."""
    from sciJEPA.synthetic import travelling_waves

    path = tmp_path_factory.mktemp("waves") / "waves.zarr"
    travelling_waves(200).to_zarr(path, consolidated=False)
    return path


@pytest.fixture(scope="session")
def run_folder(waves: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 20 steps on `waves`; not to be changed."""
    from tiny import tiny_config

    from sciJEPA.pretrain import pretrain

    out = tmp_path_factory.mktemp("runs") / "tiny"
    pretrain(tiny_config(waves), out, progress=False)
    return out


@pytest.fixture(scope="session")
def model(run_folder: Path) -> "Model":
    """The model of `run_folder`."""
    from sciJEPA.hub import load

    return load(run_folder)


@pytest.fixture(scope="session")
def two_archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two archives that share neither grid nor channels: z on 8 x 16, q and t on 6 x 12."""
    from sciJEPA.synthetic import travelling_waves

    folder = tmp_path_factory.mktemp("two")
    parts = {
        "a": travelling_waves(100),
        "b": travelling_waves(80, nlat=6, nlon=12, variables=("q", "t"), missing=0.1, seed=1),
    }
    for name, ds in parts.items():
        ds.to_zarr(folder / f"{name}.zarr", consolidated=False)
    return {name: folder / f"{name}.zarr" for name in parts}


@pytest.fixture(scope="session")
def joint_run(two_archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished joint run of 6 steps on `two_archives`; not to be changed."""
    from tiny import joint_config

    from sciJEPA.pretrain import pretrain

    out = tmp_path_factory.mktemp("runs") / "joint"
    pretrain(joint_config(two_archives), out, progress=False)
    return out


@pytest.fixture(scope="session")
def joint(joint_run: Path) -> "Model":
    """The model of `joint_run`."""
    from sciJEPA.hub import load

    return load(joint_run)


@pytest.fixture(scope="session")
def learned(waves: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on `waves` of 300 steps, past to future: long enough to know the waves."""
    from tiny import tiny_config

    from sciJEPA.pretrain import pretrain

    out = tmp_path_factory.mktemp("runs") / "learned"
    masking = {"forecast": 1, "blocks": 0}
    pretrain(
        tiny_config(waves, masking=masking, training__steps=300, training__learning_rate=3e-3), out, progress=False
    )
    return out
