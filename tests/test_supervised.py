import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import sciJEPA.judging.supervised as home
from sciJEPA.hub import Model
from sciJEPA.judging.baselines import Climatology
from sciJEPA.judging.problem import Problem
from sciJEPA.judging.supervised import BEST, LAST, Supervised
from sciJEPA.panel import opened_problem
from sciJEPA.synthetic import travelling_waves


@pytest.fixture(scope="module")
def problem(model: Model) -> Problem:
    return opened_problem(model, travelling_waves(200), None, ["1D", "3D"])


def config_of(model: Model, steps: int):  # type: ignore[no-untyped-def]
    training = dataclasses.replace(model.config.training, steps=steps, learning_rate=3e-3)
    return dataclasses.replace(model.config, training=training)


def test_without_a_step_it_is_climatology(problem: Problem, model: Model, tmp_path: Path) -> None:
    network = Supervised._network(problem, model.config, model)
    found = Supervised(problem, network.eval()).predict(problem.test[:3])
    assert [part.shape for part in found] == [(3, 128)] * 2
    assert all((part == 0).all() for part in found)


def test_training_beats_climatology_at_every_lead(problem: Problem, model: Model, tmp_path: Path) -> None:
    method = Supervised.fit(problem, config_of(model, 150), model, tmp_path / "supervised", progress=False)
    simple = Climatology(problem.reader, [1, 3])
    errors, normal = (problem.judge(one).squared_error.mean(axis=2) for one in (method, simple))
    assert (errors < 0.5 * normal).all()
    again = Supervised.fit(problem, config_of(model, 150), model, tmp_path / "supervised", progress=False)
    np.testing.assert_array_equal(method.predict(problem.test)[0], again.predict(problem.test)[0])


def test_a_killed_training_ends_at_the_same_weights(
    problem: Problem, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Supervised.fit(problem, config_of(model, 40), model, tmp_path / "whole", progress=False)
    real, count = home._Training._advance, [0]

    def advance(self) -> None:  # type: ignore[no-untyped-def]
        count[0] += 1
        if count[0] == 18:
            raise KeyboardInterrupt
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(home._Training, "_advance", advance)
        with pytest.raises(KeyboardInterrupt):
            Supervised.fit(problem, config_of(model, 40), model, tmp_path / "killed", progress=False)
    state = torch.load(tmp_path / "killed" / LAST, weights_only=True)
    assert state["step"] == 16  # checked every second step
    rest = Supervised.fit(problem, config_of(model, 40), model, tmp_path / "killed", progress=False)
    np.testing.assert_array_equal(rest.predict(problem.test)[1], whole.predict(problem.test)[1])
    assert (tmp_path / "killed" / BEST).is_file()


def test_test_times_change_nothing(problem: Problem, model: Model, tmp_path: Path) -> None:
    ds = travelling_waves(200).load()
    ds["z"][{"time": slice(161, None)}] = 50.0
    other = opened_problem(model, ds, None, ["1D", "3D"])
    config = config_of(model, 10)
    one, two = (
        Supervised.fit(p, config, model, tmp_path / name, progress=False)
        for p, name in ((problem, "one"), (other, "two"))
    )
    np.testing.assert_array_equal(one.predict(problem.validation)[0], two.predict(problem.validation)[0])
