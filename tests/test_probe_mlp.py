import numpy as np
import pytest
import torch

from sciJEPA.errors import UserError
from sciJEPA.probes import Ridge, Rows, rows_of
from sciJEPA.probing.mlp import MLP
from sciJEPA.probing.training import TargetComponents, TrainingOptions, batches, kept_in_memory

TRAIN, VALIDATION, TEST = np.arange(500), np.arange(500, 700), np.arange(700, 900)
FAST = TrainingOptions(epochs=60, learning_rate=1e-2)


def product(count: int = 900) -> tuple[np.ndarray, np.ndarray]:
    """Two numbers and their product, which no linear probe can read."""
    features = np.random.default_rng(0).normal(size=(count, 2))
    return features, features[:, :1] * features[:, 1:]


def fit(features: np.ndarray, targets: list[np.ndarray], groups: int = 1, **options: object) -> MLP:
    probe = MLP(hidden=32, options=FAST, **options)  # type: ignore[arg-type]
    return probe.fit(
        rows_of(features),
        [rows_of(target) for target in targets],
        TRAIN,
        VALIDATION,
        weights=np.ones(targets[0].shape[1]),
        groups=groups,
    )


def share(probe: MLP | Ridge, target: np.ndarray, lead: int = 0) -> float:
    """Error on the test times over the target's variance."""
    return float(((probe.predict(TEST)[lead] - target[TEST]) ** 2).mean() / target[TEST].var())


def test_a_product_is_read_where_a_linear_probe_reads_nothing() -> None:
    features, target = product()
    ridge = Ridge().fit(rows_of(features), [rows_of(target)], TRAIN, VALIDATION, weights=np.ones(1))
    assert share(ridge, target) > 0.95
    assert share(fit(features, [target]), target) < 0.1


def test_noise_is_forecast_as_climatology_and_each_cell_stops_in_its_own_epoch() -> None:
    features, target = product()
    noise = np.random.default_rng(1).normal(size=(900, 1)) + 5
    both = np.concatenate([target, noise], axis=1)
    probe = fit(features, [both, both[:, ::-1].copy()], groups=2)
    assert probe.epoch_.shape == probe.error_.shape == (2, 2)
    assert len(np.unique(probe.epoch_)) > 1
    assert share(probe, both) < 0.8
    assert np.sqrt(((probe.predict(TEST)[0][:, 1] - 5) ** 2).mean()) < 0.3
    # epoch 0 is climatology, so that no cell is worse than the variance around the mean of the training times
    assert probe.error_[0, 1] <= ((noise[VALIDATION] - noise[TRAIN].mean()) ** 2).mean() * 1.0001


def test_the_error_is_that_of_the_validation_forecasts_even_where_components_are_left_out() -> None:
    features, target = product()
    field = np.concatenate([target, 0.3 * features, np.random.default_rng(2).normal(size=(900, 3))], axis=1)
    probe = fit(features, [field], rank=2)
    error = ((probe.predict(VALIDATION)[0] - field[VALIDATION]) ** 2).mean()
    assert probe.error_[0, 0] == pytest.approx(error, rel=1e-4)


def test_the_same_seed_gives_the_same_probe_and_leaves_the_generator_alone() -> None:
    features, target = product()
    state = torch.random.get_rng_state()
    one, two, other = (fit(features, [target], seed=seed).predict(TEST)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 1e-3
    assert torch.equal(state, torch.random.get_rng_state())


def test_neither_features_nor_truth_of_test_times_are_read() -> None:
    features, target = product()
    seen: set[int] = set()

    def watched(array: np.ndarray) -> Rows:
        return Rows(lambda times: (seen.update(times.tolist()), array[times])[1], array.shape[1])

    MLP(hidden=4, options=TrainingOptions(epochs=2)).fit(
        watched(features), [watched(target)], TRAIN, VALIDATION, weights=np.ones(1)
    )
    assert seen == set(range(700))


def test_rows_too_large_for_memory_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features, target = product()
    kept = fit(features, [target]).predict(TEST)[0]
    monkeypatch.setattr("sciJEPA.probing.training.MEMORY_LIMIT", 0)
    np.testing.assert_array_equal(fit(features, [target]).predict(TEST)[0], kept)


# --- what MLP and Attentive share


def test_every_time_is_drawn_once_an_epoch_in_another_order_each() -> None:
    times = np.arange(1000, 2500)
    epochs = [np.concatenate(list(batches(times, 64, seed=0, epoch=epoch))) for epoch in (1, 2)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), times)
    assert (epochs[0] != epochs[1]).mean() > 0.9
    assert {len(batch) for batch in batches(times, 64, seed=0, epoch=1)} <= set(range(56, 73))


def test_rows_kept_in_memory_are_the_rows() -> None:
    values = np.random.default_rng(0).normal(size=(9, 2))
    rows = kept_in_memory(rows_of(values), np.array([7, 2, 4]))
    np.testing.assert_allclose(rows.read(np.array([4, 7])), values[[4, 7]], rtol=1e-6)


def test_components_of_targets_have_variance_one_and_come_back() -> None:
    rng = np.random.default_rng(0)
    values = 4 + rng.normal(size=(300, 6)) * [1, 2, 3, 10, 20, 30]
    outputs = TargetComponents.fit(rows_of(values), np.arange(300), 3, weights=np.ones(6), groups=2)
    components = outputs.components(values)
    assert components.shape == (300, 2, 3)
    np.testing.assert_allclose((components**2).sum(axis=2).mean(axis=0), [1, 1], rtol=1e-5)
    np.testing.assert_allclose(outputs.restore(components), values, atol=1e-3)
    np.testing.assert_allclose(outputs.lost(values), [0, 0], atol=1e-9)


def test_options_that_train_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="must be positive"):
        TrainingOptions(epochs=0)
