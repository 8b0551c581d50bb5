"""Pictures: what is drawn, labelled and refused. How they look was checked by eye."""

from __future__ import annotations

import doctest
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr

pytest.importorskip("matplotlib")

from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex

from sciJEPA import plots
from sciJEPA.errors import UserError
from sciJEPA.scoring.score_table import METHOD_TITLES


def skill_rows(variables=("t2m",), leads=("1D", "3D"), methods=("persistence", "climatology", "jepa_target")):
    rows = []
    for variable in variables:
        for number, lead in enumerate(leads):
            for place, method in enumerate(methods):
                value = 0.9 - 0.1 * place + 0.05 * number
                probe = "none" if method in ("persistence", "climatology") else "ridge"
                rows.append((variable, lead, method, probe, value, value - 0.02, value + 0.02))
    frame = pd.DataFrame(rows, columns=["variable", "lead", "method", "probe", "value", "low", "high"])
    return frame.assign(metric="rmse_over_climatology", archive="toy", seed=0, n=9)


def visible(figure):
    return [axes for axes in figure.axes if axes.axison]


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_the_examples_in_the_docstrings_run():
    result = doctest.testmod(plots)
    assert result.attempted > 0
    assert result.failed == 0


# --- skill


def test_skill_is_saved_and_labelled(tmp_path):
    path = tmp_path / "new" / "skill.png"
    figure = plots.plot_skill(skill_rows(), path)
    assert path.stat().st_size > 5000
    assert legend_texts(figure) == ["climatology (= 1)", "persistence", "JEPA target + ridge"]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1", "3"]
    assert figure.axes[0].get_xlabel() == "lead time (days)"
    assert "pyplot" not in vars(plots)


def test_intervals_are_drawn_where_they_are():
    axes = plots.plot_skill(skill_rows(methods=("jepa_target",))).axes[0]
    bars = next(item for item in axes.collections if isinstance(item, LineCollection))
    # Value 0.9 and 0.95, 0.02 to either side; one method stands in the middle of the band.
    np.testing.assert_allclose(bars.get_segments()[0], [[0, 0.88], [0, 0.92]])
    np.testing.assert_allclose(bars.get_segments()[1], [[1, 0.93], [1, 0.97]])


def test_every_variable_has_a_panel_at_most_three_in_a_row():
    figure = plots.plot_skill(skill_rows([f"v{number}" for number in range(8)]))
    assert [axes.get_title() for axes in visible(figure)] == [f"v{number}" for number in range(8)]
    assert len({round(axes.get_position().x0, 2) for axes in visible(figure)}) == 3


def test_methods_differ_in_colour_or_line_and_always_in_look():
    assert set(plots.METHOD_LOOKS) == set(METHOD_TITLES)
    looks = list(plots.METHOD_LOOKS.values())
    assert len(set(looks)) == len(looks)
    ours = {to_hex(plots.METHOD_LOOKS[method][0]) for method in plots.OUR_METHODS}
    others = {to_hex(look[0]) for method, look in plots.METHOD_LOOKS.items() if method not in plots.OUR_METHODS}
    assert not ours & others


def test_methods_do_not_stand_on_each_other():
    axes = plots.plot_skill(skill_rows(methods=tuple(METHOD_TITLES))).axes[0]
    bars = [item.get_segments()[0][0][0] for item in axes.collections if isinstance(item, LineCollection)]
    assert len(bars) == len(set(np.round(bars, 3))) == len(METHOD_TITLES) - 1
    assert max(map(abs, bars)) < 0.5  # inside the band of their lead


def test_a_second_probe_keeps_the_colour_and_is_hollow():
    rows = skill_rows(methods=("jepa_target",))
    axes = plots.plot_skill(pd.concat([rows, rows.assign(probe="attentive")])).axes[0]
    marked = [line for line in axes.lines if line.get_marker() == "o"]
    assert [to_hex(line.get_color()) for line in marked] == ["#0072b2", "#0072b2"]
    assert [line.get_markerfacecolor() for line in marked] == ["#0072B2", "white"]


def test_values_past_the_top_are_written_not_lost():
    rows = skill_rows()
    rows.loc[(rows["method"] == "persistence") & (rows["lead"] == "3D"), ["value", "low", "high"]] = [4.25, 4.0, 4.5]
    axes = plots.plot_skill(rows).axes[0]
    assert [text.get_text() for text in axes.texts] == ["4.25↑"]
    bottom, top = axes.get_ylim()
    assert bottom < 0.68  # the lowest interval, jepa_target at 1D: 0.7 - 0.02
    assert 1.6 < top < 2


@pytest.mark.parametrize(
    ("leads", "label", "ticks"),
    [
        (("6H", "12H", "1D"), "lead time (hours)", ["6", "12", "24"]),
        (("12H", "5D"), "lead time (days)", ["0.5", "5"]),
        (("1M", "3M"), "lead time (months)", ["1", "3"]),
        (("1Y", "10Y"), "lead time (years)", ["1", "10"]),
        (("96", "192"), "lead time (steps)", ["96", "192"]),
        (("1W", "3D"), "lead time (days)", ["3", "7"]),
    ],
)
def test_the_lead_axis_has_a_unit_that_reads(leads, label, ticks):
    figure = plots.plot_skill(skill_rows(leads=leads))
    assert figure.axes[0].get_xlabel() == label
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ticks


