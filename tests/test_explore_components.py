import sys

import numpy as np
import pytest
import torch
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.explore import principal_components, token_components, umap


def wave(steps: int = 40) -> xr.DataArray:
    """A wave that travels around a circle of 8 tokens in 10 steps, with one latent."""
    phase = 2 * np.pi * (np.arange(8) / 8 - np.arange(steps)[:, None] / 10)
    coords = {"time": np.arange(steps), "token_area": ("token", np.full(8, 1 / 8))}
    return xr.DataArray(3 * np.cos(phase)[..., None], coords, ("time", "token", "latent"))


def test_a_travelling_wave_is_two_components_of_equal_share() -> None:
    found = principal_components(wave(), 5)
    assert found.sizes["component"] == 2  # a sine and a cosine, and nothing else
    np.testing.assert_allclose(found["share"], [0.5, 0.5])
    # together they explain each token; their variances at a token are cos^2 and sin^2
    np.testing.assert_allclose(found["strength"].sum("component"), 1)


def test_scores_and_patterns_give_the_latents_back() -> None:
    latents = wave() + 7
    found = principal_components(latents)
    restored = (found["scores"] * found["patterns"]).sum("component") + latents.mean("time")
    np.testing.assert_allclose(restored.transpose(*latents.dims), latents, atol=1e-9)


def test_patterns_are_orthonormal_in_the_area_mean() -> None:
    rng = np.random.default_rng(0)
    area = np.array([0.1, 0.2, 0.7])
    coords = {"time": np.arange(50), "token_area": ("token", area)}
    found = principal_components(xr.DataArray(rng.normal(size=(50, 3, 2)), coords, ("time", "token", "latent")), 4)
    patterns = found["patterns"].values
    products = np.einsum("ktl,t,jtl->kj", patterns, area, patterns)
    np.testing.assert_allclose(products, np.eye(4), atol=1e-9)


def test_components_of_pooled_latents_have_no_tokens() -> None:
    found = principal_components(wave().isel(token=0, drop=True))
    assert found["patterns"].dims == ("component", "latent")
    assert found["strength"].dims == ("component",)


def test_components_of_tokens_share_their_axes() -> None:
    found = token_components(wave(), 1)
    assert found.dims == ("time", "token", "component")
    # one latent: the score is the latent, as its mean over whole periods is zero
    np.testing.assert_allclose(found.isel(component=0), wave().isel(latent=0), atol=1e-9)
    with pytest.raises(UserError, match="no tokens left"):
        token_components(wave().isel(token=0, drop=True))


def test_umap_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r'pip install "scijepa\[umap\]"'):
        umap(wave())


def test_umap_keeps_neighbours_together() -> None:
    pytest.importorskip("umap")
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=(30, 3)), rng.normal(size=(30, 3)) + 50])
    latents = xr.DataArray(values, {"time": np.arange(60)}, ("time", "latent"))
    threads = torch.get_num_threads()
    placed = umap(latents, neighbours=5).values
    assert torch.get_num_threads() == threads
    own = [np.linalg.norm(part - part.mean(axis=0), axis=1).max() for part in (placed[:30], placed[30:])]
    assert np.linalg.norm(placed[:30].mean(axis=0) - placed[30:].mean(axis=0)) > max(own)
    with pytest.raises(UserError, match="needs more than 60 times"):
        umap(latents, neighbours=60)
