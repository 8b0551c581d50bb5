from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from tiny import tiny_config

import sciJEPA.latents as home
from sciJEPA.embedding import encoding
from sciJEPA.errors import UserError
from sciJEPA.hub import Model, load
from sciJEPA.latents import embed, energy
from sciJEPA.loader import WindowReader
from sciJEPA.pretrain import pretrain
from sciJEPA.synthetic import travelling_waves


@pytest.fixture(scope="module")
def latents(model: Model, waves: Path) -> xr.Dataset:
    return embed(model, waves, progress=False)


def trained_on(ds: xr.Dataset, folder: Path, **changes: object) -> Model:
    """A model of two steps for this archive."""
    ds.to_zarr(folder / "archive.zarr", consolidated=False)
    config = tiny_config(folder / "archive.zarr", training__steps=2, **changes)
    return pretrain(config, folder / "run", progress=False)


def test_a_latent_for_every_issue_time_token_and_feature(latents: xr.Dataset) -> None:
    # 200 days, windows of 2: 199 issue times; 2 token times x 2 rows x 4 columns; embedding and last block, width 16
    assert dict(latents.sizes) == {"time": 199, "token": 16, "latent": 2 * 16}
    assert latents["latents"].dtype == np.float32
    assert np.isfinite(latents["latents"]).all()


def test_time_is_the_last_step_of_the_window(latents: xr.Dataset) -> None:
    assert latents["time"].values[0] == np.datetime64("2001-01-02")
    assert latents["time"].values[-1] == np.datetime64("2001-07-19")  # the 200th day


def test_tokens_are_labelled_with_their_centre_share_and_age(latents: xr.Dataset) -> None:
    # latitudes 31.875, 35.625, ... in patches of 4: centres 37.5 and 52.5; longitudes 0, 22.5, ...: 33.75, 123.75, ...
    np.testing.assert_allclose(latents["token_latitude"], np.tile(np.repeat([37.5, 52.5], 4), 2))
    np.testing.assert_allclose(latents["token_longitude"], np.tile([33.75, 123.75, 213.75, 303.75], 4))
    # area between 30 and 45, and 45 and 60 degrees north
    share = np.diff(np.sin(np.deg2rad([30, 45, 60])))
    np.testing.assert_allclose(latents["token_area"], np.tile(np.repeat(share / share.sum() / 4, 4), 2), rtol=1e-6)
    np.testing.assert_array_equal(latents["token_offset"], np.repeat([-24, 0], 8))


def test_latents_are_what_the_encoder_says(model: Model, waves: Path, latents: xr.Dataset) -> None:
    reader = WindowReader(model.open(waves)[0], model.normalizer)
    with torch.inference_mode():
        for name, module in (("target", model.jepa.target.module), ("online", model.jepa.encoder)):
            wanted = module.latents(model.jepa.tokenizer(reader.read([40], 2)))[0].numpy()
            found = embed(model, waves, encoder=name, progress=False)["latents"].isel(time=40)
            np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert latents["time"].values[40] == np.datetime64("2001-02-11")  # window of the steps 40 and 41


def test_attributes_say_where_latents_come_from(latents: xr.Dataset, model: Model) -> None:
    assert latents.attrs == {
        "model_id": model.id,
        "domain": "grid",
        "encoder": "target",
        "archive": "waves.zarr",
        "statistics_from": "2001-01-01 00:00:00 to 2001-05-20 00:00:00",
        "window_steps": 2,
        "seed": 0,
    }


@pytest.mark.parametrize("blocks", [1, 4], ids=["one block", "blocks"])
def test_on_disk_as_in_memory(
    blocks: int, model: Model, waves: Path, latents: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if blocks > 1:  # 64 windows of 16 tokens of 32 features of 4 bytes
        monkeypatch.setattr(encoding, "RANGE_BYTES", 64 * 16 * 32 * 4)
    stored = embed(model, waves, out=tmp_path / "latents.zarr", progress=False)
    assert stored["latents"].chunks is not None
    xr.testing.assert_identical(stored.load(), latents)
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "latents.zarr", consolidated=False).load(), latents)
    assert [file.name for file in tmp_path.iterdir()] == ["latents.zarr"]


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_does_not_matter(batch_size: int, model: Model, waves: Path, latents: xr.Dataset) -> None:
    other = embed(model, waves, batch_size=batch_size, progress=False)
    np.testing.assert_allclose(other["latents"], latents["latents"], atol=1e-5)


def test_an_archive_in_memory_gives_the_same(model: Model, latents: xr.Dataset) -> None:
    again = embed(model, travelling_waves(200), progress=False)
    xr.testing.assert_equal(again, latents)
    xr.testing.assert_equal(model.embed(travelling_waves(200), progress=False), latents)


def test_the_order_of_dimensions_does_not_matter(model: Model, latents: xr.Dataset) -> None:
    weatherbench = travelling_waves(200).transpose("time", "longitude", "latitude")
    xr.testing.assert_equal(embed(model, weatherbench, progress=False), latents)


