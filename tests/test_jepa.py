import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sciJEPA.archive import open_archive
from sciJEPA.encoder import EncoderConfig
from sciJEPA.errors import UserError
from sciJEPA.jepa import JEPA, ObjectiveConfig
from sciJEPA.loader import BatchStream, WindowReader
from sciJEPA.losses import centre, variance_term
from sciJEPA.masking import Masker, MaskingConfig, MaskPlan
from sciJEPA.normalize import fit_normalizer
from sciJEPA.predictor import PredictorConfig
from sciJEPA.samples import window_starts
from sciJEPA.synthetic import travelling_waves
from sciJEPA.target import momentum
from sciJEPA.tokenizers.base import Batch
from sciJEPA.tokenizers.grid import GridSpec, GridTokenizer, GridTokenizerConfig

TOKENIZER = GridTokenizer(
    GridTokenizerConfig(),
    GridSpec(
        channels=("z",),
        latitude=tuple(31.875 + 3.75 * i for i in range(8)),
        longitude=tuple(22.5 * i for i in range(16)),
        cadence=24.0,
        periodic=True,
        window=6,
        context=4,
    ),
)
PAST = 4 * 8  # 4 of 6 steps, 2 x 4 patches


def build(**objective) -> JEPA:
    torch.manual_seed(0)
    return JEPA(
        {"grid": TOKENIZER},
        EncoderConfig(width=32, depth=2, heads=4),
        PredictorConfig(width=16, depth=1, heads=2),
        ObjectiveConfig(**objective),
    )


def data(size: int = 4, missing: float = 0.0) -> Batch:
    torch.manual_seed(1)
    values = torch.randn(size, 1, 6, 8, 16)
    observed = torch.rand(values.shape) >= missing if missing else None
    if observed is not None:
        values = values * observed
    return Batch(values, observed, torch.rand(size, 6, 4), torch.arange(size))


def plan(strategy: str, size: int = 4) -> MaskPlan:
    weights = {name: float(name == strategy) for name in ("forecast", "blocks", "random")}
    return Masker(TOKENIZER.grid, MaskingConfig(**weights))(range(size), epoch=0, step=0)


TWO_CHANNELS = GridTokenizer(GridTokenizerConfig(), dataclasses.replace(TOKENIZER.spec, channels=("z", "t")))


def build_of_two(**objective) -> JEPA:
    torch.manual_seed(0)
    return JEPA(
        {"grid": TWO_CHANNELS},
        EncoderConfig(width=32, depth=2, heads=4),
        PredictorConfig(width=16, depth=1, heads=2),
        ObjectiveConfig(**objective),
    )


def data_of_two() -> Batch:
    torch.manual_seed(2)
    return dataclasses.replace(data(), values=torch.randn(4, 2, 6, 8, 16))


def stream(steps: int, batch_size: int = 16) -> BatchStream:
    archive = open_archive(travelling_waves(300, nlat=8, nlon=16))
    reader = WindowReader(archive, fit_normalizer(archive, ((0, len(archive)),)))
    masker = Masker(TOKENIZER.grid, MaskingConfig())
    return BatchStream(reader, masker, window_starts(archive, ((0, len(archive)),), 6), 6, steps, batch_size)


