import functools
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import changed, joint_config, tiny_config

from sciJEPA.archive import open_archive
from sciJEPA.config import RunConfig, TrainingConfig, config_to_yaml, load_config
from sciJEPA.errors import UserError
from sciJEPA.forecasting.issuing import forecast
from sciJEPA.hub import Model, build_jepa, load, random_model, tokenizers_of
from sciJEPA.jepa import StepOutput
from sciJEPA.latents import embed
from sciJEPA.losses import LossTerms
from sciJEPA.masking import TokenGrid
from sciJEPA.panel import probe
from sciJEPA.pretrain import pretrain
from sciJEPA.synthetic import travelling_waves
from sciJEPA.tokenizers.base import Tokens
from sciJEPA.training import validation
from sciJEPA.training.monitor import SPREAD_FLOOR, CollapseWarning

home = importlib.import_module("sciJEPA.pretrain")


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
    metrics, until = out / "metrics.csv", time.monotonic() + 300
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


# --- the run folder


def test_a_run_folder_holds_all_that_the_run_was(run_folder: Path, waves: Path, model: Model) -> None:
    assert sorted(file.name for file in run_folder.iterdir()) == [
        "checkpoints", "config.yaml", "metrics.csv", "model", "versions.json",
    ]  # fmt: skip
    assert [file.name for file in (run_folder / "checkpoints").iterdir()] == ["last.ckpt"]
    assert load_config(run_folder / "config.yaml") == tiny_config(waves)
    assert set(json.loads((run_folder / "versions.json").read_text())) >= {"python", "torch", "numpy", "sciJEPA"}
    assert model.provenance["archive"] == "waves.zarr"
    # 140 of 200 days are for training: statistics end with the 140th, 20 May
    assert model.normalizer.trained_on == ("2001-01-01 00:00:00", "2001-05-20 00:00:00")


def test_metrics_are_one_tidy_row_every_log_every_steps(run_folder: Path) -> None:
    metrics = pd.read_csv(run_folder / "metrics.csv")
    assert metrics["step"].tolist() == [5, 10, 15, 20]
    assert np.isfinite(metrics).all(axis=None)
    assert {"loss", "loss_prediction", "rank_online", "rank_target", "std_online", "validation_loss"} <= set(metrics)
    assert metrics["learning_rate"].iloc[-1] == 0


def test_the_run_folder_alone_is_enough_to_rerun(run_folder: Path, tmp_path: Path) -> None:
    pretrain(load_config(run_folder / "config.yaml"), tmp_path / "again", progress=False)
    assert_same_run(tmp_path / "again", run_folder)


def test_an_existing_folder_is_refused_and_left_alone(run_folder: Path, waves: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in run_folder.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match="exists already and nothing is written over"):
        pretrain(tiny_config(waves, seed=1), run_folder, progress=False)
    assert {file: file.read_bytes() for file in run_folder.rglob("*") if file.is_file()} == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="exists already"):
        pretrain(tiny_config(waves), tmp_path / "empty", progress=False)


def test_a_run_may_go_on_with_other_settings_of_how_it_is_computed(run_folder: Path, waves: Path, model: Model) -> None:
    config = tiny_config(waves, training__devices=2, training__shard=True, training__threads=1)
    assert pretrain(config, run_folder, resume=True, progress=False).id == model.id


@pytest.mark.parametrize("changes", [{"seed": 1}, {"training__steps": 21}, {"data__window": 6}])
def test_resuming_with_another_configuration_is_refused(changes: dict, run_folder: Path, waves: Path) -> None:
    before = {file: file.read_bytes() for file in run_folder.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=r"started with another configuration; resume it with --config .*config\.yaml"):
        pretrain(tiny_config(waves, **changes), run_folder, resume=True, progress=False)
    assert {file: file.read_bytes() for file in run_folder.rglob("*") if file.is_file()} == before


def test_resuming_a_finished_run_changes_nothing(run_folder: Path, waves: Path, model: Model) -> None:
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in run_folder.rglob("*") if file.is_file()}
    again = pretrain(tiny_config(waves), run_folder, resume=True, progress=False)
    assert again.id == model.id
    assert not again.jepa.training
    after = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in run_folder.rglob("*") if file.is_file()}
    assert after == before


