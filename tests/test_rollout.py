import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from tiny import tiny_config

from sciJEPA.errors import UserError
from sciJEPA.forecasting.rollout import Carrier, LatentRollout, evenly
from sciJEPA.hub import Model, load
from sciJEPA.judging.problem import Problem
from sciJEPA.panel import opened_problem
from sciJEPA.pretrain import pretrain
from sciJEPA.synthetic import travelling_waves

LEADS = ["1D", "2D", "3D", "5D"]


@pytest.fixture(scope="module")
def trained(learned: Path) -> Model:
    return load(learned)


@pytest.fixture(scope="module")
def problem(trained: Model) -> Problem:
    return opened_problem(trained, travelling_waves(200), None, LEADS)


@pytest.fixture(scope="module")
def rollout(problem: Problem, trained: Model) -> LatentRollout:
    return LatentRollout.fit(problem, trained)


def errors(problem: Problem, method: LatentRollout) -> np.ndarray:
    """Mean squared error of standardised anomalies for each lead; 1 is about climatology."""
    return problem.judge(method).squared_error[:, 0].mean(axis=1)


def test_the_rollout_beats_climatology_at_every_lead_and_persistence_at_long_ones(
    problem: Problem, rollout: LatentRollout
) -> None:
    # the waves have a variance of about 1.17; persistence misses 0.16 after one day and 1.1 after three
    found = errors(problem, rollout)
    assert (found < 0.8).all()
    assert found[2] < 0.8 * 1.1
    # the predictor was trained two days ahead: what lies beyond is carried, and gets worse
    assert found[3] > found[0]


def test_an_untrained_predictor_knows_nothing(problem: Problem, trained: Model, rollout: LatentRollout) -> None:
    carrier = rollout.carrier
    truth = carrier.targets(problem.test[:20])
    silent = dataclasses.replace(carrier, mean=torch.zeros_like(carrier.mean))
    for parameter in ("leave.latent.weight", "leave.latent.bias"):
        assert parameter in dict(trained.jepa.predictor.named_parameters())
    known = (carrier.carried(problem.test[:20], 2, 2) - truth).pow(2).mean()
    # standardised targets have variance 1: zero, the climatology of latents, has that error
    assert known < 0.5 * truth.pow(2).mean()
    assert silent.ahead == 2