def train(jepa: JEPA, steps: int) -> list[float]:
    """Prediction losses of a tiny run."""
    optimizer = torch.optim.AdamW([p for p in jepa.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for batch, mask in stream(steps):
        terms = jepa(batch, mask).terms
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        jepa.target.update(jepa.encoder, momentum(0.1, steps))
        losses.append(terms.prediction.item())
    return losses


@pytest.mark.parametrize("target", ["ema", "vicreg", "sigreg", "mae"])
@pytest.mark.parametrize("strategy", ["forecast", "blocks", "random"])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_every_target_is_met_by_a_prediction(target, strategy, missing):
    output = build(target=target)(data(missing=missing), plan(strategy))
    assert output.predicted.shape == output.target.shape
    assert output.terms.total.isfinite()


def test_total_is_the_weighted_sum():
    terms = build(variance=0.5, covariance=0.25, sigreg=0.1)(data(), plan("blocks")).terms
    expected = terms.prediction + 0.5 * terms.variance + 0.25 * terms.covariance + 0.1 * terms.sigreg
    torch.testing.assert_close(terms.total, expected)
    assert min(terms.variance, terms.covariance, terms.sigreg) > 0


def test_the_loss_is_deterministic():
    assert build()(data(), plan("blocks")).terms == build()(data(), plan("blocks")).terms


@pytest.mark.parametrize("target", ["ema", "mae"])
def test_gradient_reaches_encoder_and_predictor_and_not_the_target(target):
    jepa = build(target=target)
    jepa(data(missing=0.2), plan("forecast")).terms.total.backward()
    for name, weight in jepa.named_parameters():
        if name.startswith("target."):
            assert weight.grad is None and not weight.requires_grad
        else:
            assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_online_targets_carry_gradient():
    assert build(target="vicreg")(data(), plan("blocks")).target.requires_grad
    assert not build(target="ema")(data(), plan("blocks")).target.requires_grad


def test_a_fresh_average_gives_the_encoders_own_targets():
    first, second = (build(target=target)(data(), plan("blocks")).target for target in ("ema", "vicreg"))
    torch.testing.assert_close(first, second)


def test_reconstruction_targets_are_the_patches_themselves():
    batch, mask = data(), plan("blocks")
    wanted = TOKENIZER(batch).take(mask.target).values.flatten(2)
    assert torch.equal(build(target="mae")(batch, mask).target, wanted)


@pytest.mark.parametrize("scope", ["window", "future"])
def test_forecast_targets_are_latents_of_the_future_tokens(scope):
    jepa, batch = build(scope=scope, standardise="none"), data()
    mask = plan("forecast")
    assert mask.target.min() == PAST
    tokens = TOKENIZER(batch)
    seen = tokens if scope == "window" else tokens.take(torch.arange(PAST, TOKENIZER.grid.count).expand(4, -1))
    expected = jepa.encoder(seen)[:, -(TOKENIZER.grid.count - PAST) :]
    torch.testing.assert_close(jepa(batch, mask).target, expected)


def test_the_future_alone_knows_nothing_of_the_past():
    batch, mask = data(), plan("forecast")
    values = batch.values.clone()
    values[:, :, :4] += 1.0
    changed = dataclasses.replace(batch, values=values)
    for scope, same in (("future", True), ("window", False)):
        jepa = build(scope=scope)
        assert torch.allclose(jepa(batch, mask).target, jepa(changed, mask).target, atol=1e-6) == same


@pytest.mark.parametrize("strategy", ["blocks", "random"])
def test_hidden_parts_of_the_issue_window_are_encoded_without_its_future(strategy):
    batch, mask = data(), plan(strategy)
    values = batch.values.clone()
    values[:, :, 4:] = 9.0
    jepa = build()
    first, second = jepa(batch, mask), jepa(dataclasses.replace(batch, values=values), mask)
    assert torch.equal(first.target, second.target) and first.terms == second.terms


@pytest.mark.parametrize("strategy", ["forecast", "blocks", "random"])
def test_hidden_values_do_not_leak_into_predictions(strategy):
    batch, mask = data(), plan(strategy)
    hidden = torch.zeros(4, TOKENIZER.grid.count, 1, TOKENIZER.patch_size, dtype=torch.bool)
    hidden[torch.arange(4)[:, None], mask.target] = True
    values = batch.values.masked_fill(TOKENIZER.unpatchify(hidden.float()).bool(), 100.0)
    jepa = build()
    first, second = jepa(batch, mask), jepa(dataclasses.replace(batch, values=values), mask)
    assert torch.equal(first.predicted, second.predicted) and torch.equal(first.context, second.context)
    assert not torch.equal(first.target, second.target)


def test_encode_gives_every_token_of_an_issue_window():
    jepa, batch = build(), data()
    issue = Batch(batch.values[:, :, :4], None, batch.calendar[:, :4], batch.samples)
    assert jepa.encode(issue).shape == (4, PAST, 64)  # embedding and last block side by side, 32 each
    assert not jepa.encode(issue).requires_grad
    torch.testing.assert_close(jepa.encode(issue), jepa.encode(issue, encoder="online"))


def test_training_lowers_the_prediction_loss_and_does_not_collapse():
    # Three waves of known speed and noise of 0.1 in fields of order 1: nearly all of it can be predicted. Predicting
    # the mean scores 1 against standardised targets.
    jepa = build()
    losses = train(jepa, 60)
    assert sum(losses[-10:]) / 10 < 0.7 * sum(losses[:5]) / 5
    batch, _ = next(iter(stream(1)))
    for encoder in ("online", "target"):
        latents = jepa.encode(batch, encoder=encoder).detach().flatten(0, 1)
        assert latents.std(dim=0).median() > 0.5  # the hinge asks for 1
        share = torch.linalg.eigvalsh(latents.T.cov().double()) / latents.var(dim=0).sum()
        assert torch.exp(-(share * share.clamp_min(1e-12).log()).sum()) > 4  # directions, of 32


@pytest.mark.parametrize(
    "field, value", [("target", "simsiam"), ("distance", "l3"), ("standardise", "yes"), ("scope", "past")]
)
def test_unknown_choices_are_refused(field, value):
    with pytest.raises(UserError, match=f"objective.{field} must be one of .*'{value}'"):
        ObjectiveConfig(**{field: value})


@pytest.mark.parametrize("target", ["ema", "vicreg", "sigreg", "mae"])
def test_a_batch_trains_its_own_domain_and_what_is_shared(target):
    other = GridTokenizer(
        GridTokenizerConfig(patch_latitude=2, patch_longitude=8),
        dataclasses.replace(TOKENIZER.spec, channels=("q", "t"), window=8),
    )
    torch.manual_seed(0)
    jepa = JEPA(
        {"a": TOKENIZER, "b": other},
        EncoderConfig(width=32, depth=2, heads=4),
        PredictorConfig(width=16, depth=1, heads=2),
        ObjectiveConfig(target=target),
    )
    jepa(dataclasses.replace(data(), domain="a"), plan("forecast")).terms.total.backward()
    learned = {name: weight for name, weight in jepa.named_parameters() if weight.requires_grad}
    assert any(".b." in name for name in learned)
    for name, weight in learned.items():
        if ".b." in name:
            assert weight.grad is None, name
        elif ".missing." not in name:
            assert weight.grad is not None and weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("target", "weights"),
    [("ema", (0.02, 0.001, 0)), ("vicreg", (1, 0.04, 0)), ("sigreg", (0, 0, 0.05)), ("mae", (0, 0, 0))],
)
def test_weights_that_are_not_given_go_with_the_target(target, weights):
    assert ObjectiveConfig(target=target).weights == weights
    assert ObjectiveConfig(target=target, covariance=0.5).weights == (weights[0], 0.5, weights[2])


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"target": "salt"}, "either set objective.teacher"),
        ({"target": "salt", "teacher": "run", "teacher_steps": 5}, "either set objective.teacher"),
        ({"sigreg": -1.0}, "objective.sigreg must be at least 0"),
        ({"layers": ()}, "one of the layers"),
        ({"slices": 0}, "slices of at least 1"),
        ({"target": "mae", "reconstruction": 1.0}, "those of mae are patches"),
    ],
)
def test_impossible_objectives_are_refused(objective, message):
    with pytest.raises(UserError, match=message):
        ObjectiveConfig(**objective)


