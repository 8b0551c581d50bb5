"""Pictures of latents and spectra: what is drawn, labelled and refused. How they look was checked by eye."""

import doctest

import numpy as np
import pandas as pd
import pytest
import xarray as xr

pytest.importorskip("matplotlib")

from sciJEPA import plots
from sciJEPA.errors import UserError
from sciJEPA.explore import regimes
from sciJEPA.plots import latents as plots_latents
from sciJEPA.scoring.spectra import compare_spectra


def placed(count: int = 30) -> xr.DataArray:
    values = np.random.default_rng(0).normal(size=(count, 2))
    time = pd.date_range("2001-01-01", periods=count, freq="10D")
    return xr.DataArray(values, {"time": time, "dimension": [1, 2]}, ("time", "dimension"), attrs={"long_name": "UMAP"})


def test_the_examples_in_the_docstrings_run() -> None:
    result = doctest.testmod(plots_latents)
    assert result.attempted > 0
    assert result.failed == 0


def test_all_pictures_are_found_under_one_name() -> None:
    assert {name for name in dir(plots) if name.startswith("plot_")} == set(plots.__all__)


def test_states_are_coloured_by_season_by_group_or_by_value(tmp_path) -> None:
    season = plots.plot_embedding(placed(), path=tmp_path / "season.png")
    assert (tmp_path / "season.png").exists()
    assert season.axes[0].get_xlabel() == "UMAP 1"
    assert season.axes[1].get_ylabel() == "time of year"
    group = xr.DataArray(np.arange(30) % 3, dims="time", name="regime")
    legend = plots.plot_embedding(placed(), group).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["0 (10)", "1 (10)", "2 (10)"]
    value = xr.DataArray(np.linspace(0, 1, 30), dims="time", name="drag", attrs={"units": "N"})
    assert plots.plot_embedding(placed(), value).axes[1].get_ylabel() == "drag (N)"


def test_many_whole_numbers_are_a_scale_and_no_groups() -> None:
    figure = plots.plot_embedding(placed(), xr.DataArray(np.arange(30), dims="time", name="year"))
    assert figure.axes[0].get_legend() is None
    assert figure.axes[1].get_ylabel() == "year"


def test_points_without_dates_want_a_colour() -> None:
    with pytest.raises(UserError, match="pass colour="):
        plots.plot_embedding(placed().assign_coords(time=np.arange(30)))
    with pytest.raises(UserError, match="give one each"):
        plots.plot_embedding(placed(), xr.DataArray(np.arange(3), dims="time"))


def test_transitions_show_probability_and_count() -> None:
    values = np.array([0.0, 0.1, 0.2, 9.0, 9.1])[:, None]
    found = regimes(xr.DataArray(values, {"time": np.arange(5)}, ("time", "latent")), 2)
    axes = plots.plot_transitions(found).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.67\n(2)", "0.33\n(1)", "0.00\n(0)", "1.00\n(1)"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["1 (stays 3)", "2 (stays inf)"]


def test_spectra_have_a_line_a_lead_beside_the_truth() -> None:
    longitude = np.arange(0, 360, 22.5)
    wave = np.cos(np.deg2rad(3 * longitude)) + np.cos(np.deg2rad(longitude))
    leads = pd.to_timedelta([1, 3], unit="D")
    coords = {"init_time": [0], "lead_time": leads, "latitude": [0.0], "longitude": longitude}
    truth = xr.DataArray(wave * np.ones((1, 2, 1, 1)), coords, ("init_time", "lead_time", "latitude", "longitude"))
    left, right = plots.plot_spectra(compare_spectra(truth / 2, truth.assign_attrs(units="K"))).axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "truth",
        "forecast, 1 day",
        "forecast, 3 days",
    ]
    assert left.get_ylabel() == "power ((K)^2)"
    assert left.lines[0].get_xdata()[0] == 1  # the mean is not drawn
    np.testing.assert_allclose(right.lines[0].get_ydata()[[0, 2]], 0.25)
    with pytest.raises(UserError, match="'forecast' is missing"):
        plots.plot_spectra(xr.Dataset())
