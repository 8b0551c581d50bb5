import pytest
import torch

from sciJEPA.errors import UserError
from sciJEPA.predictor import Predictor, PredictorConfig

B, C, M, K = 2, 7, 5, 6


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    config = PredictorConfig(width=16, depth=2, heads=4)
    predictor = Predictor(config, in_width=12, feature_widths={"grid": K}, out_width=3)
    for weight in predictor.parameters():  # at its initial size the attention hardly mixes
        torch.nn.init.normal_(weight, std=0.3)
    return predictor


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(B, C, 12), torch.randn(B, C, K), torch.randn(B, M, K)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_one_prediction_for_every_target(predictor, inputs):
    assert predictor(*inputs).shape == (B, M, 3)


def test_an_answer_does_not_depend_on_what_else_is_asked(predictor, inputs):
    context, where, asked = inputs
    together = predictor(context, where, asked)
    for m in range(M):
        close(predictor(context, where, asked[:, m : m + 1]), together[:, m : m + 1])
    other = asked.clone()
    other[:, 1:] = 100.0
    close(predictor(context, where, other)[:, 0], together[:, 0])


def test_permuting_the_context_leaves_the_answers(predictor, inputs):
    context, where, asked = inputs
    order = torch.randperm(C)
    close(predictor(context[:, order], where[:, order], asked), predictor(*inputs))


def test_permuting_the_questions_permutes_the_answers(predictor, inputs):
    context, where, asked = inputs
    order = torch.randperm(M)
    close(predictor(context, where, asked[:, order]), predictor(*inputs)[:, order])


def test_context_and_places_both_matter(predictor, inputs):
    context, where, asked = inputs
    for changed in ((context + 1, where, asked), (context, where + 1, asked), (context, where, asked + 1)):
        assert (predictor(*changed) - predictor(*inputs)).abs().max() > 1e-3


def test_unseen_context_counts_for_nothing(predictor, inputs):
    context, where, asked = inputs
    seen = torch.ones(B, C, dtype=torch.bool)
    seen[:, 2:4] = False
    changed = context.clone()
    changed[:, 2:4] = 50.0
    assert torch.equal(predictor(context, where, asked, seen), predictor(changed, where, asked, seen))
    kept = [0, 1, 4, 5, 6]
    close(predictor(context, where, asked, seen), predictor(context[:, kept], where[:, kept], asked))


def test_a_width_that_heads_do_not_share_is_refused():
    with pytest.raises(UserError, match=r"width of 30 is not a multiple of predictor.heads, 4"):
        PredictorConfig(width=30)


def test_domains_have_their_own_places_and_share_the_way_out_to_latents(inputs):
    context, where, asked = inputs
    config = PredictorConfig(width=16, depth=2, heads=4)
    latents = Predictor(config, in_width=12, feature_widths={"a": K, "b": K + 1}, out_width=3)
    assert list(latents.leave) == ["latent"]
    assert latents(context, where, asked, domain="a").shape == (B, M, 3)
    wider = (torch.cat([part, part[..., :1]], dim=-1) for part in (where, asked))
    assert latents(context, *wider, domain="b").shape == (B, M, 3)
    with pytest.raises(UserError, match="its domains are a, b"):
        latents(context, where, asked, domain="c")


def test_patches_of_each_domain_have_their_own_width(inputs):
    config = PredictorConfig(width=16, depth=2, heads=4)
    patches = Predictor(config, in_width=12, feature_widths={"a": K, "b": K}, out_width={"a": 5, "b": 9})
    for domain, width in (("a", 5), ("b", 9)):
        assert patches(*inputs, domain=domain).shape == (B, M, width)
