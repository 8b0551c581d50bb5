from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from tiny import tiny_config

import sciJEPA.judging.baselines
import sciJEPA.judging.panel_cache
import sciJEPA.latents
import sciJEPA.probes
from sciJEPA.errors import UserError
from sciJEPA.hub import Model
from sciJEPA.panel import JUDGED, QUICK, probe
from sciJEPA.pretrain import pretrain
from sciJEPA.scores import latitude_weights
from sciJEPA.scoring.comparison import COLUMNS
from sciJEPA.synthetic import travelling_waves

METHODS = [*(name for name in QUICK if name != "seasonal_naive"), *JUDGED]


@pytest.fixture(scope="module")
def panel(model: Model, waves: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    """All controls at two leads, and the folder with what is written."""
    out = tmp_path_factory.mktemp("panel") / "probe"
    return probe(model, waves, lead=["1D", "3D"], controls="quick", probes="ridge", out=out, progress=False), out


def judged(ds: xr.Dataset, folder: Path, **options: object) -> pd.DataFrame:
    """The panel of a model of two steps that was trained on this archive."""
    ds.to_zarr(folder / "archive.zarr", consolidated=False)
    model = pretrain(tiny_config(folder / "archive.zarr", training__steps=2), folder / "run", progress=False)
    options = {"controls": "quick"} | options
    return probe(model, folder / "archive.zarr", progress=False, **options)  # type: ignore[arg-type]


def rmse(rows: pd.DataFrame, local: bool = False) -> pd.Series:
    """Of each method once: of the usual probes, or of local ones where there are."""
    rows = rows[(rows["metric"] == "rmse") & (rows["probe"].eq("local") == local)]
    return rows.set_index(["variable", "lead", "method"])["value"]


def test_every_method_is_judged_on_the_same_times(panel: tuple[pd.DataFrame, Path]) -> None:
    rows = panel[0]
    errors = rows[rows["metric"] == "rmse"]
    # test split: steps 160 to 199; windows of 2 before and leads of up to 3 after: issue steps 161 to 196
    assert errors["n"].tolist() == [36] * 2 * len(METHODS)
    assert [list(group["method"]) for _, group in errors.groupby("lead")] == [METHODS, METHODS]


def test_one_row_a_number(panel: tuple[pd.DataFrame, Path]) -> None:
    rows = panel[0]
    assert list(rows.columns) == COLUMNS
    assert not rows.duplicated(["variable", "lead", "method", "probe", "metric"]).any()
    scores = {"rmse", "rmse_over_climatology", "skill", "acc", "difference_to_best_control"}
    scales = {f"power_ratio@{scale}" for scale in ("large", "medium", "small")}
    # the grid lies within one region, and all test times in one season
    assert set(rows["metric"]) == scores | {"p_value", "p_value_adjusted", "rank"} | scales
    rows = rows[rows["metric"].isin(scores)]
    assert set(rows["archive"]) == {"waves.zarr"}
    defined = rows.dropna(subset=["value"])
    assert (defined["low"] <= defined["value"] + 1e-9).all()
    assert (defined["value"] <= defined["high"] + 1e-9).all()
    missing = rows[rows["value"].isna()]
    assert set(missing["method"] + missing["metric"]) <= {"climatologyacc"}


def test_the_folder_holds_table_figure_and_forecasts(panel: tuple[pd.DataFrame, Path]) -> None:
    rows, out = panel
    files = {file.name for file in out.iterdir()}
    assert {"scores.csv", "forecasts.zarr"} <= files <= {"scores.csv", "forecasts.zarr", "skill.png"}
    pd.testing.assert_frame_equal(pd.read_csv(out / "scores.csv"), rows, check_dtype=False)


def rmse_of(forecast: xr.DataArray, truth: xr.DataArray) -> np.ndarray:
    """By hand, for each lead: area-weighted over observed points, mean over times, then the root."""
    weights = latitude_weights(truth["latitude"])
    values = []
    for lead in range(forecast.sizes["lead_time"]):
        part = forecast.isel(lead_time=lead)
        square = (part.drop_vars("valid_time") - truth.sel(time=part["valid_time"]).drop_vars("time")) ** 2
        values.append(float(np.sqrt(square.weighted(weights).mean(("latitude", "longitude")).mean("init_time"))))
    return np.array(values)


def test_the_forecasts_written_have_the_errors_printed(panel: tuple[pd.DataFrame, Path], model: Model) -> None:
    rows, out = panel
    forecast = xr.open_zarr(out / "forecasts.zarr", consolidated=False).load()
    assert dict(forecast.sizes) == {"init_time": 36, "lead_time": 2, "latitude": 8, "longitude": 16}
    assert forecast["z"].attrs["units"] == "m"
    assert (forecast.attrs["method"], forecast.attrs["model_id"]) == ("jepa_target", model.id)
    assert (forecast["valid_time"] == forecast["init_time"] + forecast["lead_time"]).all()
    found = rmse_of(forecast["z"], travelling_waves(200)["z"])
    np.testing.assert_allclose(found, [rmse(rows)["z", lead, "jepa_target"] for lead in ("1D", "3D")], rtol=1e-4)


def test_persistence_and_climatology_by_hand(panel: tuple[pd.DataFrame, Path], model: Model) -> None:
    truth, errors = travelling_waves(200)["z"], rmse(panel[0])
    weights = latitude_weights(truth["latitude"]).values[:, None]
    issue = np.arange(161, 197)
    for lead in (1, 3):
        later = truth.values[issue + lead]
        for method, forecast in (
            ("persistence", truth.values[issue]),
            ("climatology", truth.values[:140].mean(0)),  # less than two years: a mean of the training times
        ):
            by_hand = np.sqrt((((forecast - later) ** 2) * weights).mean())
            assert errors["z", f"{lead}D", method] == pytest.approx(by_hand, rel=1e-4)


def test_the_probes_know_the_waves(panel: tuple[pd.DataFrame, Path]) -> None:
    errors = rmse(panel[0])
    for lead in ("1D", "3D"):
        for method in ("eof_ridge", "raw_ridge", "random_init", "jepa_online", "jepa_target"):
            assert errors["z", lead, method] < 0.4 * errors["z", lead, "persistence"]


def test_the_same_again(panel: tuple[pd.DataFrame, Path], model: Model) -> None:
    again = probe(model, travelling_waves(200), lead=("1D", "3D"), controls="quick", probes="ridge", progress=False)
    pd.testing.assert_frame_equal(again.assign(archive="waves.zarr"), panel[0])


def test_blocks_are_invisible(
    panel: tuple[pd.DataFrame, Path], model: Model, waves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sciJEPA.judging.baselines, sciJEPA.probes):
        monkeypatch.setattr(module, "BLOCK_ROWS", 7)
    again = probe(
        model, waves, lead=["1D", "3D"], controls="quick", probes="ridge", out=tmp_path / "probe", progress=False
    )
    np.testing.assert_allclose(rmse(again), rmse(panel[0]), rtol=2e-3)
    one, two = (
        xr.open_zarr(out / "forecasts.zarr", consolidated=False).load() for out in (panel[1], tmp_path / "probe")
    )
    xr.testing.assert_allclose(one, two, atol=1e-3)


def test_times_of_later_blocks_need_not_suit_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # whole days would do for a first block of one time, and for none of the next three
    monkeypatch.setattr(sciJEPA.probes, "BLOCK_ROWS", 1)
    ds = travelling_waves(32, cadence="6h")
    judged(ds, tmp_path, lead=["6H"], controls="persistence", out=tmp_path / "probe")
    forecast = xr.open_zarr(tmp_path / "probe/forecasts.zarr", consolidated=False)
    assert (np.diff(forecast["init_time"].values) == np.timedelta64(6, "h")).all()
    assert (forecast["valid_time"] == forecast["init_time"] + forecast["lead_time"]).all()


def test_controls_may_be_chosen_but_two_are_always_there(
    panel: tuple[pd.DataFrame, Path], model: Model, waves: Path
) -> None:
    for controls in ("raw_ridge", ["raw_ridge"], ("raw_ridge", "persistence")):
        rows = probe(model, waves, lead=["1D", "3D"], controls=controls, progress=False)
        assert set(rows["method"]) == {"persistence", "climatology", "raw_ridge", *JUDGED}
        np.testing.assert_array_equal(rmse(rows), rmse(panel[0])[rmse(rows).index])


def test_leads_as_text_or_list_or_left_out(model: Model, waves: Path) -> None:
    assert set(probe(model, waves, lead="2D", controls="persistence", progress=False)["lead"]) == {"2D"}
    rows = probe(model, waves, controls="persistence", progress=False)
    assert list(dict.fromkeys(rows["lead"])) == ["1D", "2D", "3D", "5D"]


# --- refusals


def test_an_unknown_control_is_refused(model: Model, waves: Path) -> None:
    with pytest.raises(UserError, match="no control 'oracle'; choose from persistence"):
        probe(model, waves, controls=["oracle"])


def test_nothing_is_written_over(model: Model, waves: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        probe(model, waves, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_does_not_fit_is_refused(model: Model) -> None:
    with pytest.raises(UserError, match="does not fit"):
        probe(model, travelling_waves(100, nlat=12))


def test_too_long_a_lead_is_refused(model: Model, waves: Path) -> None:
    with pytest.raises(UserError, match=r"validation split .* at least 10 are needed"):
        probe(model, waves, lead=["15D"])


@pytest.mark.parametrize("days", [100, 170, 199])
def test_times_that_the_model_was_trained_on_are_not_judged(days: int, model: Model) -> None:
    # trained until 20 May, the 140th day; of 199 days, validation begins with the 140th (139.3 rounds down)
    with pytest.raises(UserError, match=r"training times only: they are from 2001-01-01 .* to 2001-05-20 "):
        probe(model, travelling_waves(days), lead=["1D"])


def test_times_after_training_are_judged(model: Model) -> None:
    later = travelling_waves(300).isel(time=slice(141, None))
    rows = probe(model, later, lead=["1D"], controls="persistence", progress=False)
    assert rmse(rows)["z", "1D", "jepa_target"] < 0.5 * rmse(rows)["z", "1D", "persistence"]


@pytest.mark.parametrize("calendar", ["noleap", "numbers"])
def test_leakage_is_noticed_in_every_calendar(calendar: str, tmp_path: Path) -> None:
    ds = travelling_waves(120, calendar="standard" if calendar == "numbers" else calendar)
    if calendar == "numbers":
        ds = ds.assign_coords(time=np.arange(5.0, 125.0))  # as text, "5.0" comes after "124.0"
    lead = ["1"] if calendar == "numbers" else ["1D"]
    ds.to_zarr(tmp_path / "archive.zarr", consolidated=False)
    model = pretrain(tiny_config(tmp_path / "archive.zarr", training__steps=2), tmp_path / "run", progress=False)
    with pytest.raises(UserError, match="training times only"):
        probe(model, ds.isel(time=slice(0, 100)), lead=lead)
    assert len(probe(model, ds, lead=lead, controls="persistence", progress=False))


def test_test_times_change_no_forecast(panel: tuple[pd.DataFrame, Path], model: Model, tmp_path: Path) -> None:
    # Fields after 20 June, the 171st day, are replaced; forecasts that were issued by then stay the same.
    ds = travelling_waves(200).load()
    ds["z"][{"time": slice(171, None)}] = 50
    probe(model, ds, lead=["1D", "3D"], controls="persistence", out=tmp_path / "probe", progress=False)
    one, two = (
        xr.open_zarr(out / "forecasts.zarr", consolidated=False).sel(init_time=slice(None, "2001-06-20"))["z"].load()
        for out in (panel[1], tmp_path / "probe")
    )
    assert one.sizes["init_time"] == 10
    np.testing.assert_array_equal(one, two)


# --- parts


def test_regions_and_seasons_have_metrics_of_their_own(tmp_path: Path) -> None:
    # 400 days: the test split is the last 80, from 17 November 2001 to 4 February 2002
    ds = travelling_waves(400, variables=("z", "t"), missing=0.1)
    ds = ds.assign_coords(latitude=np.linspace(-70, 70, 8))
    rows = judged(ds, tmp_path, lead=["1D", "3D"], controls="damped_persistence", out=tmp_path / "probe")
    cells = rows[rows["method"] == "damped_persistence"].set_index(["variable", "lead", "metric"]).sort_index()
    parts = {str(metric).partition("@")[2] for metric in rows["metric"]} - {""}
    # latitudes of 10 degrees are the tropics; with missing values there is no spectrum
    assert parts == {"tropics", "northern_extratropics", "southern_extratropics", "DJF", "SON"}
    for variable in ("z", "t"):
        whole = cells.loc[(variable, "3D")]
        assert whole.loc["rmse@DJF", "n"] + whole.loc["rmse@SON", "n"] == whole.loc["rmse", "n"]
        squares = [
            whole.loc[f"rmse@{season}", "value"] ** 2 * whole.loc[f"rmse@{season}", "n"] for season in ("DJF", "SON")
        ]
        assert sum(squares) == pytest.approx(whole.loc["rmse", "value"] ** 2 * whole.loc["rmse", "n"], rel=1e-4)
    # by hand, from what was written: the target encoder's forecasts in the tropics
    forecast = xr.open_zarr(tmp_path / "probe/forecasts.zarr", consolidated=False).load()["t"]
    middle = {"latitude": slice(-20, 20)}
    found = rmse_of(forecast.sel(middle), ds["t"].sel(middle))  # rows of 20 degrees at 10 N and S weigh the same
    mine = rows.query("method == 'jepa_target' and probe == 'ridge'")
    tropics = mine.query("metric == 'rmse@tropics' and variable == 't'")["value"]
    np.testing.assert_allclose(tropics, found, rtol=0.02)  # gaps are weighted time by time


# --- archives of all kinds


def test_missing_values_and_levels(tmp_path: Path) -> None:
    ds = travelling_waves(200, variables=("z", "t"), levels=(500, 850), missing=0.1)
    rows = judged(ds, tmp_path, lead=["1D"], out=tmp_path / "probe")
    assert set(rows["variable"]) == {"z@500", "z@850", "t@500", "t@850", "latents"}
    errors = rmse(rows)
    assert np.isfinite(errors).all()
    assert len(errors) == 4 * len(METHODS)
    forecast = xr.open_zarr(tmp_path / "probe/forecasts.zarr", consolidated=False).load()
    assert np.isfinite(forecast["t"]).all()
    for name in ("z", "t"):
        for level in (500, 850):
            found = rmse_of(forecast[name].sel(level=level), ds[name].sel(level=level))
            assert errors[f"{name}@{level}", "1D", "jepa_target"] == pytest.approx(found[0], rel=1e-4)
            assert errors[f"{name}@{level}", "1D", "jepa_target"] < errors[f"{name}@{level}", "1D", "persistence"]


def renamed(ds: xr.Dataset) -> xr.Dataset:
    """Degrees as coordinates beside dimensions without values."""
    ds = ds.rename_dims(latitude="y", longitude="x").reset_index(["latitude", "longitude"])
    return ds.rename(latitude="lat", longitude="lon")


@pytest.mark.parametrize(
    "layout",
    [
        lambda ds: ds.transpose("time", "longitude", "latitude"),
        lambda ds: ds.rename(latitude="lat", longitude="lon", time="valid_time"),
        lambda ds: ds.expand_dims(number=[0]),
        renamed,
    ],
    ids=["longitude first", "other names", "a dimension of one", "degrees beside the dimensions"],
)
def test_layouts_make_no_difference(layout, panel: tuple[pd.DataFrame, Path], model: Model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows = probe(
        model,
        layout(travelling_waves(200)),
        lead=["1D", "3D"],
        controls="quick",
        out=tmp_path / "probe",
        progress=False,
    )
    np.testing.assert_allclose(rmse(rows), rmse(panel[0]), rtol=1e-5)


@pytest.mark.parametrize("storage", ["zarr2", "netcdf"])
def test_storage_makes_no_difference(
    storage: str, panel: tuple[pd.DataFrame, Path], model: Model, tmp_path: Path
) -> None:
    path = tmp_path / f"waves.{storage}"
    if storage == "zarr2":  # its codecs are none of those that the forecasts can be written with
        travelling_waves(200).to_zarr(path, zarr_format=2)
    else:
        travelling_waves(200).to_netcdf(path, encoding={"z": {"zlib": True, "chunksizes": (10, 8, 16)}})
    rows = probe(model, path, lead=["1D", "3D"], controls="quick", out=tmp_path / "probe", progress=False)
    np.testing.assert_allclose(rmse(rows), rmse(panel[0]), rtol=1e-5)


def test_a_calendar_of_360_days(tmp_path: Path) -> None:
    ds = travelling_waves(200, calendar="360_day")
    rows = judged(ds, tmp_path, lead=["1D"], out=tmp_path / "probe")
    forecast = xr.open_zarr(tmp_path / "probe/forecasts.zarr", consolidated=False).load()
    assert forecast["valid_time"].values.flat[0].calendar == "360_day"
    found = rmse_of(forecast["z"], ds["z"])
    assert rmse(rows)["z", "1D", "jepa_target"] == pytest.approx(found[0], rel=1e-4)


def test_latents_too_large_for_memory_go_through_the_folder(
    panel: tuple[pd.DataFrame, Path], model: Model, waves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sciJEPA.judging.panel_cache, sciJEPA.latents):
        monkeypatch.setattr(module, "MEMORY_LIMIT", 1000)
    rows = probe(model, waves, lead=["1D", "3D"], controls="quick", out=tmp_path / "probe", progress=False)
    np.testing.assert_allclose(rmse(rows), rmse(panel[0]), rtol=1e-4)
