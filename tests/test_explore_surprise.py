import numpy as np
import pytest
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.explore import receptive_field, surprise
from sciJEPA.hub import Model, load
from sciJEPA.latents import embed, energy
from sciJEPA.synthetic import travelling_waves


def test_energy_becomes_a_series_and_a_map(model: Model) -> None:
    values = energy(model, travelling_waves(40), progress=False)
    found = surprise(values)
    assert found["on_map"].dims == ("offset", "latitude", "longitude")
    weights = values["token_area"] / values["token_area"].sum()
    np.testing.assert_allclose(found["in_time"], (values["energy"] * weights).sum("token"), rtol=1e-5)
    np.testing.assert_allclose(found["on_map"].values.ravel(), values["energy"].mean("time"), rtol=1e-5)
    assert found["rank"].min() == 0
    assert found["rank"].max() == 1
    assert found["rank"].values.argmax() == found["in_time"].values.argmax()


def test_other_data_are_refused() -> None:
    with pytest.raises(UserError, match="needs what energy"):
        surprise(xr.Dataset({"latents": ("time", [1.0])}))


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
