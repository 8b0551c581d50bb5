import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import changed, tiny_config

from sciJEPA.config import RunConfig, config_to_yaml, load_config
from sciJEPA.pretrain import pretrain


class Runs:
    """Child processes that pretrain, see killed_runs.py."""

    def __init__(self, repository: Path, folder: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(repository / "tests" / "killed_runs.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True,
        )  # fmt: skip

    def start(self, config: RunConfig, out: Path, **task: object) -> int:
        """Start a run; returns the number of its process."""
        file = self.folder / "task.yaml"
        file.write_text(config_to_yaml(config))
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"config": str(file), "out": str(out), **task}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> int:
        """Wait for the run that was started last; returns its exit status, -9 for a SIGKILL."""
        assert self.process.stdout
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def runs(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = Runs(repository, tmp_path_factory.mktemp("tasks"))
    yield runs
    assert runs.process.stdin
    runs.process.stdin.close()
    runs.process.wait()


@pytest.fixture(scope="module")
def long_config(waves: Path) -> RunConfig:
    """40 steps, a checkpoint every 3 and a row every 2: moments with a row and no checkpoint, and the reverse."""
    return tiny_config(waves, training__steps=40, training__checkpoint_every=3, training__log_every=2)


@pytest.fixture(scope="module")
def uninterrupted(long_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    pretrain(long_config, out, progress=False)
    return out


def assert_same_run(run: Path, other: Path) -> None:
    """Bytes, not numbers: weights, statistics and metrics."""
    for name in ("model/model.safetensors", "model/statistics.safetensors", "metrics.csv", "config.yaml"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name


def test_the_same_configuration_gives_the_same_bytes(
    runs: Runs, long_config: RunConfig, uninterrupted: Path, tmp_path: Path
) -> None:
    runs.start(long_config, tmp_path / "run")
    assert runs.end() == 0
    assert_same_run(tmp_path / "run", uninterrupted)


# Checkpoints are written at steps 3, 6, ..., 39 and 40, rows at 2, 4, ..., 40.
MOMENTS = [
    "after row 2",  # before any checkpoint
    "in checkpoint 0",
    "before last.ckpt 0",
    "after step 3",  # the first checkpoint has just appeared
    "after row 6",  # this row has no checkpoint yet
    "after step 6",
    "in checkpoint 5",
    "before last.ckpt 5",
    "after step 20",  # one row and two steps after a checkpoint
    "after row 40",
    "in checkpoint 13",
    "after step 40",  # trained to the end, model not saved
    "before model 0",
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_resumes_to_the_same_bytes(
    moment: str, runs: Runs, long_config: RunConfig, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "uninterrupted"
    runs.start(long_config, out, die=moment)
    assert runs.end() == -signal.SIGKILL
    assert not (out / "model").exists()
    pretrain(long_config, out, resume=True, progress=False)
    assert_same_run(out, uninterrupted)
    assert (out / "model/config.json").read_bytes() == (uninterrupted / "model/config.json").read_bytes()


def test_a_run_that_is_killed_again_and_again_ends_at_the_same_bytes(
    runs: Runs, long_config: RunConfig, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    moments = ["after row 10", "before metrics.csv 0", "in checkpoint 2", "before config.yaml 0", "after step 39"]
    for number, moment in enumerate(moments):
        runs.start(long_config, out, die=moment, resume=number > 0)
        assert runs.end() == -signal.SIGKILL
    runs.start(long_config, out, resume=True)
    assert runs.end() == 0
    assert_same_run(out, uninterrupted)


def test_a_run_that_is_killed_before_it_wrote_anything_resumes(
    runs: Runs, long_config: RunConfig, uninterrupted: Path, tmp_path: Path
) -> None:
    runs.start(long_config, tmp_path / "run", die="before config.yaml 0")
    assert runs.end() == -signal.SIGKILL
    pretrain(long_config, tmp_path / "run", resume=True, progress=False)
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("rows", [1, 8])
def test_a_kill_from_outside_at_no_particular_moment(
    rows: int, runs: Runs, long_config: RunConfig, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    child = runs.start(long_config, out)
    metrics, until = out / "metrics.csv", time.monotonic() + 60
    while time.monotonic() < until and not (metrics.exists() and len(metrics.read_text().splitlines()) > rows):
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    assert runs.end() == -signal.SIGKILL
    pretrain(long_config, out, resume=True, progress=False)
    assert_same_run(out, uninterrupted)


def test_a_killed_run_in_bfloat16_resumes_to_the_same_bytes(
    runs: Runs, long_config: RunConfig, uninterrupted: Path, tmp_path: Path
) -> None:
    config = changed(long_config, training__precision="bfloat16", training__steps=12)
    pretrain(config, tmp_path / "whole", progress=False)
    runs.start(config, tmp_path / "run", die="after step 7")
    assert runs.end() == -signal.SIGKILL
    pretrain(config, tmp_path / "run", resume=True, progress=False)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert (tmp_path / "run/metrics.csv").read_text() != (uninterrupted / "metrics.csv").read_text()