def test_windows_over_a_gap_are_left_out(model: Model, latents: xr.Dataset) -> None:
    # without the steps 50 to 59, windows of 2 end at 1 ... 49 and 61 ... 199; their latents are those of the whole
    kept = np.r_[0:50, 60:200]
    gappy = embed(model, travelling_waves(200).isel(time=kept), progress=False)
    issue = np.r_[1:50, 61:200] - 1
    xr.testing.assert_allclose(gappy["latents"], latents["latents"].isel(time=issue), atol=1e-5)


def test_an_archive_of_gaps_has_nothing_to_embed(model: Model) -> None:
    every_other = travelling_waves(200).isel(time=[0, 1, 3, 5, 7, 9, 11, 13])
    with pytest.raises(UserError, match="cadence"):
        embed(model, every_other, progress=False)


def test_latents_know_nothing_of_the_future(model: Model, latents: xr.Dataset) -> None:
    ds = travelling_waves(200).load()
    ds["z"][{"time": slice(100, None)}] = np.random.default_rng(0).normal(size=(100, 8, 16)) * 50
    changed = embed(model, ds, progress=False)
    xr.testing.assert_allclose(changed.isel(time=slice(0, 99)), latents.isel(time=slice(0, 99)), atol=1e-6)
    # the latent of step 100 is the first that sees one of the changed steps
    assert abs(changed["latents"] - latents["latents"]).isel(time=99).max() > 0.1


def test_latents_do_not_depend_on_what_comes_before_the_window(model: Model, latents: xr.Dataset) -> None:
    later = embed(model, travelling_waves(200).isel(time=slice(100, 120)), progress=False)
    xr.testing.assert_allclose(later["latents"], latents["latents"].isel(time=slice(100, 119)), atol=1e-5)


def test_nothing_is_written_over(model: Model, waves: Path, tmp_path: Path) -> None:
    (tmp_path / "latents.zarr").mkdir()
    with pytest.raises(UserError, match="exists already"):
        embed(model, waves, out=tmp_path / "latents.zarr", progress=False)
    assert list((tmp_path / "latents.zarr").iterdir()) == []


def test_an_unknown_encoder_and_a_misfit_are_refused(model: Model, waves: Path) -> None:
    with pytest.raises(UserError, match="'target' or 'online', got 'context'"):
        embed(model, waves, encoder="context")
    with pytest.raises(UserError, match="does not fit"):
        embed(model, travelling_waves(20, nlat=12))


def test_latents_too_large_for_memory_are_lazy(
    model: Model, waves: Path, latents: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "MEMORY_LIMIT", latents["latents"].nbytes - 1)
    assert embed(model, waves)["latents"].chunks is not None
    assert embed(model, waves, lazy=False, progress=False)["latents"].chunks is None
    monkeypatch.setattr(home, "MEMORY_LIMIT", latents["latents"].nbytes)
    assert embed(model, waves, progress=False)["latents"].chunks is None


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day"])
def test_calendars_survive_the_store(calendar: str, tmp_path: Path) -> None:
    ds = travelling_waves(60, calendar=calendar)
    model = trained_on(ds, tmp_path)
    memory = embed(model, ds, progress=False)
    stored = embed(model, ds, out=tmp_path / "latents.zarr", progress=False).load()
    assert list(stored["time"].values) == list(ds["time"].values[1:])
    xr.testing.assert_equal(stored, memory)


def test_numeric_times_survive_the_store(tmp_path: Path) -> None:
    ds = travelling_waves(60)
    ds = ds.assign_coords(time=("time", np.arange(60) * 0.5, {"units": "days"}))
    model = trained_on(ds, tmp_path)
    stored = embed(model, ds, out=tmp_path / "latents.zarr", progress=False)
    np.testing.assert_array_equal(stored["time"], np.arange(1, 60) * 0.5)
    assert stored["time"].dtype == np.float64


def test_times_of_later_blocks_need_not_suit_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first block is one issue time at midnight: whole days would do for it, and for none of the next three.
    ds = travelling_waves(15, cadence="6h").isel(time=slice(3, None))
    model = trained_on(ds, tmp_path)
    monkeypatch.setattr(encoding, "RANGE_BYTES", 1)
    stored = embed(model, ds, out=tmp_path / "latents.zarr", batch_size=1, progress=False)
    assert stored["time"].values[0] == np.datetime64("2001-01-02T00")
    np.testing.assert_array_equal(stored["time"], ds["time"][1:])


def test_levels_missing_values_and_a_descending_latitude(tmp_path: Path) -> None:
    ds = travelling_waves(60, levels=(500, 850), missing=0.2).isel(latitude=slice(None, None, -1))
    model = trained_on(ds, tmp_path)
    latents = embed(model, ds, progress=False)
    assert np.isfinite(latents["latents"]).all()
    np.testing.assert_allclose(latents["token_latitude"][[0, 4]], [52.5, 37.5])  # in the user's order


