import doctest
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from tiny import tiny_config

from sciJEPA.errors import UserError
from sciJEPA.explore import views
from sciJEPA.hub import Model
from sciJEPA.latents import embed
from sciJEPA.pretrain import pretrain
from sciJEPA.synthetic import travelling_waves


def test_tokens_are_those_of_the_latents_and_of_what_follows(model: Model) -> None:
    waves = travelling_waves(20)
    table = views.tokens(waves, model)
    assert dict(table.sizes) == {"token": 32}  # 4 steps of 2 x 4 patches
    assert int(table["in_issue_window"].sum()) == 16
    latents = embed(model, waves, progress=False)
    own = table.isel(token=slice(16))
    for name in ("token_latitude", "token_longitude", "token_area", "token_offset"):
        xr.testing.assert_equal(own[name].drop_vars(own[name].coords), latents[name].drop_vars(latents[name].coords))
    assert sorted(set(table["token_offset"].values)) == [-24, 0, 24, 48]


def test_a_configuration_is_enough(model: Model) -> None:
    waves = travelling_waves(20)
    xr.testing.assert_identical(views.tokens(waves, tiny_config()), views.tokens(waves, model))
    with pytest.raises(UserError, match="no domain 'sea'"):
        views.tokens(waves, tiny_config(), domain="sea")


@pytest.mark.parametrize("strategy", ["forecast", "blocks", "random"])
def test_a_mask_says_what_every_value_is(model: Model, strategy: str) -> None:
    shown = views.mask(travelling_waves(20), model, "2001-01-05", strategy=strategy)
    role = shown["role"]
    assert role.dims == ("time", "latitude", "longitude")
    assert shown["time"].values[1] == np.datetime64("2001-01-05")  # two steps of context, the second the issue time
    if strategy == "forecast":
        assert (role[:2] == 1).all() and (role[2:] == 2).all()
    else:  # half of the tokens of the issue window; what follows is neither
        assert float((role[:2] == 2).mean()) == 0.5
        assert (role[2:] == 0).all()
    assert shown.attrs["strategy"] == strategy


def test_the_field_under_a_mask_is_the_anomaly(model: Model) -> None:
    waves = travelling_waves(20)
    shown = views.mask(waves, model, "2001-01-05")
    part = waves.isel(time=slice(3, 7))
    normal = model.normalizer.climatology(part.indexes["time"])[:, 0]
    expected = (part["z"].values - normal) / model.normalizer.spread[0]
    np.testing.assert_allclose(shown["anomaly"].isel(channel=0), expected, atol=1e-4)


def test_roles_have_channels_where_channels_have_tokens_of_their_own(tmp_path: Path) -> None:
    waves = travelling_waves(60, variables=("u", "v"))
    stations = waves.isel(latitude=3, drop=True).rename(longitude="station").isel(station=slice(4))
    stations = stations.assign_coords(station=list("abcd"))
    stations.to_zarr(tmp_path / "archive.zarr", consolidated=False)
    tokenizer = {"kind": "sensors", "patch_time": 1}
    config = tiny_config(tmp_path / "archive.zarr", tokenizer=tokenizer, training__steps=2)
    model = pretrain(config, tmp_path / "run", progress=False)
    role = views.mask(stations, model, "2001-01-05")["role"]
    assert role.dims == ("time", "channel", "station")
    assert role.isel(station=0, channel=0).values.tolist() == [1, 1, 2, 2]  # two steps in, two to be predicted


def test_a_window_beyond_the_archive_and_an_unknown_strategy(model: Model) -> None:
    with pytest.raises(UserError, match="reaches beyond"):
        views.mask(travelling_waves(20), model, "2001-01-20")
    with pytest.raises(UserError, match="no masking strategy 'stripes'"):
        views.mask(travelling_waves(20), model, "2001-01-05", strategy="stripes")


def test_the_examples_in_the_docstrings_run() -> None:
    result = doctest.testmod(views)
    assert result.attempted > 0
    assert result.failed == 0
