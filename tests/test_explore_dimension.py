import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy.ndimage import gaussian_filter1d

from sciJEPA.errors import UserError
from sciJEPA.explore import intrinsic_dimension, rank
from sciJEPA.hub import Model
from sciJEPA.latents import embed
from sciJEPA.synthetic import travelling_waves
from sciJEPA.training.monitor import effective_rank


def points(values: np.ndarray) -> xr.DataArray:
    return xr.DataArray(values, {"time": np.arange(len(values))}, ("time", "latent"))


def test_rank_counts_equal_directions() -> None:
    assert rank(points(np.vstack([np.eye(5), -np.eye(5)]))).item() == pytest.approx(5)


def test_one_direction_has_rank_one_and_no_variation_too() -> None:
    assert rank(points(np.outer(np.arange(9.0), [1, 2, 3]))).item() == pytest.approx(1, abs=1e-5)
    assert rank(points(np.ones((4, 3)))).item() == pytest.approx(1)


def test_rank_is_that_of_the_training_curves(model: Model) -> None:
    latents = embed(model, travelling_waves(60), progress=False)["latents"]
    last = torch.from_numpy(latents.values[:, 8:].reshape(-1, 32))  # 8 tokens of the issue time
    assert rank(latents).item() == pytest.approx(effective_rank(last), rel=1e-4)


def test_rank_needs_two_latents() -> None:
    with pytest.raises(UserError, match="at least 2 latents"):
        rank(points(np.ones((1, 3))))


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_a_gaussian_has_its_own_dimension_wherever_it_lies(dimension: int) -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(1500, dimension)) @ rng.normal(size=(dimension, 12))
    # TwoNN: the slope's relative error is about 1 / sqrt(1500) = 0.03, and a small bias grows with the dimension
    assert intrinsic_dimension(points(flat)).item() == pytest.approx(dimension, rel=0.12)


def test_a_curved_surface_has_the_dimension_of_a_surface() -> None:
    rng = np.random.default_rng(1)
    direction = rng.normal(size=(1500, 3))
    sphere = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    assert intrinsic_dimension(points(sphere)).item() == pytest.approx(2, rel=0.12)
    assert rank(points(sphere)).item() == pytest.approx(3, rel=0.02)  # the linear span has three directions


def test_a_slow_series_needs_times_that_are_apart() -> None:
    # Three directions with a memory of some 5 days: day by day, both neighbours in time are at the same distance.
    rng = np.random.default_rng(0)
    path = gaussian_filter1d(rng.normal(size=(12000, 3)), 5, axis=0)
    z = xr.DataArray(path, {"time": pd.date_range("1991", periods=12000)}, ("time", "latent"))
    assert intrinsic_dimension(z.isel(time=slice(1500))).item() > 4
    assert intrinsic_dimension(z, apart="20D").item() == pytest.approx(3, rel=0.15)  # 600 states


def test_too_few_states() -> None:
    with pytest.raises(UserError, match="at least 20"):
        intrinsic_dimension(points(np.random.default_rng(0).normal(size=(10, 2))))