def test_longitude_keeps_the_users_order(tmp_path: Path) -> None:
    ds = travelling_waves(60).roll(longitude=8, roll_coords=True)
    ds = ds.assign_coords(longitude=("longitude", (ds.longitude.values + 180) % 360 - 180, ds.longitude.attrs))
    model = trained_on(ds, tmp_path)
    centres = embed(model, ds, progress=False)["token_longitude"].values[:4]
    np.testing.assert_allclose(centres, [-146.25, -56.25, 33.75, 123.75])  # -180 ... -112.5 first


# --- energy


def test_energy_is_labelled_with_the_tokens_after_the_issue_time(model: Model, waves: Path) -> None:
    surprise = energy(model, waves, progress=False)
    assert dict(surprise.sizes) == {"time": 197, "token": 16}
    assert (surprise["energy"] >= 0).all()
    np.testing.assert_array_equal(surprise["token_offset"], np.repeat([24, 48], 8))
    assert surprise["time"].values[0] == np.datetime64("2001-01-02")
    xr.testing.assert_identical(model.energy(waves, progress=False), surprise)


def test_what_does_not_follow_is_surprising(learned: Path) -> None:
    model, ds = load(learned), travelling_waves(200).load()
    usual = energy(model, ds, batch_size=200, progress=False)["energy"].mean("token")
    ds["z"][{"time": slice(160, 162)}] *= -1  # two days out of phase
    odd = energy(model, ds, batch_size=200, progress=False)["energy"].mean("token")
    # Windows are the steps t - 1 to t + 2 around issue step t, and the first issue step is 1: those that hold step 160
    # or 161 are the numbers 157 to 161.
    touched = np.isin(np.arange(197), np.arange(157, 162))
    assert odd[touched].min() > 1.2 * usual.max()
    assert odd[~touched].max() < 1.2 * usual.max()


def test_energy_needs_something_after_the_issue_time(waves: Path, model: Model, tmp_path: Path) -> None:
    masking = {"forecast": 0, "blocks": 1}
    short = pretrain(
        tiny_config(waves, data__window=2, masking=masking, training__steps=2), tmp_path / "run", progress=False
    )
    with pytest.raises(UserError, match=r"data\.window equal to data\.context"):
        energy(short, waves)
    with pytest.raises(UserError, match="no 4 consecutive steps"):
        energy(model, travelling_waves(3))


def test_times_are_encoded_so_that_all_fit() -> None:
    dates = pd.date_range("2001-01-01", periods=3)
    encoding = home.time_encoding(xr.Dataset(coords={"time": dates, "x": [1.0]}))
    assert encoding == {
        "time": {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian", "dtype": "int64"}
    }


# --- several domains, and part of the channels


def test_a_joint_model_embeds_each_archive(joint: Model, two_archives: dict[str, Path]) -> None:
    # 100 and 80 days, windows of 2; patches of 4 x 4 on 8 x 16, of 3 x 6 on 6 x 12
    for name, times, tokens in (("a", 99, 2 * 8), ("b", 79, 2 * 4)):
        found = joint.embed(two_archives[name], progress=False)
        assert dict(found.sizes) == {"time": times, "token": tokens, "latent": 32}
        assert np.isfinite(found["latents"]).all()
        assert found.attrs["domain"] == name
        xr.testing.assert_identical(joint.embed(two_archives[name], domain=name, progress=False), found)
        assert energy(joint, two_archives[name], progress=False).sizes["token"] == tokens
    with pytest.raises(UserError, match="fits no domain"):
        joint.embed(travelling_waves(20, variables=("w",)), progress=False)


def test_latents_of_a_domain_are_those_of_its_own_adapter(joint: Model, two_archives: dict[str, Path]) -> None:
    archive, domain = joint.open(two_archives["b"])
    batch = WindowReader(archive, domain.normalizer).read([7], 2)
    encoder = joint.jepa.target.module
    with torch.inference_mode():
        tokens = domain.tokenizer(batch)
        adapter = encoder.domains["b"]
        wanted = (adapter.embedding(tokens) + adapter.position(tokens.features))[0].numpy()
    found = joint.embed(two_archives["b"], progress=False)["latents"].isel(time=7)
    np.testing.assert_allclose(found[:, :16], wanted, atol=1e-5)  # the embedding comes first


def test_an_archive_with_a_part_of_the_channels_is_embedded(joint: Model, two_archives: dict[str, Path]) -> None:
    whole = xr.open_zarr(two_archives["b"], consolidated=False).load()
    both = joint.embed(whole, progress=False)
    one = joint.embed(whole[["t"]], progress=False)
    assert one.sizes == both.sizes
    assert np.isfinite(one["latents"]).all()
    assert abs(one["latents"] - both["latents"]).max() > 1e-2
    # what is not there has no influence
    scaled = joint.embed(whole.assign(w=whole["q"] * 7)[["t", "w"]], progress=False)
    xr.testing.assert_equal(scaled, one)