def test_statistics_are_those_of_the_training_windows(rollout: LatentRollout, problem: Problem) -> None:
    carrier = rollout.carrier
    standard = carrier.targets(problem.train[: len(problem.train) // 2 * 2])
    # not exact: the statistics are over all tokens of a window, these are the later ones
    assert standard.mean(dim=(0, 1, 2)).pow(2).mean() < 0.05
    assert abs(float(standard.std()) - 1) < 0.1


def test_one_application_answers_as_it_does_alone(rollout: LatentRollout, problem: Problem) -> None:
    # targets do not attend to each other
    both, first = (rollout.carrier.carried(problem.test[:8], reach, 2) for reach in (2, 1))
    torch.testing.assert_close(both[:, :1], first, atol=1e-5, rtol=1e-5)


def test_small_strides_reach_as_far(rollout: LatentRollout, problem: Problem) -> None:
    one, two = (rollout.carrier.carried(problem.test[:8], 5, stride) for stride in (1, 2))
    assert one.shape == two.shape == (8, 5, 8, 16)
    torch.testing.assert_close(one[:, 0], two[:, 0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one[:, 1], two[:, 1], atol=1e-3)


def test_nothing_after_the_issue_time_is_seen(rollout: LatentRollout, trained: Model, problem: Problem) -> None:
    ds = travelling_waves(200).load()
    ds["z"][{"time": slice(171, None)}] = 50.0
    other = opened_problem(trained, ds, None, LEADS)
    steps = problem.test[problem.test <= 170]
    carrier = dataclasses.replace(rollout.carrier, problem=other)
    torch.testing.assert_close(carrier.carried(steps, 5, 1), rollout.carrier.carried(steps, 5, 1))
    np.testing.assert_array_equal(carrier.foreseen(steps), rollout.carrier.foreseen(steps))


def test_what_is_foreseen_is_what_predictions_are_read_from(
    rollout: LatentRollout, trained: Model, problem: Problem
) -> None:
    steps, carrier = problem.train[:70], rollout.carrier  # more than a batch
    states = torch.from_numpy(carrier.foreseen(steps)).unflatten(1, (carrier.places, carrier.ahead, -1))
    states = states.transpose(1, 2).flatten(1, 2)
    with torch.inference_mode():
        answers = trained.jepa.predictor.answer(states, carrier.domain.name)
    answers = answers.unflatten(1, (carrier.ahead, carrier.places))
    torch.testing.assert_close(answers, carrier.carried(steps, carrier.ahead, carrier.ahead), atol=1e-5, rtol=1e-5)


def test_latents_that_are_too_wide_are_decoded_from_their_leading_components(
    rollout: LatentRollout, trained: Model, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rollout.narrow is None
    monkeypatch.setattr("sciJEPA.judging.problem.WIDEST", 20)
    monkeypatch.setattr("sciJEPA.judging.problem.NARROWED", 30)
    narrow = LatentRollout.fit(problem, trained)
    assert narrow.narrow is not None and narrow.decoder.features_.width == 30
    truth = [target.read(problem.validation) for target in problem.targets]
    errors = [
        [((mine - theirs) ** 2).mean() for mine, theirs in zip(one.predict(problem.validation), truth, strict=True)]
        for one in (narrow, rollout)
    ]
    np.testing.assert_allclose(*errors, rtol=0.2)


def test_the_decoder_reads_encoded_latents_well(rollout: LatentRollout, problem: Problem) -> None:
    truth = rollout.carrier.targets(problem.test)
    later = problem.reader.read(problem.test + 2, 1).values.numpy().reshape(len(problem.test), -1)
    # noise of 0.1 of a standard deviation of about 1 is all that may be missed
    assert ((rollout._decode(truth, 2) - later) ** 2).mean() < 0.05


def test_ranks_are_those_of_the_latents(rollout: LatentRollout, problem: Problem) -> None:
    predicted, encoded, count = rollout.ranks(problem.test)
    assert len(predicted) == len(encoded) == len(LEADS)
    assert all(1 <= rank <= 16 for rank in predicted + encoded)
    # five days need three applications of two: six days after the issue time must be there
    assert count == len(problem.test) - 1


@pytest.mark.parametrize("standardise", ["token", "none"])
@pytest.mark.parametrize("scope", ["window", "future"])
def test_objectives_of_all_kinds(standardise: str, scope: str, waves: Path, tmp_path: Path) -> None:
    objective = {"standardise": standardise, "scope": scope}
    masking = {"forecast": 1, "blocks": 0}
    config = tiny_config(waves, objective=objective, masking=masking, training__steps=100, training__learning_rate=3e-3)
    model = pretrain(config, tmp_path / "run", progress=False)
    found = opened_problem(model, travelling_waves(200), None, LEADS)
    assert np.isfinite(errors(found, LatentRollout.fit(found, model))).all()


def test_patches_of_several_steps_are_decoded_step_by_step(waves: Path, tmp_path: Path) -> None:
    masking = {"forecast": 1, "blocks": 0}
    config = tiny_config(waves, masking=masking, training__steps=100, tokenizer={"patch_time": 2})
    model = pretrain(config, tmp_path / "run", progress=False)
    found = opened_problem(model, travelling_waves(200), None, LEADS)
    rollout = LatentRollout.fit(found, model)
    assert (rollout.carrier.steps_per_token, rollout.carrier.ahead) == (2, 1)
    # days 1 and 2 are two steps of one token, days 3 and 5 are in the second and the third
    assert [rollout._token_time(lead) for lead in found.leads] == [1, 1, 2, 3]
    assert np.isfinite(errors(found, rollout)).all()


def test_missing_values_and_dates_beyond_the_end(tmp_path: Path) -> None:
    ds = travelling_waves(200, missing=0.1)
    ds.to_zarr(tmp_path / "archive.zarr", consolidated=False)
    config = tiny_config(tmp_path / "archive.zarr", training__steps=5)
    model = pretrain(config, tmp_path / "run", progress=False)
    found = opened_problem(model, ds, None, LEADS)
    rollout = LatentRollout.fit(found, model)
    assert all(np.isfinite(part).all() for part in rollout.predict(np.array([150, 198, 199])))


def test_a_masked_autoencoder_has_no_latents_to_roll_out(waves: Path, tmp_path: Path) -> None:
    config = tiny_config(waves, objective={"target": "mae"}, training__steps=2)
    model = pretrain(config, tmp_path / "run", progress=False)
    found = opened_problem(model, travelling_waves(200), None, ["1D"])
    assert not LatentRollout.possible(model, found.domain)
    with pytest.raises(UserError, match="latent_rollout needs a model whose predictor predicts latents"):
        LatentRollout.fit(found, model)


def test_evenly() -> None:
    assert evenly(np.arange(10), 3).tolist() == [0, 4, 8]
    assert evenly(np.arange(2), 3).tolist() == [0, 1]


def test_series_at_stations_keep_their_level(tmp_path: Path) -> None:
    time = pd.date_range("2001-01-01", periods=600, freq="1h")
    rng = np.random.default_rng(0)
    values = np.sin(2 * np.pi * np.arange(600) / 24)[:, None] + 0.1 * rng.normal(size=(600, 3))
    ds = xr.Dataset({"load": (("time", "station"), values)}, {"time": time, "station": ["a", "b", "c"]})
    ds["load"][10:14, 1] = np.nan
    ds.to_netcdf(tmp_path / "stations.nc")
    tree = {"kind": "sensors", "patch_time": 4}
    config = tiny_config(tmp_path / "stations.nc", tokenizer=tree, data={"window": 24, "context": 16},
                         training__steps=5)  # fmt: skip
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, archive=str(tmp_path / "stations.nc")))
    model = pretrain(config, tmp_path / "run", progress=False)
    found = opened_problem(model, ds, None, ["1H", "6H"])
    assert isinstance(LatentRollout.fit(found, model).carrier, Carrier)
