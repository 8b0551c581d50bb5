import dataclasses
import math

import pytest
import torch

from sciJEPA.encoder import Attention, Encoder, EncoderConfig
from sciJEPA.masking import TokenGrid
from sciJEPA.tokenizers.base import Batch, Tokens
from sciJEPA.tokenizers.grid import GridSpec, GridTokenizer, GridTokenizerConfig
from sciJEPA.training.validation import attention_entropy, probe_error

GRID = TokenGrid(times=3, space=(5,), context_times=2)
TOKENIZER = GridTokenizer(
    GridTokenizerConfig(),
    GridSpec(
        channels=("z",), latitude=tuple(10.0 * i for i in range(8)), longitude=tuple(22.5 * i for i in range(16)),
        cadence=24.0, periodic=True, window=4, context=2,
    ),
)  # fmt: skip


def tokens(windows: int = 40) -> Tokens:
    """Windows of 3 x 5 tokens of two channels with three values."""
    torch.manual_seed(0)
    values = torch.randn(windows, 15, 2, 3)
    return Tokens(values, None, torch.zeros(windows, 15, 1), ("a", "b"))


def test_latents_that_hold_the_next_token_have_no_error() -> None:
    truth = tokens()
    latents = torch.randn(40, 5, 9)
    latents[:, :, :6] = truth.values[:, 10:].flatten(2)  # the last of two times in, the first after it
    # Shrinkage of 1/10 leaves 9 % of the truth.
    assert probe_error(latents, [truth], GRID) == pytest.approx(0.09, abs=0.02)


def test_both_parts_have_windows_of_all_times() -> None:
    # What the first half says of the next token is the opposite in the second.
    truth, sign = tokens(), torch.ones(40, 1, 1)
    sign[20:] = -1
    latents = torch.cat([sign * truth.values[:, 10:].flatten(2), sign.expand(40, 5, 1)], dim=2)
    assert probe_error(latents, [truth], GRID) == pytest.approx(1.0, abs=0.1)  # and not 2


def test_latents_without_a_relation_are_as_good_as_the_climatology() -> None:
    # 8 useless features fitted on 100 rows make it worse by the factor sqrt(1 + 8 / 100), about.
    assert probe_error(torch.randn(40, 5, 8), [tokens()], GRID) == pytest.approx(1.04, abs=0.05)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_latents_that_are_not_finite_have_no_error(bad: float) -> None:
    latents = torch.randn(40, 5, 8)
    latents[3, 2, 1] = bad
    assert math.isnan(probe_error(latents, [tokens()], GRID))


def test_batches_are_taken_together_and_in_order() -> None:
    truth = tokens()
    latents = torch.cat([torch.randn(40, 5, 2), truth.values[:, 10:].flatten(2) + 0.5 * torch.randn(40, 5, 6)], dim=2)
    parts = [truth.samples(torch.arange(0, 10)), truth.samples(torch.arange(10, 40))]
    assert probe_error(latents, parts, GRID) == pytest.approx(probe_error(latents, [truth], GRID))


def test_what_was_not_observed_does_not_count() -> None:
    truth = tokens()
    observed = torch.rand(truth.values.shape) < 0.8
    latents = torch.randn(40, 5, 8)
    latents[:, :, :6] += truth.values[:, 10:].flatten(2)
    errors = [
        probe_error(
            latents, [dataclasses.replace(truth, values=truth.values.where(observed, fill), observed=observed)], GRID
        )
        for fill in (0.0, 1e6)
    ]
    assert errors[0] == errors[1]


def test_where_nothing_follows_there_is_no_error() -> None:
    assert math.isnan(probe_error(torch.randn(40, 5, 8), [tokens()], TokenGrid(3, (5,), 3)))
    assert math.isnan(probe_error(torch.randn(3, 5, 8), [tokens(3)], GRID))


def test_attention_to_all_alike_has_an_entropy_of_one() -> None:
    attention = Attention(8, 2)
    with torch.no_grad():
        attention.query.weight.zero_()
        attention.query.bias.zero_()
    assert attention.entropy(torch.randn(2, 5, 8)).item() == pytest.approx(1)
    seen = torch.tensor([[True, True, False, False, False]] * 2)
    assert attention.entropy(torch.randn(2, 5, 8), seen).item() == pytest.approx(1)  # of those that may be attended to


def test_attention_to_one_token_has_none() -> None:
    # Every query is (1, 1), keys are a hundred times the tokens: the one with the largest sum takes all.
    attention = Attention(2, 1)
    with torch.no_grad():
        attention.query.weight.zero_()
        attention.query.bias.fill_(1.0)
        attention.key_value.weight[:2] = 100 * torch.eye(2)
        attention.key_value.bias.zero_()
    assert attention.entropy(torch.arange(10.0).reshape(1, 5, 2)).item() == pytest.approx(0, abs=1e-6)


def test_the_entropy_belongs_to_the_weights_that_attention_uses() -> None:
    # Two tokens, softmax weights w and 1 - w, worked from the output: values are 0 and 1.
    torch.manual_seed(0)
    attention, x = Attention(2, 1), torch.randn(1, 2, 2)
    with torch.no_grad():
        attention.query.weight.normal_()
        attention.out.weight.copy_(torch.eye(2))
        attention.out.bias.zero_()
        key, value = attention.key_value.weight.chunk(2)
        key.normal_()
        value.copy_(torch.linalg.solve(x[0], torch.tensor([[0.0, 0.0], [1.0, 1.0]])).T)
        attention.key_value.bias.zero_()
        share = attention(x, x)[0, :, 0]
    expected = -(share * share.log2() + (1 - share) * (1 - share).log2()).mean()  # relative to log 2
    assert attention.entropy(x).item() == pytest.approx(expected.item(), rel=1e-4)


def test_an_encoder_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(width=16, depth=2, heads=2), {"grid": TOKENIZER})
    batch = Batch(torch.randn(6, 1, 4, 8, 16), None, torch.rand(6, 4, 4), torch.arange(6))
    entropy = attention_entropy(encoder, TOKENIZER(batch))
    assert 0.9 < entropy <= 1  # weights of 0.02: nearly alike
    assert not any(part._forward_pre_hooks for part in encoder.modules())
