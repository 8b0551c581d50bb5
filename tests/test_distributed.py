from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import two_processes
from safetensors.torch import load_file
from tiny import changed, joint_config, tiny_config, two_devices

from sciJEPA.config import RunConfig
from sciJEPA.errors import UserError
from sciJEPA.hub import load
from sciJEPA.pretrain import pretrain
from sciJEPA.training.distributed import all_sum, alone, gather, launch, touch, world

OBJECTIVES: list[dict[str, Any]] = [
    {"target": "ema"},
    {"target": "ema", "standardise": "token", "distance": "l1", "variance": 1.0, "covariance": 0.04, "sigreg": 0.05},
    {"target": "ema", "standardise": "none", "distance": "smooth_l1", "scope": "future", "layers": (0, -1)},
    {"target": "ema", "reconstruction": 0.5},
    {"target": "vicreg"},
    {"target": "vicreg", "over": "time", "standardise": "none"},
    {"target": "sigreg"},
    {"target": "sigreg", "over": "time", "standardise": "none"},
    {"target": "salt", "teacher": "unused", "layers": (-1, 0)},
    {"target": "mae"},
]


def test_one_process_is_alone() -> None:
    x = torch.ones(3)
    assert world() == 1 and all_sum(x) is x and torch.equal(gather(x), x)
    with alone():
        assert world() == 1


def test_touched_parameters_have_a_gradient_of_zero() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.full((3,), float("inf"), requires_grad=True)
    loss = touch((used**2).sum(), [used, unused])
    assert loss == 2
    loss.backward()
    assert used.grad is not None and used.grad.tolist() == [2, 2]
    assert unused.grad is not None and unused.grad.tolist() == [0, 0, 0]


def test_sums_and_their_gradients_are_worked_by_hand(tmp_path: Path) -> None:
    # Parts (1, 2) and (2, 2): the sum is (3, 4) and each process's loss is 9 + 16. Each asks for (6, 8), and both
    # together for twice of it, which the mean over processes halves.
    launch(2, two_processes.sums, str(tmp_path))
    for rank in range(2):
        total, gradient, together = torch.load(tmp_path / f"{rank}.pt")
        assert total.tolist() == [3, 4] and gradient.tolist() == [12, 16]
        assert together.ravel().tolist() == [0, 10, 1, 11]  # rows of the whole batch: even ones are the first process's


@pytest.mark.parametrize("missing", [False, True])
def test_two_processes_have_the_loss_and_gradient_of_one_with_the_double_batch(missing: bool, tmp_path: Path) -> None:
    launch(2, two_processes.losses, OBJECTIVES, missing, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for number, objective in enumerate(OBJECTIVES):
        jepa = two_processes.build(objective)
        loss = two_processes.step_loss(jepa, *two_processes.windows(missing))
        loss.backward()
        expected = two_processes.gradients(jepa)
        assert sum(gradient.abs().sum() for gradient in expected.values()) > 0.1
        for own_loss, own in (found[0][number], found[1][number]):
            assert own_loss == pytest.approx(loss.item(), rel=2e-6), objective
            assert own.keys() == expected.keys()
            for name in own:
                torch.testing.assert_close(own[name], expected[name], atol=2e-6, rtol=2e-4, msg=f"{objective} {name}")


def test_processes_do_see_unlike_numbers_of_tokens() -> None:
    parts = [two_processes.share(*two_processes.windows(True), rank, 2) for rank in range(2)]
    assert parts[0][0].observed is None and parts[1][0].observed is not None


def test_an_error_of_one_process_is_that_of_the_run() -> None:
    with pytest.raises(UserError, match="the second process has a complaint"):
        launch(2, two_processes.fail)


# --- runs


def close(run: Path, other: Path, atol: float) -> None:
    """The same weights and metrics up to rounding."""
    own, expected = load_file(run / "model/model.safetensors"), load_file(other / "model/model.safetensors")
    for name in expected:
        torch.testing.assert_close(own[name], expected[name], atol=atol, rtol=1e-3, msg=name)
    rows, rows_expected = pd.read_csv(run / "metrics.csv"), pd.read_csv(other / "metrics.csv")
    pd.testing.assert_frame_equal(rows, rows_expected, atol=1e-3, rtol=1e-2)


@pytest.fixture(scope="module")
def single(waves: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """A run of 6 steps in one process."""
    config = tiny_config(waves, training__steps=6, training__log_every=2, training__checkpoint_every=3)
    out = tmp_path_factory.mktemp("single") / "run"
    pretrain(config, out, progress=False)
    return config, out


@pytest.fixture(scope="module")
def double(single: tuple[RunConfig, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """The same run in two processes."""
    config, out = changed(single[0], training__devices=2), tmp_path_factory.mktemp("double") / "run"
    assert pretrain(config, out, progress=False).id == load(out).id
    return config, out


@two_devices
def test_a_run_of_two_processes_ends_at_the_weights_of_one(
    single: tuple[RunConfig, Path], double: tuple[RunConfig, Path]
) -> None:
    # Rounding of 1e-7, which Adam carries into steps of up to 1e-3 where a gradient is near zero.
    close(double[1], single[1], atol=2e-4)


@two_devices
def test_a_run_of_two_processes_resumes_to_the_same_bytes(double: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, whole = double
    with pytest.raises(UserError, match="processes ended unexpectedly"):
        launch(2, two_processes.die_after, config, str(tmp_path / "run"), 4)
    assert not (tmp_path / "run/model").exists() and (tmp_path / "run/checkpoints/last.ckpt").exists()
    pretrain(config, tmp_path / "run", resume=True, progress=False)
    for name in ("model/model.safetensors", "metrics.csv", "config.yaml"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name


@two_devices
def test_a_joint_run_with_gaps_in_two_processes(two_archives: dict[str, Path], tmp_path: Path) -> None:
    # Nothing is missing in a, a tenth in b.
    config = joint_config(two_archives, training__steps=4)
    pretrain(config, tmp_path / "one", progress=False)
    pretrain(changed(config, training__devices=2), tmp_path / "two", progress=False)
    close(tmp_path / "two", tmp_path / "one", atol=2e-4)


def test_a_batch_that_cannot_be_shared_is_refused(waves: Path) -> None:
    with pytest.raises(UserError, match="a batch of 9 windows cannot be shared by 2 devices"):
        tiny_config(waves, training__batch_size=9, training__devices=2)


@two_devices
def test_an_error_in_a_run_of_two_processes_is_told_as_in_one(waves: Path, tmp_path: Path) -> None:
    config = tiny_config(waves, training__devices=2, data__variables=["t"])
    with pytest.raises(UserError, match="no variable 't'"):
        pretrain(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
