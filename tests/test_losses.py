import pytest
import torch

from sciJEPA.losses import (
    centre,
    centre_groups,
    covariance_term,
    prediction_distance,
    regularise,
    sigreg_term,
    variance_term,
)  # fmt: skip

PREDICTED = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]])
TARGET = torch.tensor([[[1.0, 4.0], [0.5, 0.0]]])


@pytest.mark.parametrize(
    "distance, expected",
    [
        # differences 0, 2, 0.5, 0
        ("l2", (4 + 0.25) / 4),
        ("l1", (2 + 0.5) / 4),
        ("smooth_l1", (1.5 + 0.125) / 4),  # |d| - 1/2 above 1, d**2 / 2 below
    ],
)
def test_distances_are_worked_by_hand(distance, expected):
    assert prediction_distance(PREDICTED, TARGET, distance=distance).item() == pytest.approx(expected)


def test_perfect_predictions_cost_nothing():
    assert prediction_distance(TARGET, TARGET) == 0


def test_targets_count_by_their_observed_share():
    # Means of the two targets: 2 and 0.125. Weights 1 and 1/3: (2 + 0.125 / 3) / (4 / 3) = 1.53125.
    weight = torch.tensor([[1.0, 1 / 3]])
    assert prediction_distance(PREDICTED, TARGET, weight).item() == pytest.approx(1.53125)
    equal = prediction_distance(PREDICTED, TARGET, torch.full((1, 2), 0.3))
    torch.testing.assert_close(equal, prediction_distance(PREDICTED, TARGET))


def test_an_unseen_target_has_no_gradient():
    predicted = PREDICTED.clone().requires_grad_()
    prediction_distance(predicted, TARGET, torch.tensor([[1.0, 0.0]])).backward()
    assert predicted.grad is not None
    assert predicted.grad[0, 0].any() and not predicted.grad[0, 1].any()


def test_targets_that_are_all_unseen_give_zero():
    assert prediction_distance(PREDICTED, TARGET, torch.zeros(1, 2)) == 0


def test_half_precision_is_averaged_in_float32():
    predicted, target = torch.zeros(1, 1, 4096, dtype=torch.bfloat16), torch.ones(1, 1, 4096, dtype=torch.bfloat16)
    loss = prediction_distance(predicted, target)
    assert loss.dtype == torch.float32 and loss == 1


def test_variance_term_is_worked_by_hand():
    # Feature 0 is constant: 1 - sqrt(1e-4) = 0.99. Feature 1 has the variance ((-0.3)**2 + 0.3**2) / 1 = 0.18:
    # 1 - sqrt(0.1801) = 0.57562. Feature 2 has 8, above the floor. Mean (0.99 + 0.57562 + 0) / 3.
    latents = torch.tensor([[1.0, -0.3, -2.0], [1.0, 0.3, 2.0]])
    assert variance_term(centre(latents).covariance).item() == pytest.approx((0.99 + 1 - 0.1801**0.5) / 3)


def test_no_gradient_above_the_floor():
    latents = (2 * torch.randn(500, 4)).requires_grad_()
    term = variance_term(centre(latents).covariance)
    term.backward()
    assert term == 0 and latents.grad is not None and not latents.grad.any()
    small = (0.1 * torch.randn(500, 4)).requires_grad_()
    variance_term(centre(small).covariance).backward()
    assert small.grad is not None and small.grad.abs().min() > 0


def test_collapsed_latents_have_finite_gradients():
    latents = torch.ones(8, 3).requires_grad_()
    sum(regularise(centre(latents))).backward()
    assert latents.grad is not None and latents.grad.isfinite().all()


def test_covariance_term_is_worked_by_hand():
    # Features (-1, 1) and (-2, 2): covariance 4, off the diagonal twice: 2 * 16 / 2 features = 16.
    assert covariance_term(centre(torch.tensor([[-1.0, -2.0], [1.0, 2.0]])).covariance).item() == pytest.approx(16)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_decorrelated_features_have_none(scale):
    # Columns of a Hadamard matrix (less the constant one) are orthogonal and have mean 0. Subtracting the diagonal from
    # the sum of squares would leave rounding of 1e-7 scale**4.
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    columns = torch.kron(signs, torch.kron(signs, signs))[:, 1:]
    latents = (scale * torch.linspace(0.1, 3, 7) * columns).requires_grad_()
    term = covariance_term(centre(latents).covariance)
    term.backward()
    assert term.item() == pytest.approx(0, abs=1e-9 * scale**4)
    assert latents.grad is not None and latents.grad.abs().max() < 1e-5 * scale**3


