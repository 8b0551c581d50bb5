import numpy as np
import pytest

from sciJEPA.errors import UserError
from sciJEPA.probes import Ridge, rows_of
from sciJEPA.probing.attentive import Attentive
from sciJEPA.probing.training import TrainingOptions

TOKENS, LATENT = 12, 4
TRAIN, VALIDATION, TEST = np.arange(600), np.arange(600, 800), np.arange(800, 1000)
FAST = TrainingOptions(epochs=40, learning_rate=2e-2)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1000, TOKENS, LATENT)).astype(np.float32)


def fit(tokens: np.ndarray, targets: list[np.ndarray], groups: int = 1, **options: object) -> Attentive:
    probe = Attentive(tokens=TOKENS, **{"heads": 1, "options": FAST} | options)  # type: ignore[arg-type]
    return probe.fit(
        rows_of(tokens),
        [rows_of(target) for target in targets],
        TRAIN,
        VALIDATION,
        weights=np.ones(targets[0].shape[1]),
        groups=groups,
    )


def share(prediction: np.ndarray, target: np.ndarray) -> float:
    """Error on the test times over the target's variance."""
    return float(((prediction - target[TEST]) ** 2).mean() / target[TEST].var())


def marked(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same noise, but one token of each row, another one each time, is marked in its first number by 3."""
    tokens = tokens.copy()
    which = np.random.default_rng(7).integers(0, TOKENS, len(tokens))
    tokens[:, :, 0] *= 0.1
    tokens[np.arange(len(tokens)), which, 0] += 3
    return tokens, tokens[np.arange(len(tokens)), which, 1:2]


def test_it_finds_the_place_where_the_signal_is() -> None:
    tokens = noise()
    target = tokens[:, 5, 2:3]
    probe = fit(tokens, [target])
    assert share(probe.predict(TEST)[0], target) < 0.02
    attention = probe.attention(TEST)
    assert attention.shape == (200, 1, 1, 1, TOKENS)
    np.testing.assert_allclose(attention.sum(axis=-1), 1, rtol=1e-5)
    assert attention[:, 0, 0, 0, 5].min() > 0.7


def test_it_finds_the_token_that_carries_the_signal_wherever_it_is() -> None:
    tokens, target = marked(noise())
    assert share(fit(tokens, [target]).predict(TEST)[0], target) < 0.1
    # Mean pooling dilutes the marked token twelvefold: 1/12 of the variance is left to a linear probe at best.
    pooled = Ridge().fit(rows_of(tokens.mean(axis=1)), [rows_of(target)], TRAIN, VALIDATION, weights=np.ones(1))
    assert share(pooled.predict(TEST)[0], target) > 0.85
    flat = Ridge().fit(rows_of(tokens), [rows_of(target)], TRAIN, VALIDATION, weights=np.ones(1))
    assert share(flat.predict(TEST)[0], target) > 0.85


def test_each_lead_and_group_has_a_query_of_its_own() -> None:
    tokens = noise()
    targets = [tokens[:, [1, 2], 0], tokens[:, [3, 4], 0]]
    probe = fit(tokens, targets, groups=2)
    places = probe.attention(TEST).mean(axis=0)[:, :, 0].argmax(axis=-1)
    np.testing.assert_array_equal(places, [[1, 2], [3, 4]])
    for found, wanted in zip(probe.predict(TEST), targets, strict=True):
        assert share(found, wanted) < 0.02


def test_several_heads_look_at_several_places() -> None:
    tokens = noise()
    target = tokens[:, 2, :1] - tokens[:, 9, :1]
    assert share(fit(tokens, [target], heads=4).predict(TEST)[0], target) < 0.05
    # Half and half would tell their sum but not their difference.
    assert share(fit(tokens, [target], heads=1).predict(TEST)[0], target) > 0.4


def test_a_field_is_forecast_through_its_components() -> None:
    tokens, rng = noise(), np.random.default_rng(3)
    patterns = rng.normal(size=(2, 500))
    field = 7 + tokens[:, 4, :2] @ patterns
    probe = fit(tokens, [field], rank=2)
    assert share(probe.predict(TEST)[0], field) < 0.02
    parameters = sum(p.numel() for p in probe._network.parameters())
    # a query of 4, a number for each of 12 places, 4 x 2 weights and 2 offsets, and not 4 x 500
    assert parameters == 4 + 12 + 8 + 2
    error = ((probe.predict(VALIDATION)[0] - field[VALIDATION]) ** 2).mean()
    assert probe.error_[0, 0] == pytest.approx(error, rel=1e-3)


def test_shifted_and_scaled_latents_give_the_same() -> None:
    tokens = noise()
    target = tokens[:, 5, 2:3]
    one, two = (fit(t, [target]).predict(TEST)[0] for t in (tokens, 1000 * (tokens.astype(float) + 10)))
    np.testing.assert_allclose(one, two, atol=0.05)


def test_the_same_seed_gives_the_same_probe() -> None:
    tokens, target = marked(noise())
    one, two = (fit(tokens, [target], seed=3).predict(TEST)[0] for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_a_width_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(UserError, match=r"48 numbers do not fall into 5 tokens"):
        Attentive(tokens=5).fit(rows_of(noise()), [rows_of(noise()[:, 0])], TRAIN, VALIDATION, weights=np.ones(4))
