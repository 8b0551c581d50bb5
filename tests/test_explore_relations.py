import numpy as np
import pytest
import scipy.stats
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.explore import canonical_correlation, probe_map, similarity


def noise(width: int, steps: int = 600, seed: int = 0) -> xr.DataArray:
    values = np.random.default_rng(seed).normal(size=(steps, width))
    return xr.DataArray(values, {"time": np.arange(steps)}, ("time", "latent"))


# --- similarity


@pytest.mark.parametrize("debiased", [True, False])
def test_a_rotation_is_the_same(debiased: bool) -> None:
    z = noise(6)
    rotation = scipy.stats.ortho_group.rvs(6, random_state=0)
    assert similarity(z, z.copy(data=2 * z.values @ rotation), debiased=debiased).item() == pytest.approx(1)


def test_unrelated_noise_is_not_similar_unless_the_bias_is_left_in() -> None:
    one, other = noise(300, 100, seed=0), noise(300, 100, seed=1)  # more features than times
    assert abs(similarity(one, other).item()) < 0.05
    assert similarity(one, other, debiased=False).item() > 0.6


def test_half_of_the_directions_shared() -> None:
    # Kernels K1 + K2 and K1 + K3 with independent parts of equal size: HSIC ratio 1 / 2.
    parts = [noise(40, seed=seed) for seed in range(3)]
    one, other = (xr.concat([parts[0], parts[number]], "latent") for number in (1, 2))
    assert similarity(one, other).item() == pytest.approx(0.5, abs=0.05)


def test_times_are_matched_by_label() -> None:
    z = noise(3)
    assert similarity(z, z.isel(time=slice(None, None, -1))).item() == pytest.approx(1)
    assert similarity(z, z.isel(time=slice(300, None))).attrs["times"] == 300
    with pytest.raises(UserError, match="share 0 times"):
        similarity(z, z.assign_coords(time=z["time"] + 1000))
    with pytest.raises(UserError, match="does not vary"):
        similarity(z, z * 0)


# --- canonical correlation


def test_an_index_that_is_in_the_latents_correlates() -> None:
    z = noise(4, 1000)
    index = xr.concat([3 * z.isel(latent=2) + 1, noise(1, 1000, seed=5).isel(latent=0)], "index")
    found = canonical_correlation(z, index)
    np.testing.assert_allclose(found["correlation"][0], 1, atol=1e-6)
    assert found["cross_validated"][0] > 0.99
    assert abs(found["cross_validated"][1]) < 0.15  # noise: five folds of 200 times, 0.03
    assert abs(found["weight"].values[0, 0]) > 0.99
    np.testing.assert_allclose(found["latent_variate"].std("time"), 1, rtol=1e-6)
    correlation = np.corrcoef(found["latent_variate"][:, 0], found["index_variate"][:, 0])[0, 1]
    assert correlation == pytest.approx(float(found["correlation"][0]))


def test_noise_correlates_on_the_fitted_times_only() -> None:
    found = canonical_correlation(noise(20, 120), noise(1, 120, seed=9).isel(latent=0), components=20)
    assert found["correlation"][0] > 0.3  # about sqrt(20 / 120)
    assert abs(found["cross_validated"][0]) < 0.25


def test_what_cannot_be_correlated_is_refused() -> None:
    z, index = noise(4), noise(1).isel(latent=0)
    with pytest.raises(UserError, match="need at least"):
        canonical_correlation(z.isel(time=slice(20)), index)
    with pytest.raises(UserError, match="missing at 1 times"):
        canonical_correlation(z, index.where(index["time"] != 3))
    with pytest.raises(UserError, match="does not vary"):
        canonical_correlation(z, index * 0)
    with pytest.raises(UserError, match="depend on each other"):
        canonical_correlation(z, xr.concat([index, 2 * index], "index"))
    with pytest.raises(UserError, match="times more than once"):
        canonical_correlation(z, xr.concat([index, index], "time"))


# --- probe maps


def test_r2_is_one_where_the_latents_hold_the_field_and_zero_where_not() -> None:
    z = noise(3)
    mixed = z.isel(latent=1) + noise(1, seed=4).isel(latent=0)  # half of the variance is known
    field = xr.concat([z.isel(latent=0), mixed, noise(1, seed=3).isel(latent=0)], "x").assign_coords(x=[10, 20, 30])
    found = probe_map(z, field.transpose("time", "x"))
    assert found.dims == ("x",)
    np.testing.assert_allclose(found, [1, 0.5, 0], atol=0.15)


def test_places_without_variation_and_missing_values() -> None:
    z = noise(2)
    gappy = z.isel(latent=0).where(z["time"] % 7 != 0)
    field = xr.concat([gappy, 0 * z.isel(latent=0)], "x").transpose("time", "x")
    found = probe_map(z, field)
    assert found[0] > 0.9  # fitted with a seventh of the values at the mean, scored without them
    assert np.isnan(found[1])


def test_a_probe_does_not_see_its_test_times() -> None:
    # A step in the last fifth cannot be known from the rest: the fit is worse than the mean only by what it guesses.
    z = noise(50, 200)
    assert probe_map(z, noise(1, 200, seed=8)).item() < 0.2


def test_too_few_shared_times() -> None:
    with pytest.raises(UserError, match="share 10 times"):
        probe_map(noise(2), noise(1).isel(time=slice(10)))