@pytest.mark.parametrize("layers", [(3,), (-4,), (0, 5)])
def test_targets_of_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(UserError, match=r"objective\.layers must name outputs between 0 .* and 2"):
        build(layers=layers)


def test_patches_beside_latents_add_their_distance():
    plain, both = build(), build(reconstruction=0.5)
    batch, masks = data(missing=0.3), plan("forecast")
    both.load_state_dict(plain.state_dict(), strict=False)
    torch.nn.init.zeros_(both.predictor.patches["grid"].weight)  # so that every patch is predicted as zero
    alone, terms = plain(batch, masks).terms, both(batch, masks).terms
    assert alone.reconstruction is None
    wanted = TOKENIZER(batch).take(masks.target)
    square = (wanted.values.flatten(2).pow(2).mean(dim=-1) * wanted.weight).sum() / wanted.weight.sum()
    torch.testing.assert_close(terms.reconstruction, square)
    assert terms.prediction == alone.prediction
    torch.testing.assert_close(terms.total, alone.total + 0.5 * square)
    terms.total.backward()
    assert both.predictor.patches["grid"].weight.grad.abs().sum() > 0


def test_several_layers_are_predicted_side_by_side():
    jepa, batch, mask = build(layers=(0, -1), standardise="none"), data(), plan("forecast")
    output = jepa(batch, mask)
    expected = [jepa.target.module.outputs(TOKENIZER(batch), [layer])[:, PAST:] for layer in (0, 2)]
    torch.testing.assert_close(output.target, torch.cat(expected, dim=-1))
    assert output.predicted.shape == output.target.shape == (4, 2 * 8, 64)


def test_both_branches_are_regularised_where_targets_have_gradient():
    # The variance term is the mean over context and target latents, before they are standardised.
    jepa, batch, mask = build(target="vicreg"), data(), plan("forecast")
    output = jepa(batch, mask)
    assert output.encoded is not None
    terms = [variance_term(centre(part.flatten(0, 1)).covariance) for part in (output.context, output.encoded)]
    torch.testing.assert_close(output.terms.variance, (terms[0] + terms[1]) / 2)


