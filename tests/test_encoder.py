import dataclasses

import pytest
import torch

from sciJEPA.encoder import SIZES, Encoder, EncoderConfig, attend
from sciJEPA.errors import UserError
from sciJEPA.tokenizers.base import Tokens
from sciJEPA.tokenizers.grid import GridSpec, GridTokenizer, GridTokenizerConfig

TOKENIZER = GridTokenizer(
    GridTokenizerConfig(patch_latitude=2, patch_longitude=2),
    GridSpec(("z", "t"), (30.0, 10.0, -10.0, -30.0), tuple(range(0, 360, 60)), 24.0, True, 3, 2),
)
N = TOKENIZER.grid.count  # 3 times, 2 x 3 places


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(width=32, depth=2, heads=4), {"grid": TOKENIZER})
    for weight in encoder.parameters():  # at its initial size the attention hardly mixes
        torch.nn.init.normal_(weight, std=0.3)
    return encoder


def tokens(missing: float = 0.0) -> Tokens:
    torch.manual_seed(1)
    observed = torch.rand(2, N, 2, TOKENIZER.patch_size) >= missing if missing else None
    values = torch.randn(2, N, 2, TOKENIZER.patch_size)
    features = torch.randn(2, N, TOKENIZER.feature_width)
    return Tokens(values if observed is None else values * observed, observed, features, TOKENIZER.channels)


def blank(tokens: Tokens, number: int) -> Tokens:
    """The tokens, with nothing observed in one of them."""
    observed = torch.ones_like(tokens.values, dtype=torch.bool)
    observed[:, number] = False
    return dataclasses.replace(tokens, values=tokens.values * observed, observed=observed)


def test_one_latent_for_every_token(encoder):
    assert encoder(tokens()).shape == (2, N, 32)


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_permuting_tokens_permutes_latents(encoder, missing):
    order = torch.stack([torch.randperm(N), torch.randperm(N)])
    latents = encoder(tokens(missing))
    permuted = encoder(tokens(missing).take(order))
    torch.testing.assert_close(
        permuted, torch.stack([latents[0, order[0]], latents[1, order[1]]]), atol=1e-5, rtol=1e-5
    )


def test_a_subset_is_encoded_as_if_it_were_all_there_is(encoder):
    # Hiding tokens by taking the others equals hiding them by observing nothing of them: for the others.
    kept = torch.arange(1, N).expand(2, -1)
    taken = encoder(tokens().take(kept))
    hidden = encoder(blank(tokens(), 0))[:, 1:]
    torch.testing.assert_close(taken, hidden, atol=1e-5, rtol=1e-5)
    assert (taken - encoder(tokens())[:, 1:]).abs().max() > 1e-2  # what is hidden mattered


def test_a_token_without_observed_values_moves_no_other(encoder):
    first = blank(tokens(), 3)
    features = first.features.clone()
    features[:, 3] += 5.0
    values = first.values.clone()
    values[:, 3] = 7.0  # against the contract, and still without influence
    before, after = encoder(first), encoder(dataclasses.replace(first, values=values, features=features))
    others = [n for n in range(N) if n != 3]
    assert torch.equal(before[:, others], after[:, others])
    assert not torch.equal(before[:, 3], after[:, 3])


def test_everything_observed_needs_no_mask(encoder):
    plain = tokens()
    flagged = dataclasses.replace(plain, observed=torch.ones_like(plain.values, dtype=torch.bool))
    torch.testing.assert_close(encoder(plain), encoder(flagged), atol=1e-5, rtol=1e-5)