def test_adding_a_constant_changes_nothing():
    latents = torch.randn(64, 5)
    before, after = centre(latents).covariance, centre(latents + 10).covariance
    torch.testing.assert_close(covariance_term(after), covariance_term(before), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(variance_term(after), variance_term(before), atol=1e-5, rtol=1e-4)


def test_the_covariance_is_that_of_torch():
    latents = 3 + torch.randn(64, 5)
    torch.testing.assert_close(centre(latents).covariance, latents.T.cov())


def test_unseen_tokens_are_not_regularised():
    torch.manual_seed(0)
    latents, seen = torch.randn(15, 4), torch.rand(15) < 0.6
    assert seen.any() and not seen.all()
    changed = torch.where(seen[:, None], latents, torch.tensor(1e3)).requires_grad_()
    terms = regularise(centre(changed, seen))
    torch.testing.assert_close(terms, regularise(centre(latents[seen])))
    sum(terms).backward()
    assert changed.grad is not None and changed.grad[seen].any() and not changed.grad[~seen].any()


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_seen_tokens_have_nothing_to_regularise(count):
    seen = torch.arange(6) < count
    assert regularise(centre(torch.randn(6, 4), seen)) == (0, 0)
    assert sigreg_term(torch.randn(6, 4), seen, windows=2) == 0


# --- over time


def test_over_time_a_place_is_compared_with_itself():
    # Place 0: (1, 3), place 1: (10, 20), and a place seen once. Squares about their means: 2 * 1 + 2 * 25 = 52, with
    # 5 - 3 degrees of freedom: 26.
    latents = torch.tensor([[1.0], [10.0], [7.0], [3.0], [20.0]])
    centred = centre_groups(latents, torch.tensor([0, 1, 2, 0, 1]), 3)
    assert centred.rows.ravel().tolist() == [-1, -5, 0, 1, 5]
    assert centred.degrees == 2 and centred.covariance.item() == 26


def test_one_group_is_the_whole_batch():
    torch.manual_seed(0)
    latents, seen = torch.randn(9, 4), torch.rand(9) < 0.7
    groups = torch.zeros(9, dtype=torch.long)
    torch.testing.assert_close(
        centre_groups(latents, groups, 1, seen).covariance, centre(latents, seen).covariance, atol=1e-6, rtol=1e-5
    )


def test_what_never_changes_in_time_has_no_variance_over_time():
    # Places differ by 5, times not at all: the hinge sees a standard deviation of sqrt(1e-4).
    latents = torch.arange(3.0).mul(5).repeat(4)[:, None]
    variance, _ = regularise(centre_groups(latents, torch.arange(3).repeat(4), 3))
    assert variance.item() == pytest.approx(0.99)
    assert regularise(centre(latents))[0] == 0


# --- sigreg


def test_collapsed_latents_score_what_the_integral_says():
    # All at zero: N integral (1 - exp(-t^2/2))^2 exp(-t^2/2) dt = N sqrt(2 pi) (1 - 2 / sqrt 2 + 1 / sqrt 3). The ends
    # of the range and the trapezoidal rule of 17 points change less than a thousandth of it.
    expected = (2 * torch.pi) ** 0.5 * (1 - 2**0.5 + 3**-0.5)
    assert sigreg_term(torch.zeros(50, 8), windows=10).item() == pytest.approx(10 * expected, rel=1e-3)


def test_a_gaussian_scores_next_to_nothing_and_other_laws_do_not():
    # Of S draws of the right law, |mean - expectation|^2 is (1 - exp(-t^2)) / S on average: the integral is
    # sqrt(2 pi) (1 - 1 / sqrt 3) / S = 1.06 / S.
    torch.manual_seed(0)
    draws = torch.randn(4000, 8)
    assert sigreg_term(draws, windows=1) < 3 * 1.06 / 4000
    for other in (2 * draws, 0.5 * draws, draws + 1, draws * torch.tensor([1.0] * 4 + [0.0] * 4)):
        assert sigreg_term(other, windows=1) > 20 * 1.06 / 4000


def test_two_points_in_one_dimension_are_worked_by_hand():
    # Latents -1 and 1: mean exp(itx) = cos t whatever the sign of the direction.
    t = torch.linspace(-5, 5, 17)
    gaussian = torch.exp(-t * t / 2)
    expected = 2 * torch.trapezoid((t.cos() - gaussian) ** 2 * gaussian, t)
    torch.testing.assert_close(sigreg_term(torch.tensor([[-1.0], [1.0]]), windows=2), expected)


def test_directions_are_fresh_at_every_step_and_the_same_at_the_same():
    torch.manual_seed(0)
    latents = torch.rand(30, 5)
    first = [sigreg_term(latents, windows=3, slices=4, step=step) for step in (0, 1, 0)]
    assert first[0] == first[2] != first[1]


def test_gradient_makes_latents_gaussian():
    torch.manual_seed(0)
    latents = (0.1 * torch.rand(256, 3)).requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=0.05)
    for step in range(200):
        optimizer.zero_grad()
        sigreg_term(latents, windows=256, slices=32, step=step).backward()
        optimizer.step()
    covariance = latents.detach().T.cov()
    torch.testing.assert_close(covariance, torch.eye(3), atol=0.15, rtol=0)
    assert latents.detach().mean(dim=0).abs().max() < 0.1


def test_unseen_tokens_have_no_part_in_sigreg():
    torch.manual_seed(0)
    latents, seen = torch.randn(20, 4), torch.rand(20) < 0.6
    changed = torch.where(seen[:, None], latents, torch.tensor(1e3))
    torch.testing.assert_close(sigreg_term(changed, seen, windows=4), sigreg_term(latents[seen], windows=4))


def test_statistics_are_in_float32():
    latents = torch.randn(64, 4).bfloat16()
    terms = (*regularise(centre(latents)), sigreg_term(latents, windows=4))
    assert all(term.dtype == torch.float32 for term in terms)
    torch.testing.assert_close(terms[2], sigreg_term(latents.float(), windows=4))


def test_statistics_are_in_float32_in_a_run_in_bfloat16():
    # Products in bfloat16 would be off by 2**-9.
    torch.manual_seed(0)
    latents = torch.randn(64, 4)
    plain = (*regularise(centre(latents)), sigreg_term(latents, windows=4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = (*regularise(centre(latents)), sigreg_term(latents, windows=4))
    assert all(term.dtype == torch.float32 for term in mixed)
    assert mixed == plain
