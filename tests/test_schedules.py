import numpy as np
import pytest

from sciJEPA.training.schedules import learning_rate_factor, weight_decay_at


def test_learning_rate_rises_and_falls() -> None:
    # 100 steps, 10 of warmup: first step 1/10 of the peak, never above it, zero at the end
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(101)]
    assert factors[0] == 0.1
    assert max(factors) < 1
    assert factors[100] == 0
    assert np.argmax(factors) == 9
    assert learning_rate_factor(0, 100, 0.0) == 1


def test_a_constant_rate_falls_in_a_line_at_the_end() -> None:
    # 100 steps, 10 of warmup, 20 of cooldown: at the peak from step 9 to 80, then 1/20 less each step
    factors = [learning_rate_factor(step, 100, 0.1, "constant", 0.2) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(factors[9:81]) == {1.0}
    assert factors[80:] == pytest.approx([1 - step / 20 for step in range(21)])


def test_before_the_cooldown_the_length_of_the_run_does_not_matter() -> None:
    # 10 steps of warmup in both: a longer run passes through the same weights
    short = [learning_rate_factor(step, 100, 0.1, "constant") for step in range(80)]
    long = [learning_rate_factor(step, 200, 0.05, "constant") for step in range(80)]
    assert short == long


def test_without_a_cooldown_the_rate_stays() -> None:
    assert learning_rate_factor(99, 100, 0.1, "constant", 0.0) == 1


def test_weight_decay_moves_to_its_end() -> None:
    values = [weight_decay_at(step, 100, 0.04, 0.4) for step in range(101)]
    assert values[0] == pytest.approx(0.04) and values[100] == pytest.approx(0.4)
    assert (np.diff(values) > 0).all()
    assert {weight_decay_at(step, 100, 0.05, None) for step in range(101)} == {0.05}