def test_resuming_nothing_is_refused(waves: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        pretrain(tiny_config(waves), tmp_path / "absent", resume=True, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__archive": ""}, "no archive is given"),
        ({"data__archive": "absent.zarr"}, r"absent\.zarr"),
        ({"data__variables": ["t"]}, "no variable 't'"),
        ({"training__batch_size": 138}, "137 windows .* fewer than one batch of 138"),
        ({"data__window": 40}, "validation split .* fewer than data.window"),
        ({"tokenizer": {"patch_latitude": 3}}, "does not divide"),
    ],
)
def test_a_run_that_cannot_start_leaves_no_folder(changes: dict, message: str, waves: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        pretrain(changed(tiny_config(waves), **changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_model_returned_is_the_model_saved(waves: Path, tmp_path: Path) -> None:
    config = tiny_config(waves, training__steps=2)
    assert pretrain(config, tmp_path / "run", progress=False).id == load(tmp_path / "run").id


def test_seeds_give_different_models(model: Model, waves: Path, tmp_path: Path) -> None:
    assert pretrain(tiny_config(waves, seed=1), tmp_path / "run", progress=False).id != model.id


def test_the_process_around_a_run_is_as_it_was(waves: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), str(np.random.get_state())
    threads, filters = torch.get_num_threads(), list(warnings.filters)
    pretrain(tiny_config(waves, training__steps=2, training__threads=threads + 1), tmp_path / "run", progress=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]
    assert torch.get_num_threads() == threads
    assert list(warnings.filters) == filters
    assert torch.is_grad_enabled()


def test_nothing_is_printed_where_nobody_watches(waves: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pretrain(tiny_config(waves, training__steps=2), tmp_path / "run")
    assert capfd.readouterr() == ("", "")


# --- joint runs


def test_a_joint_run_logs_every_domain(joint_run: Path) -> None:
    metrics = pd.read_csv(joint_run / "metrics.csv")
    assert metrics["step"].tolist() == [2, 4, 6]
    own = ("loss", "loss_prediction", "rank_online", "rank_target", "std_online", "validation_loss")
    assert {f"{domain}.{name}" for domain in "ab" for name in own} <= set(metrics)
    assert "rank_online" not in metrics
    assert np.isfinite(metrics).all(axis=None)
    np.testing.assert_allclose(metrics["loss"], (metrics["a.loss"] + metrics["b.loss"]) / 2, rtol=1e-6)


def test_a_joint_run_trains_the_parts_of_every_domain(joint: Model) -> None:
    before, after = random_model(joint).jepa.state_dict(), joint.jepa.state_dict()
    assert before.keys() == after.keys()
    for name, weight in after.items():
        if weight.ndim > 1 and "domains.a.embedding.missing" not in name:  # nothing is missing in a
            assert not torch.equal(before[name], weight), name


@pytest.fixture(scope="module")
def joint_uninterrupted(two_archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "joint"
    pretrain(joint_config(two_archives, training__steps=12), out, progress=False)
    return out


# Checkpoints are written at steps 3, 6, 9 and 12, rows at 2, 4, ..., 12.
@pytest.mark.parametrize("moment", ["after row 2", "in checkpoint 1", "after step 7", "after row 12"])
def test_a_killed_joint_run_resumes_to_the_same_bytes(
    moment: str, runs: Runs, two_archives: dict[str, Path], joint_uninterrupted: Path, tmp_path: Path
) -> None:
    config = joint_config(two_archives, training__steps=12)
    runs.start(config, tmp_path / "run", die=moment)
    assert runs.end() == -signal.SIGKILL
    assert not (tmp_path / "run/model").exists()
    pretrain(config, tmp_path / "run", resume=True, progress=False)
    assert_same_run(tmp_path / "run", joint_uninterrupted)


def test_a_domain_without_an_archive_is_refused(two_archives: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no archive is given: set domains\.b\.data\.archive"):
        pretrain(joint_config({"a": two_archives["a"], "b": ""}), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_domains_pull_by_their_weight_and_alike_when_balanced(
    two_archives: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # b has weight 2 and a weight 1: (1 * 4 + 2 * 10) / 3 = 8. Balanced, each is divided by its prediction loss, 2 and
    # 5: (1 * 4 / 2 + 2 * 10 / 5) / 3 = 2.
    config, empty = joint_config(two_archives), torch.zeros(1, 1, 1)
    terms = {
        name: LossTerms(torch.tensor(prediction), *torch.zeros(3), torch.tensor(total))
        for name, prediction, total in (("a", 2.0, 4.0), ("b", 5.0, 10.0))
    }
    jepa = build_jepa(config, tokenizers_of({name: open_archive(path) for name, path in two_archives.items()}, config))
    monkeypatch.setattr(jepa, "forward", lambda data, plan, step: StepOutput(terms[data.domain], empty, empty, empty))

    def step(*, balance: bool) -> float:
        run = home._Run(jepa, changed(config, training__balance=balance))
        batch: Any = [(SimpleNamespace(domain=name), None) for name in "ab"]
        return float(run.training_step(batch, 0))

    assert step(balance=False) == pytest.approx(8)
    assert step(balance=True) == pytest.approx(2)


# --- learning


def test_the_prediction_improves_on_times_never_trained_on(learned: Path) -> None:
    # Targets are standardised: predicting their mean scores 1.
    metrics = pd.read_csv(learned / "metrics.csv")
    assert metrics["validation_loss"].iloc[-1] < 0.5
    assert metrics["validation_loss"].iloc[0] > 0.8


def test_the_latents_keep_their_variety(learned: Path) -> None:
    metrics = pd.read_csv(learned / "metrics.csv")
    assert metrics["rank_online"].min() > 4
    assert metrics["rank_target"].min() > 4
    assert metrics["std_online"].min() > 0.1


def test_a_probe_on_the_latents_beats_persistence_by_far(learned: Path, waves: Path) -> None:
    # Waves of amplitude about 1 that move 4 to 16 degrees a day, noise of 0.1: persistence is off by 0.4 after a day
    # and about 1 after three, the noise alone is 0.1. The probe must have half of the error of persistence.
    rows = probe(learned, waves, lead=["1D", "3D"], controls="persistence", probes="ridge", progress=False)
    error = rows[rows["metric"] == "rmse"].set_index(["method", "lead"])["value"]
    for lead in ("1D", "3D"):
        assert error["jepa_target", lead] < 0.5 * error["persistence", lead]
        assert error["jepa_target", lead] < 0.5 * error["climatology", lead]


def test_a_run_that_collapses_says_so_once(waves: Path, tmp_path: Path) -> None:
    # Learning rate times weight decay is 1: every step erases the matrices. Rank alone would not show it, since what is
    # left still differs in small ways; the spread falls from 1 to less than 0.01.
    config = tiny_config(
        waves,
        objective={"variance": 0, "covariance": 0},
        training__steps=80,
        training__learning_rate=0.01,
        training__weight_decay=100.0,
    )
    with pytest.warns(CollapseWarning, match=r"collapsed: .*try objective\.variance") as caught:
        pretrain(config, tmp_path / "run", progress=False)
    assert len([warning for warning in caught if warning.category is CollapseWarning]) == 1
    assert pd.read_csv(tmp_path / "run/metrics.csv")["std_online"].iloc[-1] < SPREAD_FLOOR / 2


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(waves: Path, tmp_path: Path) -> None:
    config = tiny_config(waves, training__learning_rate=1e12, training__log_every=1, training__checkpoint_every=1)
    with pytest.raises(
        UserError, match=r"the loss is (nan|inf) at step \d+; lower training.learning_rate \(now 1e\+12"
    ):
        pretrain(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run/model").exists()
    rows = tmp_path / "run/metrics.csv"
    assert not rows.exists() or np.isfinite(pd.read_csv(rows)["loss"]).all()


def test_missing_values_are_learned_around(tmp_path: Path) -> None:
    path = tmp_path / "gappy.zarr"
    travelling_waves(60, missing=0.2, levels=(500, 850)).to_zarr(path, consolidated=False)
    pretrain(tiny_config(path, training__steps=5), tmp_path / "run", progress=False)
    assert np.isfinite(pd.read_csv(tmp_path / "run/metrics.csv")["loss"]).all()


# --- objectives

OFF = {"variance": 0.0, "covariance": 0.0, "sigreg": 0.0}


@pytest.mark.parametrize(
    ("target", "standardise"),
    [
        ("ema", "batch"), ("ema", "none"), ("vicreg", "batch"), ("vicreg", "none"), ("sigreg", "none"),
        ("salt", "batch"), ("mae", "batch"),
    ],
)  # fmt: skip
def test_no_objective_collapses_silently(target: str, standardise: str, waves: Path, tmp_path: Path) -> None:
    # On purpose: the learning rate is a hundred times the usual, the average has no memory, nothing regularises.
    teacher = {"teacher_steps": 20} if target == "salt" else {}
    config = tiny_config(
        waves,
        objective={"target": target, "standardise": standardise, **OFF, **teacher},
        training__steps=80,
        training__learning_rate=0.1,
        training__half_life=1e-6,
        training__log_every=20,
    )
    with pytest.warns(
        CollapseWarning, match=r"(have collapsed|forget): .*try .*objective\..*or a lower training.learning_rate"
    ):
        pretrain(config, tmp_path / "run", progress=False)


@pytest.mark.parametrize("target", ["ema", "vicreg", "sigreg", "salt", "mae"])
def test_the_usual_settings_of_an_objective_are_not_warned_of(target: str, waves: Path, tmp_path: Path) -> None:
    teacher = {"teacher_steps": 20} if target == "salt" else {}
    config = tiny_config(waves, objective={"target": target, **teacher}, training__steps=40, training__log_every=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        pretrain(config, tmp_path / "run", progress=False)
    metrics = pd.read_csv(tmp_path / "run/metrics.csv")
    assert np.isfinite(metrics).all(axis=None)
    assert metrics[["attention_online", "attention_target"]].stack().between(0, 1).all()


def test_a_run_that_collapses_can_end_there(waves: Path, tmp_path: Path) -> None:
    config = tiny_config(
        waves, objective={"target": "vicreg", **OFF}, training__steps=80, training__learning_rate=0.1,
        training__log_every=20, training__stop_on_collapse=True,
    )  # fmt: skip
    with (
        pytest.warns(CollapseWarning),
        pytest.raises(UserError, match=r"collapsed at step \d+, see metrics\.csv.*stop_on_collapse to false"),
    ):
        pretrain(config, tmp_path / "run", progress=False)
    assert len(pd.read_csv(tmp_path / "run/metrics.csv")) < 4
    assert not (tmp_path / "run/model").exists()


@pytest.fixture(scope="module")
def salt(waves: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """A run against a teacher that it trains first: 6 and 12 steps, a checkpoint every 3."""
    objective = {"target": "salt", "teacher_steps": 6, "layers": [0, -1]}
    config = tiny_config(
        waves, objective=objective, training__steps=12, training__checkpoint_every=3, training__log_every=2
    )
    out = tmp_path_factory.mktemp("salt") / "run"
    pretrain(config, out, progress=False)
    return config, out


def test_a_frozen_teacher_is_the_target_and_stays_what_it_was(salt: tuple[RunConfig, Path]) -> None:
    config, out = salt
    student, teacher = load(out).jepa, load(out / "teacher").jepa
    for name, weight in teacher.target.module.state_dict().items():
        assert torch.equal(student.target.module.state_dict()[name], weight)
    start = build_jepa(config, student.tokenizers).encoder.state_dict()
    trained = [name for name, weight in student.encoder.state_dict().items() if weight.ndim > 1]
    for name in trained:
        if ".missing." not in name:
            assert not torch.equal(student.encoder.state_dict()[name], start[name]), name
    assert load(out / "teacher").config.objective.target == "mae"
    assert student.predictor.leave["latent"].out_features == 2 * student.encoder.width  # two layers side by side


def test_what_is_embedded_and_forecast_from_is_the_student_of_a_teacher(
    salt: tuple[RunConfig, Path], waves: Path, tmp_path: Path
) -> None:
    model = load(salt[1])
    found, student, teacher = (embed(model, waves, encoder=which) for which in (None, "online", "target"))
    assert found["latents"].identical(student["latents"]) and found.attrs["encoder"] == "online"
    assert not np.allclose(found["latents"], teacher["latents"])
    probe(model, waves, lead="1D", controls="persistence", out=tmp_path / "probe", progress=False)
    assert xr.open_zarr(tmp_path / "probe/forecasts.zarr", consolidated=False).attrs["method"] == "jepa_online"
    assert forecast(model, waves, lead="1D", init="latest").attrs["method"] == "jepa_online"


@pytest.mark.parametrize("moment", ["after row 4", "after step 3", "before model 0", "after step 7", "after row 12"])
def test_a_killed_run_with_a_teacher_resumes_to_the_same_bytes(
    moment: str, runs: Runs, salt: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    # Rows and steps up to 6 are the teacher's, where they come first; the first model is the teacher's.
    config, whole = salt
    runs.start(config, tmp_path / "run", die=moment)
    assert runs.end() == -signal.SIGKILL
    pretrain(config, tmp_path / "run", resume=True, progress=False)
    assert_same_run(tmp_path / "run", whole)
    assert_same_run(tmp_path / "run/teacher", whole / "teacher")


def test_a_teacher_of_ones_own_gives_the_same_student(salt: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, whole = salt
    given = changed(config, objective__teacher=str(whole / "teacher"), objective__teacher_steps=0)
    pretrain(given, tmp_path / "run", progress=False)
    weights = [(run / "model/model.safetensors").read_bytes() for run in (tmp_path / "run", whole)]
    assert weights[0] == weights[1]
    assert not (tmp_path / "run/teacher").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"encoder__width": 32}, "its encoder differ"), ({"data__split": [0.6, 0.2, 0.2]}, "statistics differ")],
)
def test_a_teacher_that_does_not_fit_is_refused(
    changes: dict, message: str, salt: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    given = changed(salt[0], objective__teacher=str(salt[1] / "teacher"), objective__teacher_steps=0)
    with pytest.raises(UserError, match=message):
        pretrain(changed(given, **changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# --- options


@pytest.mark.parametrize("threads", [1, 2])
def test_weights_after_50_steps_are_the_same_for_any_number_of_threads(
    threads: int, waves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(waves, training__steps=50)
    pretrain(config, tmp_path / "run", progress=False)
    monkeypatch.setattr(home, "WindowReader", functools.partial(home.WindowReader, threads=threads))
    pretrain(config, tmp_path / "again", progress=False)
    assert_same_run(tmp_path / "again", tmp_path / "run")


def test_accumulated_batches_are_one_batch(waves: Path, tmp_path: Path) -> None:
    # Patches as targets need no statistics of a batch, and past to future without a share has the same masks. Rounding
    # of 1e-7, which Adam carries into steps of up to 1e-3.
    whole = tiny_config(waves, objective={"target": "mae"}, training__steps=4, training__batch_size=16)
    parts = changed(whole, training__batch_size=8, training__accumulate=2)
    first, second = (pretrain(c, tmp_path / n, progress=False) for c, n in ((whole, "whole"), (parts, "parts")))
    for name, weight in first.jepa.state_dict().items():
        torch.testing.assert_close(second.jepa.state_dict()[name], weight, atol=2e-4, rtol=1e-3, msg=name)
    assert pd.read_csv(tmp_path / "parts/metrics.csv")["step"].tolist() == [4]


OPTIONS = {
    "training__accumulate": 3,
    "training__schedule": "constant",
    "training__weight_decay_end": 0.4,
    "training__keep": "best",
    "objective": {"target": "sigreg", "variance": 0.1},
    "masking": {"forecast": 1, "blocks": 1},
}


def test_a_killed_run_with_all_options_resumes_to_the_same_bytes(runs: Runs, waves: Path, tmp_path: Path) -> None:
    config = tiny_config(waves, **OPTIONS, training__steps=12, training__checkpoint_every=3, training__log_every=2)
    pretrain(config, tmp_path / "whole", progress=False)
    assert pd.read_csv(tmp_path / "whole/metrics.csv")["step"].tolist() == [2, 4, 6, 8, 10, 12]
    for moment in ("after step 7", "after row 8"):
        runs.start(config, tmp_path / moment, die=moment)
        assert runs.end() == -signal.SIGKILL
        pretrain(config, tmp_path / moment, resume=True, progress=False)
        assert_same_run(tmp_path / moment, tmp_path / "whole")


@pytest.mark.parametrize("batch_size", [4, 48, 128])
def test_the_online_probe_sees_the_whole_validation_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    travelling_waves(2800).to_zarr(tmp_path / "waves.zarr", consolidated=False)
    config = tiny_config(tmp_path / "waves.zarr", training__batch_size=batch_size, training__steps=1)
    found = []

    def probed(latents: torch.Tensor, tokens: Sequence[Tokens], grid: TokenGrid) -> float:
        values = torch.cat([part.values for part in tokens])
        found.append(len(values.flatten(1).unique(dim=0)))
        assert len(latents) == len(values)
        return 1.0

    monkeypatch.setattr(validation, "probe_error", probed)
    pretrain(config, tmp_path / "run", progress=False)
    assert found and min(found) >= 128


def test_the_best_weights_are_those_with_the_lowest_probe_error(waves: Path, tmp_path: Path) -> None:
    # Far too high a learning rate: latents get worse, and the last weights are not the best.
    config = tiny_config(
        waves, training__keep="best", training__learning_rate=0.1, training__log_every=2, training__half_life=1e-6
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        best = pretrain(config, tmp_path / "best", progress=False)
        last = pretrain(changed(config, training__keep="last"), tmp_path / "last", progress=False)
    errors = pd.read_csv(tmp_path / "best/metrics.csv").set_index("step")["probe_error"]
    assert errors.idxmin() < 20 and best.id != last.id
    with safe_open(tmp_path / "best/checkpoints/best.safetensors", "pt") as file:
        assert file.metadata()["step"] == str(errors.idxmin())
    kept = load_file(tmp_path / "best/checkpoints/best.safetensors")
    for name, weight in load(tmp_path / "best").jepa.state_dict().items():
        assert torch.equal(weight, kept[name])


def test_activations_that_are_computed_again_change_nothing(
    long_config: RunConfig, uninterrupted: Path, tmp_path: Path
) -> None:
    model = pretrain(changed(long_config, training__checkpoint_activations=True), tmp_path / "run", progress=False)
    assert model.id == load(uninterrupted).id
    assert "forward" not in vars(model.jepa.encoder.blocks[0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_compiled_blocks_learn_the_same(repository: Path, waves: Path, tmp_path: Path) -> None:
    # In a process without checks of shapes, which the compiler does not understand.
    config = tiny_config(waves, training__steps=4)
    plain = pretrain(config, tmp_path / "plain", progress=False)
    (tmp_path / "run.yaml").write_text(config_to_yaml(changed(config, training__compile=True)))
    code = "import sys, sciJEPA; sciJEPA.pretrain(sciJEPA.load_config(sys.argv[1]), sys.argv[2], progress=False)"
    environment = os.environ | {
        "PYTHONPATH": str(repository),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    command = [sys.executable, "-c", code, str(tmp_path / "run.yaml"), str(tmp_path / "fast")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    fast = load_file(tmp_path / "fast/model/model.safetensors")
    for name, weight in plain.jepa.state_dict().items():
        torch.testing.assert_close(fast[name], weight, atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "training.schedule must be cosine or constant, got 'linear'"),
        ({"keep": "all"}, "training.keep must be last or best"),
        ({"accumulate": 0}, "training.accumulate must be at least 1"),
        ({"cooldown": 1.5}, r"training.cooldown must lie in \[0, 1\]"),
        ({"weight_decay_end": -1.0}, "weight_decay_end be at least 0"),
    ],
)
def test_impossible_options_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingConfig(**changes)