def test_climatology_alone_is_a_line():
    assert legend_texts(plots.plot_skill(skill_rows(methods=("climatology",)))) == ["climatology (= 1)"]


def test_tables_that_cannot_be_drawn_are_refused():
    with pytest.raises(UserError, match="score climatology"):
        plots.plot_skill(skill_rows().assign(metric="rmse"))
    with pytest.raises(UserError, match="one seed"):
        plots.plot_skill(pd.concat([skill_rows(), skill_rows().assign(seed=1)]))
    with pytest.raises(UserError, match="mix steps"):
        plots.plot_skill(skill_rows(leads=("1D", "3")))


# --- masks


def fields(steps: int = 2) -> xr.DataArray:
    return xr.DataArray(
        np.random.default_rng(0).normal(size=(steps, 4, 8)),
        dims=("time", "latitude", "longitude"),
        coords={
            "time": pd.date_range("2001-01-01", periods=steps, freq="6h"),
            "latitude": [67.5, 22.5, -22.5, -67.5],
            "longitude": np.arange(0, 360, 45.0),
        },
        name="t2m",
        attrs={"units": "K"},
    )


def test_targets_are_outlined_along_their_cells(tmp_path):
    # One target cell, row 1 (edges 45 to 0) and column 2 (edges 67.5 to 112.5): four border lines, one hatched cell.
    role = xr.ones_like(fields(), dtype=int)
    role[1, 1, 2] = 2
    path = tmp_path / "mask.png"
    figure = plots.plot_mask(fields(), role, path)
    assert path.exists()
    first, second, bar = figure.axes
    assert [axes.get_title() for axes in (first, second)] == ["2001-01-01 00:00", "2001-01-01 06:00"]
    assert first.get_ylabel() == "latitude (°N)"
    assert bar.get_ylabel() == "t2m (K)"
    border = next(item for item in second.collections if isinstance(item, LineCollection))
    ends = {tuple(map(tuple, line)) for line in border.get_segments()}
    assert ends == {
        ((67.5, 45.0), (112.5, 45.0)),
        ((67.5, 0.0), (112.5, 0.0)),
        ((67.5, 45.0), (67.5, 0.0)),
        ((112.5, 45.0), (112.5, 0.0)),
    }
    assert not next(item for item in first.collections if isinstance(item, LineCollection)).get_segments()
    assert len(next(item for item in second.collections if type(item) is PolyCollection).get_paths()) == 1


def test_a_mask_without_coordinates_and_with_missing_values(tmp_path):
    bare = fields(5).drop_vars(["time", "latitude", "longitude"])
    bare[0, 0, 0] = np.nan
    figure = plots.plot_mask(bare, xr.zeros_like(bare, dtype=int), tmp_path / "mask.pdf")
    assert visible(figure)[4].get_title() == "time 4"


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(UserError, match="same three dimensions"):
        plots.plot_mask(fields(2), xr.ones_like(fields(3), dtype=int))


# --- training and components


def test_training_draws_what_is_there():
    step = np.arange(4)
    metrics = pd.DataFrame({"step": step, "loss": 1.0, "rank_target": [0.2, np.nan, 0.4, np.nan], "std_online": np.nan})
    figure = plots.plot_training(metrics)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "effective rank"]
    assert figure.axes[1].lines[0].get_xdata().tolist() == [0, 2]
    assert figure.axes[1].get_ylim()[0] == 0
    with pytest.raises(UserError, match="known metrics"):
        plots.plot_training(pd.DataFrame({"step": step, "speed": 1.0}))


@pytest.mark.parametrize("calendar", ["standard", "360_day", "noleap"])
def test_components_are_drawn_in_every_calendar(calendar, tmp_path):
    time = xr.date_range("2001-01-01", periods=40, freq="10D", calendar=calendar, use_cftime=calendar != "standard")
    scores = xr.DataArray(
        np.random.default_rng(0).normal(size=(40, 4)), dims=("time", "component"), coords={"time": time}
    )
    figure = plots.plot_components(scores, tmp_path / "components.png")
    assert len(figure.axes[1].lines) == 3
    assert (np.diff(np.asarray(figure.axes[1].lines[0].get_xdata()).astype(float)) > 0).all()
    with pytest.raises(UserError, match="needs dates"):
        plots.plot_components(scores.isel(component=[0]))


def test_a_missing_matplotlib_names_the_extra_that_brings_it():
    code = "import sys; sys.modules['matplotlib'] = None\ntry:\n import sciJEPA.plots\nexcept ValueError as e: print(e)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "scijepa[plot]"' in out.stdout


def test_a_notebook_shows_a_picture_without_being_told_to_and_without_pyplot():
    pytest.importorskip("IPython")
    code = """
import sys, pandas as pd
from IPython.core.formatters import DisplayFormatter
from sciJEPA.plots import plot_training
figure = plot_training(pd.DataFrame({"step": [0, 1], "loss": [1.0, 0.5]}))
print(sorted(DisplayFormatter().format(figure)[0]), "matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['image/png', 'text/plain'] False"
