"""The length of a run: what a curve can tell of it, and what it cannot."""

import numpy as np
import pandas as pd
import pytest

from sciJEPA.training.course import LEAST_ROWS, length_advice


def metrics(loss: np.ndarray, name: str = "validation_loss") -> pd.DataFrame:
    return pd.DataFrame({"step": 20 * np.arange(1, len(loss) + 1), "loss": 1.0, name: loss})


def test_a_loss_that_still_falls() -> None:
    advice = length_advice(metrics(np.linspace(1, 0.4, 60)))
    assert list(advice) == [""] and "fell by 42% in the second half" in advice[""]


def test_a_level_loss_is_no_proof_that_all_is_learned() -> None:
    rng = np.random.default_rng(0)
    plateau = np.concatenate([np.linspace(1, 0.8, 10), np.full(50, 0.8)]) * (1 + 0.01 * rng.standard_normal(60))
    advice = length_advice(metrics(plateau))[""]
    assert "level since step 160 of 1200" in advice and "only a longer run can tell" in advice


def test_single_rows_that_stand_out_say_nothing() -> None:
    loss = np.full(60, 0.8)
    loss[[45, 59]] = 3.0
    assert "level since step 20 of 1200" in length_advice(metrics(loss))[""]


def test_what_left_its_plateau_and_came_to_rest_needs_no_word() -> None:
    parts = np.full(20, 0.8), np.linspace(0.8, 0.42, 10), np.linspace(0.42, 0.4, 15), np.full(15, 0.4)
    assert length_advice(metrics(np.concatenate(parts))) == {}


def test_a_loss_that_rises_again_is_one_of_windows_learned_by_heart() -> None:
    down, up = np.linspace(1, 0.64, 20), np.linspace(0.64, 0.78, 40)
    assert "rose by 21% after step 400 of 1200" in length_advice(metrics(np.concatenate([down, up])))[""]
    # Targets that gain in variance make a loss rise that has never fallen, and a little is noise.
    assert "by heart" not in str(length_advice(metrics(up)))
    little = np.concatenate([down, np.linspace(0.64, 0.66, 40)])
    assert length_advice(metrics(little)) == {} or "by heart" not in length_advice(metrics(little))[""]


@pytest.mark.parametrize("loss", [np.linspace(1, 0.4, LEAST_ROWS - 1), np.full(40, np.nan)])
def test_too_few_rows_say_nothing(loss: np.ndarray) -> None:
    assert length_advice(metrics(loss)) == {}


def test_every_domain_has_its_own() -> None:
    both = metrics(np.linspace(1, 0.4, 60), "flow.validation_loss").assign(**{"load.validation_loss": 0.7})
    advice = length_advice(both)
    assert list(advice) == ["flow", "load"] and "fell" in advice["flow"] and "level" in advice["load"]
