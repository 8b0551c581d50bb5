import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

from sciJEPA.encoder import Attention
from sciJEPA.errors import UserError
from sciJEPA.explore import attention, on_map, receptive_field
from sciJEPA.hub import Model, build_jepa, load
from sciJEPA.latents import embed
from sciJEPA.loader import WindowReader
from sciJEPA.synthetic import travelling_waves


def test_weights_times_values_are_the_attention() -> None:
    torch.manual_seed(0)
    module, x = Attention(16, 2), torch.randn(3, 5, 16)
    seen = torch.rand(3, 5) > 0.3
    for mask in (None, seen):
        values = module.key_value(x).chunk(2, dim=-1)[1].unflatten(-1, (2, 8)).transpose(1, 2)
        weighted = (module.weights(x, x, mask) @ values).transpose(1, 2).flatten(2)
        torch.testing.assert_close(module.out(weighted), module(x, x, mask))


@pytest.fixture(scope="module")
def deep(model: Model) -> Model:
    """An untrained model of the same archive with three blocks."""
    config = dataclasses.replace(model.config, encoder=dataclasses.replace(model.config.encoder, depth=3))
    jepa = build_jepa(config, model.jepa.tokenizers).eval()
    for weight in jepa.encoder.blocks.parameters():  # at their initial size, weights are close to uniform
        weight.data *= 8
    return dataclasses.replace(model, jepa=jepa, config=config)


@pytest.mark.parametrize("layer", [1, 2, -1])
def test_attention_is_that_of_the_block_in_the_encoder(deep: Model, layer: int) -> None:
    waves = travelling_waves(20)
    found = attention(deep, waves, "2001-01-05", token=3, layer=layer, encoder="online")
    assert found.dims == ("head", "token") and found.sizes["token"] == 16
    np.testing.assert_allclose(found.sum("token"), 1, rtol=1e-5)
    opened, domain = deep.open(waves)
    batch = WindowReader(opened, domain.normalizer).read(np.array([3]), 2)  # days 4 and 5
    met: list[tuple[torch.Tensor, torch.Tensor]] = []  # what the attention of this block was given, and what it gave
    block = deep.jepa.encoder.blocks[layer - 1 if layer > 0 else layer].attention
    hook = block.register_forward_hook(lambda _, given, gave: met.append((given[0], gave)))
    with torch.inference_mode():
        deep.jepa.encode(batch, encoder="online")
        hook.remove()
        ((given, gave),) = met
        values = block.key_value(given).chunk(2, dim=-1)[1][0].unflatten(-1, (2, -1))
        mixed = torch.einsum("hn,nhd->hd", torch.from_numpy(found.values), values)
        torch.testing.assert_close(block.out(mixed.flatten()), gave[0, 3], rtol=1e-4, atol=1e-5)
    assert float(found.max()) > 1.5 / 16  # not uniform: the comparison means something


def test_attention_carries_the_places_of_latents(model: Model) -> None:
    waves = travelling_waves(20)
    found = attention(model, waves, "2001-01-05", token=-1)
    latents = embed(model, waves, progress=False)
    for name in ("token_latitude", "token_longitude", "token_offset"):
        xr.testing.assert_equal(found[name].variable, latents[name].variable)
    assert found.attrs["token"] == 15
    assert found.attrs["token_latitude"] == latents["token_latitude"].values[-1]
    assert found.attrs["issue_time"].startswith("2001-01-05")
    assert on_map(found).dims == ("head", "offset", "latitude", "longitude")


def test_what_was_not_observed_is_not_attended_to(joint: Model, two_archives) -> None:
    with xr.open_zarr(two_archives["b"], consolidated=False) as ds:
        holes = ds.load()
    holes[{"time": slice(8, 10), "latitude": slice(0, 3), "longitude": slice(0, 6)}] = np.nan  # a patch of both times
    found = attention(joint, holes, holes["time"].values[9], token=0, domain="b")
    assert np.flatnonzero((found == 0).all("head")).tolist() == [0, 4]  # two times of 2 x 2 patches
    assert ((found > 0).sum("token") == 6).all()


def test_a_token_listens_to_its_own_patch_most(learned) -> None:
    model, waves = load(learned), travelling_waves(60)
    latents = embed(model, waves, progress=False)
    field = receptive_field(model, waves, "2001-02-01", token=-1)
    assert field.dims == ("time", "channel", "latitude", "longitude")
    assert field["time"].values[-1] == np.datetime64("2001-02-01")
    assert (field.attrs["token_latitude"], field.attrs["token_longitude"]) == (52.5, 303.75)
    assert float(latents["token_latitude"][-1]) == 52.5
    own = field.isel(time=-1, latitude=slice(4, 8), longitude=slice(12, 16)).mean()
    assert own > 5 * field.mean()
    assert (field >= 0).all()


def test_the_field_is_the_slope_of_the_latent(learned) -> None:
    model, waves = load(learned), travelling_waves(60).load()
    field = receptive_field(model, waves, "2001-02-01", token=-1)
    # one value up by a hundredth of a standard deviation: the root mean square over features of the change of z
    step, spread = 1e-2, float(model.normalizer.spread[0])
    moved = waves.copy(deep=True)
    moved["z"][{"time": 31, "latitude": 6, "longitude": 13}] += step * spread
    change = [embed(model, ds, progress=False)["latents"].sel(time="2001-02-01").values[-1] for ds in (waves, moved)]
    slope = np.sqrt(np.mean(((change[1] - change[0]) / step) ** 2))
    assert field.isel(time=-1, channel=0, latitude=6, longitude=13).item() == pytest.approx(slope, rel=0.02)


def test_what_has_no_window_or_token_is_refused(model: Model) -> None:
    waves = travelling_waves(20)
    with pytest.raises(UserError, match="no token 99"):
        receptive_field(model, waves, "2001-01-05", token=99)
    with pytest.raises(UserError, match="2 consecutive steps"):
        receptive_field(model, waves, "2001-01-01", token=0)
    with pytest.raises(UserError, match="2001-01-05 does not end"):
        receptive_field(model, waves.isel(time=[0, 1, 2, 4, 5, 6]), "2001-01-05", token=0)


def test_the_field_by_token_adds_up_its_values(learned) -> None:
    model, waves = load(learned), travelling_waves(60)
    values, tokens = (receptive_field(model, waves, "2001-02-01", token=-1, by=by) for by in ("value", "token"))
    assert tokens.dims == ("token",)
    last = values.isel(time=-1, latitude=slice(4, 8), longitude=slice(12, 16))  # the patch of token 15
    assert tokens[15].item() == pytest.approx(float(np.sqrt((last**2).sum())), rel=1e-4)
    np.testing.assert_allclose((tokens**2).sum(), (values**2).sum(), rtol=1e-4)
    with pytest.raises(UserError, match="'value' or 'token'"):
        receptive_field(model, waves, "2001-02-01", token=-1, by="patch")


def test_no_such_block_or_encoder(model: Model) -> None:
    waves = travelling_waves(20)
    for layer in (0, 2, -2):  # the model has one block
        with pytest.raises(UserError, match="no block"):
            attention(model, waves, "2001-01-05", token=0, layer=layer)
    with pytest.raises(UserError, match="'target' or 'online'"):
        attention(model, waves, "2001-01-05", token=0, encoder="both")
