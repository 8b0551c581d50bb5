import pytest
import torch
from torch import nn

from sciJEPA.target import MovingAverage, momentum, standardise


def constant(value: float) -> nn.Linear:
    module = nn.Linear(2, 2)
    for weight in module.parameters():
        nn.init.constant_(weight, value)
    return module


def test_the_average_starts_as_a_copy():
    source = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    assert torch.equal(MovingAverage(source)(x), source(x))


def test_one_update_is_worked_by_hand():
    # 0.75 * 0 + 0.25 * 4 = 1
    average = MovingAverage(constant(0.0))
    average.update(constant(4.0), 0.75)
    assert all((p == 1).all() for p in average.parameters())


@pytest.mark.parametrize("half_life, steps", [(0.1, 200), (0.05, 1000), (0.5, 10), (1.0, 3)])
def test_after_a_half_life_the_distance_has_halved(half_life, steps):
    average, source = MovingAverage(constant(0.0)), constant(1.0)
    for _ in range(round(half_life * steps)):
        average.update(source, momentum(half_life, steps))
    torch.testing.assert_close(next(average.parameters()), torch.full((2, 2), 0.5), atol=1e-5, rtol=0)


def test_a_vanishing_half_life_is_a_copy():
    assert momentum(0.0, 100) == 0
    average = MovingAverage(constant(0.0))
    average.update(constant(3.0), 0.0)
    assert all((p == 3).all() for p in average.parameters())


def test_the_average_is_not_trained():
    average = MovingAverage(nn.Linear(2, 2))
    assert not any(p.requires_grad for p in average.parameters())
    assert not average(torch.randn(3, 2, requires_grad=True)).requires_grad


def test_an_update_leaves_the_source_alone():
    source = constant(1.0)
    MovingAverage(constant(0.0)).update(source, 0.5)
    assert all((p == 1).all() and p.requires_grad for p in source.parameters())


def test_the_average_is_never_in_training_mode():
    outer = nn.Sequential(MovingAverage(nn.Sequential(nn.Linear(1, 1), nn.Dropout())))
    outer.train()
    assert outer.training and not any(part.training for part in outer[0].modules())


@pytest.mark.parametrize("over, dims", [("batch", (0, 1)), ("token", (2,))])
def test_standardised_targets_have_mean_zero_and_variance_one(over, dims):
    torch.manual_seed(0)
    latents = standardise(5 + 3 * torch.randn(4, 6, 8), over)
    torch.testing.assert_close(latents.mean(dim=dims), torch.zeros(8 if over == "batch" else (4, 6)), atol=1e-5, rtol=0)
    variance = latents.var(dim=dims, unbiased=False)
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-5, rtol=0)


def test_none_leaves_values_and_gives_float32():
    latents = torch.randn(2, 3, 4, dtype=torch.bfloat16)
    assert torch.equal(standardise(latents, "none"), latents.float())


def test_batch_keeps_amplitudes_that_token_removes():
    # Token 1 is twice token 0: over the batch it stays twice as far from the mean of 0, over its features it does not.
    base = torch.tensor([1.0, -1.0])
    latents = torch.stack([base, -base, 2 * base, -2 * base])[None]
    batch, token = standardise(latents, "batch"), standardise(latents, "token")
    torch.testing.assert_close(batch[0, 2], 2 * batch[0, 0])
    torch.testing.assert_close(token[0, 2], token[0, 0], atol=1e-5, rtol=0)


def test_collapsed_latents_give_zeros_and_not_nan():
    assert torch.equal(standardise(torch.ones(2, 3, 4), "batch"), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("over", ["batch", "token", "none"])
def test_unseen_tokens_move_no_target(over):
    torch.manual_seed(0)
    latents, seen = torch.randn(3, 5, 4), torch.rand(3, 5) < 0.6
    assert seen.any() and not seen.all()
    changed = torch.where(seen[..., None], latents, torch.tensor(1e3))
    before, after = standardise(latents, over, seen), standardise(changed, over, seen)
    torch.testing.assert_close(before[seen], after[seen])
    assert not torch.equal(before[~seen], after[~seen])


def test_seen_tokens_of_a_batch_have_mean_zero_and_variance_one():
    torch.manual_seed(0)
    latents, seen = 5 + 3 * torch.randn(4, 6, 8), torch.rand(4, 6) < 0.5
    kept = standardise(latents, "batch", seen)[seen]
    torch.testing.assert_close(kept.mean(dim=0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(kept.var(dim=0, unbiased=False), torch.ones(8), atol=1e-5, rtol=0)


def test_where_all_is_seen_or_nothing_the_targets_are_numbers():
    latents = torch.randn(2, 3, 4)
    everything = torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(standardise(latents, "batch", everything), standardise(latents, "batch"))
    assert standardise(latents, "batch", ~everything).isfinite().all()
