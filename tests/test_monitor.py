import warnings

import numpy as np
import pytest
import torch

from sciJEPA.jepa import StepOutput
from sciJEPA.losses import LossTerms
from sciJEPA.monitor import CollapseWarning, diagnose, effective_rank, spread, warn_of_collapse

HEALTHY = {"rank_online": 8.0, "std_online": 0.5}


def test_latents_on_a_line_have_rank_one() -> None:
    line = torch.linspace(-1, 1, 9)[:, None] * torch.tensor([[1.0, 2.0, 3.0]])
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)


def test_equal_singular_values_have_the_rank_of_the_width() -> None:
    # rows +e_j and -e_j have mean 0 and Gram matrix 2 I: four equal singular values, entropy log 4
    latents = torch.cat([torch.eye(4), -torch.eye(4)])
    assert effective_rank(latents) == pytest.approx(4)


def test_rank_of_two_unequal_directions_by_hand() -> None:
    # singular values 3 and 1 (times sqrt 2): shares 3/4 and 1/4, exp(entropy) = 4 / 27 ** (1/4) = 1.7548
    latents = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert effective_rank(latents) == pytest.approx(4 / 27**0.25)


def test_rank_ignores_a_shift_a_scale_and_a_rotation() -> None:
    latents = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 6)))
    rotation = torch.linalg.qr(torch.from_numpy(np.random.default_rng(1).normal(size=(6, 6))))[0]
    rank = effective_rank(latents)
    assert effective_rank(5 + 3 * latents @ rotation) == pytest.approx(rank)


def test_constant_latents_have_rank_one_and_no_spread() -> None:
    assert effective_rank(torch.full((10, 4), 7.0)) == pytest.approx(1)
    assert spread(torch.full((10, 4), 7.0)) == 0
    assert spread(torch.zeros(10, 4)) == 0


def test_spread_is_relative_to_the_size_of_the_latents() -> None:
    # values +1, -1: mean square 1, unbiased variance 10/9
    latents = torch.tensor([[1.0], [-1.0]] * 5)
    assert spread(latents) == pytest.approx((10 / 9) ** 0.5)
    assert spread(100 * latents) == pytest.approx(spread(latents))
    assert spread(latents + 1000) < 2e-3


def test_a_collapse_is_warned_of_and_health_is_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_of_collapse(HEALTHY, 7)
    for name, value in (("rank_online", 1.2), ("std_online", 1e-5)):
        with pytest.warns(CollapseWarning, match=r"at step 7 .*try objective\.variance"):
            assert warn_of_collapse(HEALTHY | {name: value}, 7)


def test_latents_that_are_not_numbers_count_as_collapsed() -> None:
    with pytest.warns(CollapseWarning):
        assert warn_of_collapse(HEALTHY | {"rank_online": float("nan")}, 1)


def test_diagnose_reports_the_terms_and_both_sides() -> None:
    generator = torch.Generator().manual_seed(0)
    context, target, predicted = (torch.randn(3, 8, 5, generator=generator) for _ in range(3))
    terms = LossTerms(*(torch.tensor(value) for value in (1.0, 2.0, 3.0, 4.0)))
    numbers = diagnose(StepOutput(terms, context, target, predicted * 0))
    losses = [numbers[name] for name in ("loss_prediction", "loss_variance", "loss_covariance", "loss")]
    assert losses == [1, 2, 3, 4]
    assert numbers["std_predicted"] == 0
    assert numbers["rank_online"] == pytest.approx(effective_rank(context.reshape(-1, 5)))
    assert numbers["rank_target"] == pytest.approx(effective_rank(target.reshape(-1, 5)))
