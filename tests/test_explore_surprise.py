import numpy as np
import pytest
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.explore import surprise
from sciJEPA.hub import Model
from sciJEPA.latents import energy
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
