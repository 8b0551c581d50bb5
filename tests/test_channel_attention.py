"""Sensors with `tokenizer.attention: channel`: no series knows of another, in encoder and predictor alike."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from tiny import tiny_config

from sciJEPA.config import RunConfig
from sciJEPA.encoder import Attention
from sciJEPA.errors import UserError
from sciJEPA.explore.attention import attention
from sciJEPA.hub import load
from sciJEPA.masking import Masker, MaskingConfig, MaskPlan, TokenGrid
from sciJEPA.panel import probe
from sciJEPA.pretrain import pretrain
from sciJEPA.tokenizers.base import Batch

NAMES = ("q", "t", "u")
SERIES = {"kind": "sensors", "patch_time": 1, "attention": "channel"}


def stations(names: tuple[str, ...] = NAMES, gaps: float = 0.1) -> xr.Dataset:
    """Three series at each of two stations, a tenth of them missing."""
    fields = {}
    for number, name in enumerate(NAMES):
        rng = np.random.default_rng(number)
        values = rng.normal(size=(120, 2)).cumsum(axis=0)
        fields[name] = (("time", "station"), np.where(rng.random(values.shape) < gaps, np.nan, values))
    time = pd.date_range("2000", periods=120, freq="h")
    return xr.Dataset({name: fields[name] for name in names}, {"time": time, "station": ["a", "b"]})


def config(source: object = "", **tokenizer: str) -> RunConfig:
    return tiny_config(source, tokenizer=SERIES | tokenizer, training__steps=2, encoder__depth=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("channel")
    stations().to_zarr(folder / "archive.zarr", consolidated=False)
    pretrain(config(folder / "archive.zarr"), folder / "run", progress=False)
    return folder / "run"


def test_a_changed_channel_leaves_the_latents_of_all_others_bit_by_bit(run: Path) -> None:
    model = load(run)
    ds = stations()
    changed = ds.assign(t=5 - 3 * ds["t"].shift(time=2))
    before, after = (model.embed(each, progress=False)["latents"] for each in (ds, changed))
    own = before["token_channel"].values == "t"
    assert np.array_equal(before.values[:, ~own], after.values[:, ~own])
    assert not np.array_equal(before.values[:, own], after.values[:, own])


def test_a_channel_without_any_value_learns_nothing_of_the_others(run: Path) -> None:
    model = load(run)
    ds = stations().assign(t=stations()["t"] * np.nan)
    changed = ds.assign(q=-ds["q"], u=ds["u"] + 4)
    before, after = (model.embed(each, progress=False)["latents"] for each in (ds, changed))
    own = before["token_channel"].values == "t"
    assert np.array_equal(before.values[:, own], after.values[:, own])


def test_predictions_of_a_channel_follow_from_it_alone(run: Path) -> None:
    model = load(run)
    values = torch.randn(3, 3, 4, 2, generator=torch.Generator().manual_seed(0))
    batch = Batch(values, None, torch.zeros(3, 4, 4), torch.arange(3))
    moved = values.clone()
    moved[:, 1] *= -2
    tokenizer = model.jepa.tokenizer
    channel = tokenizer.geometry.coordinates["channel"][0]
    for masking in (MaskingConfig(), MaskingConfig(forecast=0, random=1)):
        plan: MaskPlan = Masker(tokenizer.grid, masking)(range(3), epoch=0, step=0)
        first, second = model.jepa(batch, plan), model.jepa(dataclasses.replace(batch, values=moved), plan)
        same = torch.from_numpy(channel[plan.target] != "t")
        assert torch.equal(first.predicted[same], second.predicted[same])
        assert not torch.equal(first.predicted[~same], second.predicted[~same])


def test_without_it_every_channel_tells_of_the_others(run: Path, tmp_path: Path) -> None:
    pretrain(config(run.parent / "archive.zarr", attention="any"), tmp_path / "any", progress=False)
    model, ds = load(tmp_path / "any"), stations()
    assert model.config.tokenizer.attention == "any"  # type: ignore[attr-defined]
    before, after = (model.embed(each, progress=False)["latents"] for each in (ds, ds.assign(t=-ds["t"])))
    assert not np.allclose(*(each.isel(token=before["token_channel"] == "q") for each in (before, after)))


def test_permuted_channels_give_permuted_latents(run: Path) -> None:
    model = load(run)
    found = [model.embed(stations(names), progress=False)["latents"] for names in (NAMES, ("u", "q", "t"))]
    for name in NAMES:
        parts = [each.isel(token=(each["token_channel"] == name).values).values for each in found]
        np.testing.assert_allclose(*parts, atol=1e-5)


def test_a_part_of_the_channels_has_the_latents_that_it_has_among_all(run: Path) -> None:
    model = load(run)
    whole, part = (model.embed(each, progress=False)["latents"] for each in (stations(), stations(("t",))))
    np.testing.assert_allclose(whole.isel(token=(whole["token_channel"] == "t").values).values, part.values, atol=1e-5)


def test_tokens_of_stations_attend_within_their_station(run: Path, tmp_path: Path) -> None:
    pretrain(config(run.parent / "archive.zarr", tokens="station"), tmp_path / "run", progress=False)
    model, ds = load(tmp_path / "run"), stations()
    changed = ds.copy(deep=True)
    changed["q"][:, 1] *= -1
    before, after = (model.embed(each, progress=False)["latents"] for each in (ds, changed))
    assert np.array_equal(before[:, before["token_station"] == "a"], after[:, before["token_station"] == "a"])
    assert not np.array_equal(before, after)


def test_attention_is_nought_between_channels(run: Path) -> None:
    model, ds = load(run), stations(gaps=0)
    weights = attention(model, ds, ds["time"].values[9], token=1)
    # of the six series token 1 is t at station a; one time later it is token 7
    assert sorted(np.flatnonzero(weights.min("head"))) == [1, 7]
    assert weights.sum("token").values.round(6).tolist() == [1, 1]


@torch.no_grad()
def test_entropy_counts_the_tokens_of_the_own_group() -> None:
    # Two groups of two tokens, attention even within each: 1, as with all four to all alike.
    layer = Attention(8, 2)
    torch.nn.init.zeros_(layer.query.weight)
    torch.nn.init.zeros_(layer.query.bias)
    x = torch.randn(3, 4, 8)
    own = torch.tensor([0, 1, 0, 1])[:, None] == torch.tensor([0, 1, 0, 1])
    assert float(layer.entropy(x, own.expand(3, -1, -1))) == pytest.approx(1)
    assert float(layer.entropy(x)) == pytest.approx(1)
    # Who may attend to nothing gets what the last map makes of nothing: its bias.
    none = torch.zeros(3, 4, 4, dtype=torch.bool)
    assert torch.equal(layer(x, x, none), layer.out.bias.expand(3, 4, -1))


def test_the_panel_and_the_rollout_know_of_it(run: Path) -> None:
    rows = probe(load(run), stations(gaps=0), lead="1H", controls=["raw_ridge"], progress=False)
    assert np.isfinite(rows[rows["method"] == "latent_rollout"].query("metric == 'rmse'")["value"]).all()


def test_hiding_whole_series_is_refused() -> None:
    grid = dataclasses.replace(_grid(), apart=True)
    with pytest.raises(UserError, match=r"tokenizer\.attention of channel no other series tells of them"):
        Masker(grid, MaskingConfig(forecast=0, blocks=1))
    with pytest.raises(UserError, match=r"tokenizer\.attention must be any or channel, got 'own'"):
        config(attention="own")


def _grid() -> TokenGrid:
    return TokenGrid(2, (2, 3), 1, ordered=False)