def test_directions_of_sigreg_follow_the_step():
    jepa, batch, mask = build(target="sigreg"), data(), plan("forecast")
    first, again, other = (jepa(batch, mask, step=step).terms for step in (1, 1, 2))
    assert first == again and first.sigreg != other.sigreg and first.prediction == other.prediction


def test_over_time_what_differs_between_places_alone_has_no_variance():
    # Constant in time: with patches of one step, a place's latents differ by their position features at most.
    batch = data()
    still = dataclasses.replace(
        batch, values=batch.values[:, :, :1].expand_as(batch.values).contiguous(), calendar=torch.zeros(4, 6, 4)
    )
    over = {name: build(over=name, variance=1.0)(still, plan("forecast")).terms.variance for name in ("time", "batch")}
    moving = build(over="time", variance=1.0)(batch, plan("forecast")).terms.variance
    assert over["time"] > over["batch"] + 0.2 and over["time"] > moving + 0.2


def test_over_time_needs_times():
    single = GridTokenizer(GridTokenizerConfig(patch_time=2), dataclasses.replace(TOKENIZER.spec, window=4, context=2))
    parts = EncoderConfig(width=32, depth=2, heads=4), PredictorConfig(width=16, depth=1, heads=2)
    with pytest.raises(UserError, match=r"issue window of 'grid' has one; make tokenizer.patch_time smaller"):
        JEPA({"grid": single}, *parts, ObjectiveConfig(over="time"))
    JEPA({"grid": single}, *parts, ObjectiveConfig(over="time", variance=0.0, covariance=0.0))


# --- masks


@pytest.mark.parametrize("target", ["ema", "vicreg", "sigreg", "mae"])
@pytest.mark.parametrize("strategy", ["forecast", "blocks", "random"])
def test_patches_without_any_observed_value_are_neither_context_nor_target(target, strategy):
    # What lies in them, and what the target encoder and predictor make of them, changes no loss and no gradient.
    batch, mask = data(), plan(strategy)
    observed = torch.ones_like(batch.values, dtype=torch.bool)
    observed[:, :, 1, :4, 4:8] = False  # in the issue window
    observed[:2, :, 4:, 4:, :8] = False  # and after it
    results = []
    for fill in (0.0, 50.0):
        jepa = build(target=target)
        output = jepa(dataclasses.replace(batch, values=batch.values.where(observed, fill), observed=observed), mask)
        output.terms.total.backward()
        gradient = {n: p.grad for n, p in jepa.named_parameters() if p.grad is not None}
        results.append((output.terms.total.detach(), gradient))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("target", ["ema", "vicreg", "sigreg", "mae"])
def test_hidden_channels_do_not_leak_into_predictions(target):
    masker = Masker(TWO_CHANNELS.grid, MaskingConfig(forecast=0, variable=1), channels=2)
    mask, batch = masker(range(4), epoch=0, step=0), data_of_two()
    assert mask.channels is not None
    (hidden,) = {0, 1} - set(mask.channels)
    values = batch.values.clone()
    values[:, hidden] += 5.0
    jepa = build_of_two(target=target)
    first, second = jepa(batch, mask), jepa(dataclasses.replace(batch, values=values), mask)
    assert torch.equal(first.predicted, second.predicted) and torch.equal(first.context, second.context)
    assert not torch.equal(first.target, second.target)


COMPILED = """
import torch
from test_jepa import build, data, plan
from sciJEPA.jepa import compiled_in_training

for objective, missing in (({}, 0.0), ({"target": "mae"}, 0.3), ({"target": "vicreg", "over": "time"}, 0.3)):
    found = []
    for compiled in (False, True):
        jepa = build(**objective)
        if compiled:
            # As a whole, or not at all: a break in it would start many small kernels again.
            whole = compiled_in_training(jepa.compare, backend="aot_eager", fullgraph=True)
            jepa.__dict__["compare"] = whole
        loss = jepa(data(missing=missing), plan("forecast")).terms.total
        loss.backward()
        gradients = {name: weight.grad for name, weight in jepa.named_parameters() if weight.grad is not None}
        with torch.no_grad():
            again = jepa(data(missing=missing), plan("forecast")).terms.total
        torch.testing.assert_close(again, loss.detach())
        found.append({"loss": loss.detach(), **gradients})
    torch.testing.assert_close(found[1], found[0])
print("compiled", torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


def test_a_step_can_be_compiled_as_a_whole(repository: Path) -> None:
    # In a process without checks of shapes, which the compiler does not understand.
    environment = os.environ | {"PYTHONPATH": f"{repository}{os.pathsep}{repository / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "compiled 3\n"
