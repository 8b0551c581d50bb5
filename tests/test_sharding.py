from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import two_processes
from safetensors.torch import load_file
from tiny import changed, tiny_config, two_devices

from sciJEPA.config import RunConfig
from sciJEPA.errors import UserError
from sciJEPA.pretrain import Checkpoint, pretrain
from sciJEPA.training.distributed import launch
from sciJEPA.training.sharding import share_of, whole

OBJECTIVES: list[dict[str, Any]] = [
    {"target": "ema"},
    {"target": "ema", "standardise": "token", "layers": (0, -1), "variance": 1.0},
    {"target": "vicreg"},
    {"target": "sigreg", "standardise": "none"},
    {"target": "mae"},
]


def test_what_is_whole_stays_as_it_is() -> None:
    x = torch.ones(3)
    assert whole({"a": [x, 1]}) == {"a": [x, 1]}
    assert share_of(x, torch.zeros(3)) is x


def test_weights_in_shares_have_the_loss_and_gradient_of_one_process(tmp_path: Path) -> None:
    launch(2, two_processes.shares, OBJECTIVES, True, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for number, objective in enumerate(OBJECTIVES):
        jepa = two_processes.build(objective)
        loss = two_processes.step_loss(jepa, *two_processes.windows(True))
        loss.backward()
        expected = two_processes.gradients(jepa)
        for own_loss, own, _ in (found[0][number], found[1][number]):
            assert own_loss == pytest.approx(loss.item(), rel=2e-6), objective
            assert own.keys() == expected.keys()
            for name in own:
                torch.testing.assert_close(own[name], expected[name], atol=2e-6, rtol=2e-4, msg=f"{objective} {name}")
        # Rows are dealt out: of a weight with an odd number of them the first process keeps one more.
        assert found[0][number][2] + found[1][number][2] == pytest.approx(1)
        assert 0.5 <= found[0][number][2] < 0.6


# --- runs


@pytest.fixture(scope="module")
def single(waves: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """A run of 6 steps in one process."""
    config = tiny_config(waves, training__steps=6, training__log_every=2, training__checkpoint_every=3)
    out = tmp_path_factory.mktemp("single") / "run"
    pretrain(config, out, progress=False)
    return config, out


def in_shares(config: RunConfig) -> RunConfig:
    """The same run in two processes that share its weights."""
    return changed(config, training__devices=2, training__shard=True)


def close(run: Path, other: Path) -> None:
    """The same weights up to rounding, which Adam carries into steps of up to 1e-3 where a gradient is near zero."""
    own, expected = load_file(run / "model/model.safetensors"), load_file(other / "model/model.safetensors")
    assert own.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(own[name], expected[name], atol=2e-4, rtol=1e-3, msg=name)


@two_devices
def test_a_run_in_shares_leaves_the_files_of_one_process(single: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, whole_run = single
    # Activations are computed again in the backward pass, from weights that are brought together again.
    further = {"training__keep": "best", "training__checkpoint_activations": True}
    pretrain(changed(in_shares(config), **further), tmp_path / "run", progress=False)
    own, expected = (torch.load(run / "checkpoints/last.ckpt") for run in (tmp_path / "run", whole_run))
    assert own.keys() == expected.keys() and list(own["state_dict"]) == list(expected["state_dict"])
    for name, value in expected["state_dict"].items():
        torch.testing.assert_close(own["state_dict"][name], value, atol=2e-4, rtol=1e-3, msg=name)
    (states,), (states_expected,) = own["optimizer_states"], expected["optimizer_states"]
    assert states["param_groups"] == states_expected["param_groups"]
    for number, memory in states_expected["state"].items():
        for name, value in memory.items():
            torch.testing.assert_close(states["state"][number][name], value, atol=1e-5, rtol=1e-2, msg=name)
    rows, rows_expected = (pd.read_csv(run / "metrics.csv") for run in (tmp_path / "run", whole_run))
    pd.testing.assert_frame_equal(rows, rows_expected, atol=1e-3, rtol=1e-2)
    best, kept = (
        load_file(tmp_path / "run" / part) for part in ("checkpoints/best.safetensors", "model/model.safetensors")
    )
    assert best.keys() == kept.keys() and all(torch.equal(best[name], kept[name]) for name in kept)


@two_devices
def test_a_run_in_shares_goes_on_without_them(single: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, whole_run = single
    with pytest.raises(UserError, match="processes ended unexpectedly"):
        launch(2, two_processes.die_after, in_shares(config), str(tmp_path / "run"), 4)
    assert not (tmp_path / "run/model").exists() and (tmp_path / "run/checkpoints/last.ckpt").exists()
    pretrain(config, tmp_path / "run", resume=True, progress=False)
    close(tmp_path / "run", whole_run)


@two_devices
def test_a_run_of_one_process_goes_on_in_shares(
    single: tuple[RunConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole_run = single

    class Killed(Exception):
        pass

    def save_and_die(self: Checkpoint, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path, weights_only=False)
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoint, "on_train_batch_end", save_and_die)
        pretrain(config, tmp_path / "run", progress=False)
    pretrain(in_shares(config), tmp_path / "run", resume=True, progress=False)
    close(tmp_path / "run", whole_run)


def test_shares_of_one_process_are_refused(waves: Path) -> None:
    with pytest.raises(UserError, match=r"training.devices is 1; set it to 2 or more"):
        tiny_config(waves, training__shard=True)
