"""Pictures of one token: panels, marks and what is refused. How they look was checked by eye."""

import doctest
import importlib

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("matplotlib")

from matplotlib.collections import LineCollection

from sciJEPA import plots
from sciJEPA.errors import UserError


def weights(places: dict[str, object], token: int, heads: int = 2) -> xr.DataArray:
    count = len(next(iter(places.values())))
    values = np.random.default_rng(0).uniform(0.1, 1, (heads, count))
    coords = {f"token_{name}": ("token", values) for name, values in places.items()}
    coords["head"] = np.arange(1, heads + 1)
    return xr.DataArray(values, coords, ("head", "token"), attrs={"token": token, "long_name": "attention"})


GRID = {
    "latitude": np.tile([50.0, 50.0, 40.0, 40.0], 2),
    "longitude": np.tile([0.0, 10.0], 4),
    "offset": np.repeat([-24.0, 0.0], 4),
}


def marked(axes) -> bool:
    return any(isinstance(item, LineCollection) and item.get_label() != "coast" and len(item.get_segments())
               for item in axes.collections)  # fmt: skip


def test_every_head_and_time_has_a_panel_and_the_token_is_outlined_in_its_own(tmp_path) -> None:
    figure = plots.plot_attention(weights(GRID, token=5), tmp_path / "attention.png", coast=False)
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == ["head 1, 1 day before", "head 2, 1 day before", "head 1, at the issue time",
                      "head 2, at the issue time"]  # fmt: skip
    assert [marked(axes) for axes in figure.axes[:4]] == [False, False, True, True]
    (border,) = [item for item in figure.axes[2].collections if isinstance(item, LineCollection)]
    corners = np.concatenate(border.get_segments())
    # token 5 is the second of the upper row: 5 to 15 degrees east, 45 to 55 degrees north
    assert (corners.min(axis=0).tolist(), corners.max(axis=0).tolist()) == ([5, 45], [15, 55])
    assert figure.axes[4].get_ylabel() == "attention\n(even: 0.12)"


def test_the_colours_are_those_of_the_other_tokens() -> None:
    found = weights(GRID, token=0)
    found[:, 0] = 1000.0
    figure = plots.plot_attention(found, coast=False)
    assert figure.axes[0].collections[0].norm.vmax <= 1


def test_channels_make_a_table_with_time_to_the_right() -> None:
    places = {
        "channel": np.tile(np.array(["HUFL", "OT"], dtype=object), 3),
        "offset": np.repeat([-48.0, -24.0, 0.0], 2),
    }
    axes = plots.plot_attention(weights(places, token=5)).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["HUFL", "OT"]
    assert axes.get_xlabel() == "last step (hours from issue time)"
    assert axes.get_ylim() == (1.5, -0.5)
    found = weights(places, token=5)
    own = axes.collections[0].get_array().reshape(2, 3)[1, 2]
    assert own == found.values[0, 5]


def test_a_receptive_field_by_token_is_one_panel() -> None:
    field = weights(GRID, token=0).isel(head=0, drop=True)
    figure = plots.plot_attention(field.assign_attrs(long_name="answer of the latent"), coast=False)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["1 day before", "at the issue time"]
    assert figure.axes[2].get_ylabel() == "answer of the latent"


def test_a_single_row_and_a_single_station_are_drawn() -> None:
    row = {"x": np.arange(4.0)}
    assert plots.plot_attention(weights(row, token=0)).axes[0].get_xlabel() == "x"
    station = {"station": np.array(["a"] * 3, dtype=object), "offset": np.array([-2.0, -1.0, 0.0])}
    assert plots.plot_attention(weights(station, token=0)).axes


def test_three_dimensions_of_space_and_other_data_are_refused() -> None:
    x, y, z = (part.ravel() for part in np.meshgrid([0.0, 1.0], [0.0, 1.0], [0.0, 1.0], indexing="ij"))
    with pytest.raises(UserError, match="dimensions x, y, z"):
        plots.plot_attention(weights({"x": x, "y": y, "z": z}, token=0))
    with pytest.raises(UserError, match="with its attributes"):
        plots.plot_attention(weights(GRID, token=0).mean("head", keep_attrs=False))


def test_the_examples_in_the_docstrings_run() -> None:
    result = doctest.testmod(importlib.import_module("sciJEPA.plots.attention"))
    assert result.attempted > 0
    assert result.failed == 0
