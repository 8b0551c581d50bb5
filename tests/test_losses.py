import pytest
import torch

from sciJEPA.losses import covariance_term, prediction_distance, regularise, variance_term

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
    assert variance_term(latents).item() == pytest.approx((0.99 + 1 - 0.1801**0.5) / 3)


def test_no_gradient_above_the_floor():
    latents = (2 * torch.randn(500, 4)).requires_grad_()
    term = variance_term(latents)
    term.backward()
    assert term == 0 and latents.grad is not None and not latents.grad.any()
    small = (0.1 * torch.randn(500, 4)).requires_grad_()
    variance_term(small).backward()
    assert small.grad is not None and small.grad.abs().min() > 0


def test_collapsed_latents_have_finite_gradients():
    latents = torch.ones(8, 3).requires_grad_()
    sum(regularise(latents[None])).backward()
    assert latents.grad is not None and latents.grad.isfinite().all()


def test_covariance_term_is_worked_by_hand():
    # Features (-1, 1) and (-2, 2): covariance 4, off the diagonal twice: 2 * 16 / 2 features = 16.
    assert covariance_term(torch.tensor([[-1.0, -2.0], [1.0, 2.0]])).item() == pytest.approx(16)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_decorrelated_features_have_none(scale):
    # Columns of a Hadamard matrix (less the constant one) are orthogonal and have mean 0. Subtracting the diagonal from
    # the sum of squares would leave rounding of 1e-7 scale**4.
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    columns = torch.kron(signs, torch.kron(signs, signs))[:, 1:]
    latents = (scale * torch.linspace(0.1, 3, 7) * columns).requires_grad_()
    term = covariance_term(latents)
    term.backward()
    assert term.item() == pytest.approx(0, abs=1e-9 * scale**4)
    assert latents.grad is not None and latents.grad.abs().max() < 1e-5 * scale**3


def test_adding_a_constant_changes_nothing():
    latents = torch.randn(64, 5)
    torch.testing.assert_close(covariance_term(latents + 10), covariance_term(latents), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(variance_term(latents + 10), variance_term(latents), atol=1e-5, rtol=1e-4)


def test_regularise_pools_samples_and_tokens():
    latents = torch.randn(3, 5, 4)
    variance, covariance = regularise(latents)
    assert variance == variance_term(latents.reshape(15, 4)) and covariance == covariance_term(latents.reshape(15, 4))


def test_unseen_tokens_are_not_regularised():
    torch.manual_seed(0)
    latents, seen = torch.randn(3, 5, 4), torch.rand(3, 5) < 0.6
    assert seen.any() and not seen.all()
    changed = torch.where(seen[..., None], latents, torch.tensor(1e3)).requires_grad_()
    terms = regularise(changed, seen)
    assert terms == regularise(latents, seen) == regularise(latents[seen][None])
    sum(terms).backward()
    assert changed.grad is not None and changed.grad[seen].any() and not changed.grad[~seen].any()


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_seen_tokens_have_nothing_to_regularise(count):
    seen = torch.zeros(2, 3, dtype=torch.bool)
    seen.view(-1)[:count] = True
    assert regularise(torch.randn(2, 3, 4), seen) == (0, 0)
