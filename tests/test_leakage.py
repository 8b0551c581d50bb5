import doctest

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import sciJEPA.judging.leakage as home
from sciJEPA.errors import UserError
from sciJEPA.judging.leakage import (
    only_at,
    refuse_hindsight,
    refuse_leaky_latents,
    refuse_overlap,
    refuse_shared_times,
    refuse_statistics,
)
from sciJEPA.latents import embed
from sciJEPA.probes import Ridge, rows_of
from sciJEPA.probing.analogs import Analogs
from sciJEPA.probing.attentive import Attentive
from sciJEPA.probing.mlp import MLP
from sciJEPA.probing.training import TrainingOptions
from sciJEPA.synthetic import travelling_waves


def latents(count: int = 30, statistics: str = "2001-01-01 00:00:00 to 2001-01-10 00:00:00") -> xr.Dataset:
    return xr.Dataset(
        {"latents": (("time", "token", "latent"), np.zeros((count, 2, 1)))},
        coords={
            "time": pd.date_range("2001-01-01", periods=count),
            "token_offset": ("token", [-24.0, 0.0]),
        },
        attrs={"statistics_from": statistics, "window_steps": 2},
    )


def splits(ds: xr.Dataset) -> dict[str, xr.Dataset]:
    steps = {"train": slice(0, 10), "validation": slice(10, 15), "test": slice(15, 30)}
    return {name: ds.isel(time=part) for name, part in steps.items()}


def test_fair_latents_pass() -> None:
    refuse_leaky_latents(splits(latents()))


def test_latents_of_embed_pass(model) -> None:  # type: ignore[no-untyped-def]
    found = embed(model, travelling_waves(200), progress=False)
    # trained on the first 140 days
    refuse_leaky_latents({"train": found.isel(time=slice(0, 130)), "test": found.isel(time=slice(150, None))})
    with pytest.raises(UserError, match="statistics must come from training times only"):
        refuse_leaky_latents({"train": found.isel(time=slice(0, 90)), "test": found.isel(time=slice(100, None))})


def test_a_time_belongs_to_one_split() -> None:
    parts = splits(latents())
    parts["test"] = latents().isel(time=slice(13, 30))
    with pytest.raises(UserError, match="validation and test share 2 times, the first 2001-01-14"):
        refuse_leaky_latents(parts)
    parts["test"] = latents().isel(time=slice(9, 10))
    with pytest.raises(UserError, match="splits must not overlap: train and test share 1 time, the first 2001-01-10"):
        refuse_shared_times(parts)


def test_a_latent_knows_nothing_past_its_issue_time() -> None:
    late = latents().assign_coords(token_offset=("token", [0.0, 6.0]))
    with pytest.raises(UserError, match="1 of 2 tokens of train latents reach up to 6 hours past it"):
        refuse_leaky_latents(splits(late))
    with pytest.raises(UserError, match="test latents must say what their encoder saw"):
        refuse_hindsight(latents().drop_vars("token_offset"), "test")
    with pytest.raises(UserError, match="must not know"):
        refuse_hindsight(latents().assign_coords(token_offset=("token", [0.0, np.nan])))


def test_statistics_come_from_training_times() -> None:
    with pytest.raises(UserError, match="and 1 of 20 times that are judged lie within, the first 2001-01-11 00:00:00"):
        refuse_leaky_latents(splits(latents(statistics="2001-01-01 00:00:00 to 2001-01-11 00:00:00")))
    # of another archive, later or earlier: fine
    refuse_leaky_latents(splits(latents(statistics="2010-01-01 00:00:00 to 2011-01-01 00:00:00")))
    # numbers compare as numbers: "9" is less than "10"
    refuse_statistics(("0", "9"), ["10", "11"])
    with pytest.raises(UserError, match="the first 9"):
        refuse_statistics(("0", "10"), ["9", "11"])
    refuse_statistics(("0", "10"), ["2001-01-01 00:00:00"])


@pytest.mark.parametrize("horizon", [0, 1, 3])
@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("order", [("train", "test"), ("test", "train")])
def test_the_gap_that_is_needed(horizon: int, window: int, order: tuple[str, str]) -> None:
    # train before test: train's outcomes end at 9 + horizon, test's begin one step after its first issue step, or at it
    # for horizon 0. test before train: test's outcomes end at 9 + horizon, train's windows begin window - 1 before.
    first = 9 + max(horizon, 1) if order[0] == "train" else 9 + horizon + window

    def at(start: int) -> dict[str, np.ndarray]:
        return {order[0]: np.arange(10), order[1]: np.arange(start, start + 5)}

    refuse_overlap(at(first), horizon=horizon, window=window)
    with pytest.raises(UserError, match="train issued at step"):
        refuse_overlap(at(first - 1), horizon=horizon, window=window)


def test_the_sentence_names_the_pair_and_the_gap() -> None:
    message = (
        r"train issued at step 9 uses steps 8 to 12, validation issued at step 10 is judged on steps 11 to 13; leave 2"
    )
    with pytest.raises(UserError, match=message):
        refuse_overlap({"train": np.arange(10), "validation": np.arange(10, 15)}, horizon=3, window=2)


def test_splits_between_each_other_are_seen() -> None:
    with pytest.raises(UserError, match=r"train issued at step 20 .* test issued at step 19"):
        refuse_overlap({"train": np.array([0, 20, 40]), "test": np.array([10, 19, 30])}, horizon=0, window=2)
    refuse_overlap({"train": np.array([0, 20, 40]), "test": np.array([10, 30])}, horizon=0, window=2)


PROBES = {
    "ridge": Ridge,
    "knn": Analogs,
    "mlp": lambda: MLP(hidden=4, options=TrainingOptions(epochs=2)),
    "attentive": lambda: Attentive(tokens=2, options=TrainingOptions(epochs=2)),
}


@pytest.mark.parametrize("kind", list(PROBES))
def test_every_probe_is_fitted_and_predicts_without_the_truth_of_test_times(kind: str) -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(60, 4)), rng.normal(size=(60, 3))
    train, validation, test = np.arange(30), np.arange(30, 45), np.arange(45, 60)
    allowed = np.concatenate([train, validation])
    probe = PROBES[kind]().fit(
        only_at(rows_of(features), np.arange(60), "features"),
        [only_at(rows_of(targets), allowed, "truth")],
        train,
        validation,
        weights=np.ones(3),
    )
    assert probe.predict(test)[0].shape == (15, 3)
    with pytest.raises(UserError, match="nothing may be fitted or chosen on test times: truth was asked for at 15"):
        PROBES[kind]().fit(
            rows_of(features), [only_at(rows_of(targets), allowed, "truth")], train, test, weights=np.ones(3)
        )


def test_the_examples_run() -> None:
    assert doctest.testmod(home).failed == 0