def test_samples_do_not_see_each_other(encoder):
    both = tokens(0.3)
    assert both.observed is not None
    alone = encoder(Tokens(both.values[:1], both.observed[:1], both.features[:1], both.channels))
    torch.testing.assert_close(encoder(both)[:1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_without_any_value_yields_numbers(encoder, dtype):
    nothing = Tokens(
        torch.zeros(2, N, 2, TOKENIZER.patch_size),
        torch.zeros(2, N, 2, TOKENIZER.patch_size, dtype=torch.bool),
        tokens().features,
        TOKENIZER.channels,
    )
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert encoder(nothing).isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bfloat16_is_that_of_torch(masked):
    # Sums and weights are rounded to 8 bits: to 0.4 % of values of order one, a few times over.
    query, key, value = torch.randn(3, 2, 4, N, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    mask = torch.zeros(2, 1, 1, N).masked_fill(torch.arange(N) % 3 == 0, torch.finfo(torch.bfloat16).min / 2)
    given = mask.bfloat16() if masked else None
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), attn_mask=mask if masked else None
    )
    torch.testing.assert_close(attend(query, key, value, given).float(), expected, atol=0.02, rtol=0.02)


def test_latents_move_where_a_token_is_moved(encoder):
    plain = tokens()
    moved = dataclasses.replace(plain, features=plain.features.roll(1, dims=1))
    assert (encoder(plain) - encoder(moved)).abs().max() > 1e-2


def test_a_fresh_encoder_is_of_order_one():
    # Patches of 4 standard normal values and weights of variance 1/4 give embeddings of variance 1 (two channels, over
    # sqrt(2)); positions and small residual branches add little.
    torch.manual_seed(0)
    latents = Encoder(EncoderConfig(size="tiny"), {"grid": TOKENIZER})(tokens())
    assert 0.7 < latents.std() < 1.5


@pytest.mark.parametrize("size", list(SIZES))
def test_the_dial_sets_width_depth_and_heads(size):
    assert EncoderConfig(size=size).resolved == SIZES[size]
    assert EncoderConfig(size=size, depth=1).resolved == (SIZES[size][0], 1, SIZES[size][2])


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match=r"one of tiny, small, base, large, got 'huge'"):
        EncoderConfig(size="huge")
    with pytest.raises(UserError, match=r"width of 50 is not a multiple of encoder.heads, 4"):
        EncoderConfig(width=50)


def test_a_latent_is_the_embedding_beside_the_last_block(encoder):
    latents = encoder.latents(tokens())
    assert latents.shape == (2, N, 64) and encoder.latent_width == 64
    adapter = encoder.domains["grid"]
    expected = adapter.embedding(tokens()) + adapter.position(tokens().features)
    torch.testing.assert_close(latents[..., :32], expected)
    torch.testing.assert_close(latents[..., 32:], encoder(tokens()))


def test_latent_layers_outside_of_the_encoder_are_refused():
    # two blocks have the outputs 0, 1 and 2
    EncoderConfig(width=32, depth=2, heads=4, latent_layers=(2, -3))
    for layers in ((3,), (-4,), ()):
        with pytest.raises(UserError, match="latent_layers must name outputs between 0"):
            EncoderConfig(width=32, depth=2, heads=4, latent_layers=layers)


def test_domains_share_the_blocks_and_nothing_else():
    torch.manual_seed(0)
    joint = Encoder(EncoderConfig(width=32, depth=2, heads=4), {"a": TOKENIZER, "b": TOKENIZER})
    a, b = (dataclasses.replace(tokens(), domain=name) for name in "ab")
    assert (joint(a) - joint(b)).abs().max() > 1e-2
    joint.domains["b"].load_state_dict(joint.domains["a"].state_dict())
    assert torch.equal(joint(a), joint(b))
    joint(a).sum().backward()
    assert all(weight.grad is None for weight in joint.domains["b"].parameters())
    assert all(weight.grad is not None for weight in joint.blocks.parameters())


def test_a_domain_that_the_encoder_does_not_have_is_refused(encoder):
    with pytest.raises(UserError, match="no domain 'b'; its domains are grid"):
        encoder(dataclasses.replace(tokens(), domain="b"))
    torch.testing.assert_close(encoder(dataclasses.replace(tokens(), domain="grid")), encoder(tokens()))
