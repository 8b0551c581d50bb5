import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.explore import composites, regimes, transitions
from sciJEPA.synthetic import travelling_waves


def series(labels: list[int], **coords: object) -> xr.DataArray:
    time = pd.date_range("2001-01-01", periods=len(labels))
    return xr.DataArray(labels, {"time": time, **coords}, ("time",), name="regime")


def blobs(sizes: tuple[int, ...] = (50, 30, 20)) -> xr.DataArray:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=(size, 4)) + 20 * number for number, size in enumerate(sizes)])
    return xr.DataArray(values, {"time": np.arange(len(values))}, ("time", "latent"))


def test_separate_clouds_are_found_the_largest_first() -> None:
    found = regimes(blobs(), 3)
    assert found["label"].values.tolist() == [1] * 50 + [2] * 30 + [3] * 20
    assert found["share"].values.tolist() == [0.5, 0.3, 0.2]
    assert found.attrs["explained"] > 0.9


def test_the_seed_decides_and_the_labels_repeat() -> None:
    latents = xr.DataArray(np.random.default_rng(1).normal(size=(80, 3)), {"time": np.arange(80)}, ("time", "latent"))
    xr.testing.assert_identical(regimes(latents, 4, seed=3), regimes(latents, 4, seed=3))


def test_distance_is_that_to_the_own_centre() -> None:
    found = regimes(blobs(), 3)
    own = found["centre"].sel(regime=found["label"])
    from sciJEPA.explore import principal_components

    scores = principal_components(blobs(), 20)["scores"]
    np.testing.assert_allclose(found["distance"], np.sqrt(((scores - own) ** 2).sum("component")), rtol=1e-6)


def test_transitions_of_a_known_sequence() -> None:
    found = transitions(series([1, 1, 1, 2, 2, 1]))
    # 1 -> 1 twice, 1 -> 2 once, 2 -> 2 once, 2 -> 1 once
    assert found["count"].values.tolist() == [[2, 1], [1, 1]]
    np.testing.assert_allclose(found["probability"], [[2 / 3, 1 / 3], [1 / 2, 1 / 2]])
    np.testing.assert_allclose(found["persistence"], [3, 2])  # 1 / (1 - p)


def test_transitions_of_a_markov_chain_come_near_its_matrix() -> None:
    matrix = np.array([[0.9, 0.1], [0.3, 0.7]])
    rng, state, labels = np.random.default_rng(0), 0, []
    for _ in range(20000):
        labels.append(state)
        state = int(rng.random() < matrix[state, 1])
    found = transitions(series(labels))
    # 5000 visits of the rarer state: standard error sqrt(0.21 / 5000) = 0.006
    np.testing.assert_allclose(found["probability"], matrix, atol=0.025)
    np.testing.assert_allclose(found["persistence"], [10, 1 / 0.3], rtol=0.1)


def test_pairs_across_a_gap_or_to_the_next_member_do_not_count() -> None:
    gap = series([1, 1, 2, 2, 2]).isel(time=[0, 1, 3, 4])  # 1 -> 2 spans two days
    assert transitions(gap)["count"].values.tolist() == [[1, 0], [0, 1]]
    members = xr.concat([series([1, 1]), series([2, 2])], "time")  # the second begins anew
    assert transitions(members)["count"].values.tolist() == [[1, 0], [0, 1]]


def test_a_label_that_is_never_left_or_never_followed() -> None:
    found = transitions(series([1, 1, 2]))
    assert np.isnan(found["probability"].sel(regime=2)).all()
    assert np.isinf(transitions(series([1, 1]))["persistence"].item())


def test_composites_are_the_means_of_the_fields() -> None:
    waves = travelling_waves(60)
    label = xr.DataArray(np.arange(60) % 3, {"time": waves["time"]}, ("time",), name="regime")
    found = composites(label, waves, anomaly=False)
    for number in range(3):
        np.testing.assert_allclose(found["z"].sel(regime=number), waves["z"][number::3].mean("time"), atol=1e-4)
    assert found["number"].values.tolist() == [20, 20, 20]
    assert found["z"].attrs["units"] == "m"
    mean = (composites(label, waves)["z"]).mean("regime")  # of anomalies, over groups of one size: zero
    np.testing.assert_allclose(mean, 0, atol=1e-4)


def test_composites_leave_missing_values_and_labels_out() -> None:
    waves = travelling_waves(10).load()
    waves["z"][0, 0, 0] = np.nan
    label = xr.DataArray([1.0] * 9 + [np.nan], {"time": waves["time"]}, ("time",), name="regime")
    found = composites(label, waves, anomaly=False)
    assert found["number"].values.tolist() == [9]
    np.testing.assert_allclose(found["z"][0, 0, 0], waves["z"][1:9, 0, 0].mean(), atol=1e-4)


def test_more_regimes_than_states_are_refused() -> None:
    with pytest.raises(UserError, match="need more than 100 times"):
        regimes(blobs(), 100)
    same = xr.DataArray(np.repeat([0.0, 1.0], 5)[:, None], {"time": np.arange(10)}, ("time", "latent"))
    with pytest.raises(UserError, match="fewer than 3 different states"):
        regimes(same, 3)
