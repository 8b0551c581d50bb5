import math
import warnings

import numpy as np
import pytest
import torch

from sciJEPA.jepa import StepOutput
from sciJEPA.losses import LossTerms
from sciJEPA.training.monitor import (
    ADVICE,
    FLOORS,
    CollapseWarning,
    content,
    diagnose,
    effective_rank,
    least_spread,
    lidar,
    spread,
    warn_of_collapse,
)  # fmt: skip

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


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_latents_that_are_not_finite_have_no_rank(bad: float) -> None:
    latents = torch.randn(20, 4)
    latents[3, 1] = bad
    assert math.isnan(effective_rank(latents))


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
    for name, floor in FLOORS.items():
        for objective in ADVICE:
            advice = f"at step 7 .*{name} {0.9 * floor:.2g} .*try .*objective.*learning_rate"
            with pytest.warns(CollapseWarning, match=advice):
                assert warn_of_collapse(HEALTHY | {name: 0.9 * floor}, 7, objective)


def test_latents_that_are_not_numbers_count_as_collapsed() -> None:
    with pytest.warns(CollapseWarning):
        assert warn_of_collapse(HEALTHY | {"rank_online": float("nan")}, 1)


def test_diagnose_reports_the_terms_and_both_sides() -> None:
    generator = torch.Generator().manual_seed(0)
    context, target, predicted = (torch.randn(3, 8, 5, generator=generator) for _ in range(3))
    terms = LossTerms(*(torch.tensor(value) for value in (1.0, 2.0, 3.0, 5.0, 4.0)))
    numbers = diagnose(StepOutput(terms, context, target, predicted * 0))
    losses = [numbers[name] for name in ("loss_prediction", "loss_variance", "loss_covariance", "loss_sigreg", "loss")]
    assert losses == [1, 2, 3, 5, 4]
    assert numbers["std_predicted"] == 0
    assert numbers["rank_online"] == pytest.approx(effective_rank(context.reshape(-1, 5)))
    assert numbers["rank_target"] == pytest.approx(effective_rank(target.reshape(-1, 5)))
    assert numbers["lidar_online"] == lidar(context)
    assert numbers["variance_ratio"] == 0


def test_the_variance_ratio_is_that_of_prediction_and_target() -> None:
    target = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    terms = LossTerms(*torch.zeros(5))
    assert diagnose(StepOutput(terms, target, target, target / 2))["variance_ratio"] == pytest.approx(1 / 4)


def test_unseen_tokens_have_no_part_in_what_is_diagnosed() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 8, 5, generator=generator)
    seen = torch.rand(4, 8, generator=generator) < 0.7
    wild = torch.where(seen[..., None], latents, torch.tensor(1e3))
    terms = LossTerms(*torch.zeros(5))
    numbers = [diagnose(StepOutput(terms, x, x, x, x, seen, seen)) for x in (latents, wild)]
    assert numbers[0] == pytest.approx(numbers[1])
    assert numbers[0]["rank_online"] == pytest.approx(effective_rank(latents[seen]))


def test_the_feature_that_varies_least_is_found() -> None:
    # Standard deviations 1, 1 and 0.1: the least over their mean is 0.1 / 0.7.
    latents = torch.tensor([[1.0], [-1.0]]) * torch.tensor([1.0, 1.0, 0.1])
    assert least_spread(latents) == pytest.approx(0.1 / 0.7)
    assert least_spread(torch.ones(4, 3)) == 0


def test_windows_that_differ_in_one_direction_have_a_lidar_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    inner = torch.randn(40, 200, 6, generator=generator)
    inner = inner - inner.mean(dim=1, keepdim=True)
    line = torch.randn(40, 1, 1, generator=generator) * torch.eye(6)[0]
    assert lidar(inner + line) == pytest.approx(1, abs=1e-3)
    # in all directions alike: 6, up to the scatter of 40 windows
    assert 5 < lidar(inner + torch.randn(40, 1, 6, generator=generator)) <= 6


def test_lidar_measures_windows_against_what_varies_within() -> None:
    # Between windows the variance is 1 in both directions; within, 1 and 100: relative to it 1 and 1/100.
    # exp(entropy) of the shares 100/101 and 1/101 is 1.0567.
    between = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])[:, None]
    within = torch.tensor([[1.0, 10.0], [-1.0, 10.0], [1.0, -10.0], [-1.0, -10.0]])[None]
    assert lidar(between + within) == pytest.approx(1.0567, abs=3e-3)


def test_lidar_leaves_out_what_is_unseen() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(6, 9, 3, generator=generator)
    seen = torch.arange(9).expand(6, 9) < 5
    wild = torch.where(seen[..., None], latents, torch.tensor(1e3))
    assert lidar(wild, seen) == pytest.approx(lidar(latents[:, :5]))


def test_latents_that_know_their_place_alone_have_no_content() -> None:
    place = torch.arange(12.0).reshape(1, 4, 3)
    assert content(place.expand(5, 4, 3)) == 0
    # the same at all tokens, 3 and -3 in two windows: nothing but content
    assert content(torch.tensor([3.0, -3.0])[:, None, None].expand(2, 4, 1)) == pytest.approx(1)
    # both: variance 9 of content, 1.25 of place (0, 1, 2, 3)
    both = torch.tensor([3.0, -3.0])[:, None, None] + torch.arange(4.0)[None, :, None]
    assert content(both) == pytest.approx(9 / 10.25)


def test_what_is_forgotten_is_warned_of_relative_to_the_untrained_encoder() -> None:
    start = {"probe_error": 0.2, "content_online": 0.5, "validation_loss": 1.0}
    healthy = HEALTHY | {"probe_error": 0.21, "content_online": 0.1, "validation_loss": 9.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_of_collapse(healthy, 7, untrained=start)
        assert not warn_of_collapse(healthy | {"content_online": 0.01}, 7)  # nothing to compare with
    for name, value in (("probe_error", 0.23), ("content_online", 0.04)):
        with pytest.warns(CollapseWarning, match=f"{name} {value} .untrained encoder {start[name]}"):
            assert warn_of_collapse(healthy | {name: value}, 7, untrained=start)
