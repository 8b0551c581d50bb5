"""Pictures of a report, each with its alternative text and caption.

Arrives: a model with its archive, or stored forecasts. Leaves: (figure, alternative text, caption). Archives without
two dimensions of space have no maps and are refused with a sentence, which the report prints in the picture's place.
"""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.cm import ScalarMappable

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.explore.components import token_components
from sciJEPA.explore.states import on_map
from sciJEPA.explore.views import mask
from sciJEPA.forecasting.labelling import place_weights
from sciJEPA.hub import Domain, Model
from sciJEPA.latents import embed
from sciJEPA.plots.coast import of_earth
from sciJEPA.plots.looks import Figure, colour_scale, length_text, map_height, quantity, time_text, upright
from sciJEPA.plots.maps import draw_map, plot_maps, plot_mask
from sciJEPA.samples import split_steps

MOST_TIMES = 400
"""Latent components of a report are those of at most so many test times."""
Picture = tuple[Figure, str, str]


def mask_figure(model: Model, domain: Domain, archive: Archive) -> Picture:
    """A mask of the likeliest strategy over the first test window."""
    refuse_without_map(archive)
    series, start, _ = _first_test(domain, archive)
    part = archive.ds.isel(series)
    shown = mask(part, model, archive.time[start + domain.config.data.context - 1], domain=domain.name)
    field = shown["anomaly"].isel(channel=0)
    name = str(field["channel"].item())
    field = field.drop_vars("channel").assign_attrs(long_name=f"{name} anomaly")
    figure = plot_mask(field, shown["role"], coast=of_earth(archive))
    share = {which: float((shown["role"] == number).mean()) for which, number in (("context", 1), ("target", 2))}
    strategy = shown.attrs["strategy"]
    alternative = (
        f"Maps of {name} over a window of {field.sizes['time']} steps under a {strategy} mask: {share['context']:.0%} "
        f"of the places and times are context, {share['target']:.0%} are targets."
    )
    return figure, alternative, f"What one training step shows and asks for ({strategy} mask), over {name}."


def component_figure(model: Model, domain: Domain, archive: Archive) -> Picture:
    """The leading component of the tokens' latents at four times of the test split."""
    refuse_without_map(archive)
    series, start, stop = _first_test(domain, archive)
    chosen = series | {archive.axes["time"]: slice(start, min(stop, start + MOST_TIMES))}
    latents = embed(model, archive.ds.isel(chosen), domain=domain.name, progress=False)
    scores = token_components(latents, 1).isel(component=0)
    times = np.linspace(0, scores.sizes["time"] - 1, 4).round().astype(int)
    field = on_map(scores.isel(time=np.unique(times)).assign_attrs(long_name="component 1 of the latents"))
    if field.ndim != 3:
        raise UserError(f"the latents of {archive.source} have no map: their places are {field.dims[1:]}.")
    alternative = (
        f"Maps of the first principal component of the latents at {field.sizes['time']} times, on "
        f"{field.shape[1]} by {field.shape[2]} tokens; from {float(field.min()):.2g} to {float(field.max()):.2g}."
    )
    figure = plot_maps(field, coast=of_earth(archive))
    return figure, alternative, "Where the latents differ from their mean: first component among all tokens."


def case_figure(store: Path, archive: Archive) -> Picture:
    """Forecast, truth and error of the best, the median and the worst case at the middle lead."""
    refuse_without_map(archive)
    forecasts = xr.open_zarr(store, consolidated=False)
    name = str(next(iter(forecasts.data_vars)))
    lead = forecasts.sizes["lead_time"] // 2
    forecast = forecasts[name].isel(lead_time=lead).load()
    extra = [dim for dim in forecast.dims if dim not in ("init_time", *archive.space.dims)]
    forecast = forecast.isel({dim: 0 for dim in extra}).transpose("init_time", *archive.space.dims)
    truth = _truth(forecast, name, archive)
    error = np.sqrt(((forecast - truth) ** 2).weighted(place_weights(archive)).mean(archive.space.dims))
    order = np.argsort(error.to_numpy())
    order = order[np.isfinite(error.to_numpy()[order])]
    cases = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    ahead = length_text(forecasts["lead_time"].to_numpy()[lead])
    figure = _draw_cases(upright(forecast), upright(truth), cases, error.to_numpy(), of_earth(archive))
    told = ", ".join(f"{case} {float(error[number]):.4g}" for case, number in cases.items())
    unit = forecast.attrs.get("units", "")
    alternative = (
        f"Maps of forecast, truth and error of {name}, {ahead} ahead, for three of {len(order)} test times; "
        f"RMSE in {unit or 'its units'}: {told}."
    )
    return figure, alternative, f"{name}, {ahead} ahead: best, median and worst case of {len(order)} by RMSE."


def _truth(forecast: xr.DataArray, name: str, archive: Archive) -> xr.DataArray:
    """The archive's fields at the valid times."""
    from sciJEPA.forecasting.labelling import positions, series_numbers

    steps = positions(forecast["valid_time"].values, archive, series_numbers(forecast.to_dataset(name=name), archive))
    if (steps < 0).any():
        raise UserError(f"{int((steps < 0).sum())} valid times of the forecasts are not in {archive.source}; no cases.")
    channel = [each.variable for each in archive.channels].index(name)
    fields = np.stack([archive.read(int(step), int(step) + 1)[0, channel] for step in steps])
    return forecast.copy(data=fields)


def _draw_cases(
    forecast: xr.DataArray, truth: xr.DataArray, cases: dict[str, int], error: np.ndarray, coast: bool
) -> Figure:
    """Rows: cases; columns: forecast and truth on one scale, and the error on its own."""
    numbers = list(cases.values())
    pair = xr.concat([forecast.isel(init_time=numbers), truth.isel(init_time=numbers)], "kind", coords="minimal")
    off = forecast.isel(init_time=numbers) - truth.isel(init_time=numbers)
    scale, colours = colour_scale(pair.to_numpy())
    error_scale, error_colours = colour_scale(off.to_numpy())
    height = 3.6 * map_height(forecast) + 0.6
    figure = Figure(figsize=(12.5, height * len(cases) + 0.5), layout="constrained")
    grid = figure.subplots(len(cases), 3, sharex=True, sharey=True)
    for row, (case, number) in enumerate(cases.items()):
        for column, (title, field) in enumerate((("forecast", forecast), ("truth", truth))):
            draw_map(grid[row, column], field[number], scale, colours, coast)
            day = time_text(forecast, "valid_time", number).removesuffix(" 00:00").removeprefix("valid_")
            grid[row, column].set_title(f"{case}: {title} for {day}", fontsize=9)
        draw_map(grid[row, 2], off[row], error_scale, error_colours, coast)
        grid[row, 2].set_title(f"{case}: error, RMSE {error[number]:.4g}", fontsize=9)
        for column in range(3):
            if column:
                grid[row, column].set_ylabel("")
            if row < len(cases) - 1:
                grid[row, column].set_xlabel("")
    bar: dict[str, Any] = {"extend": "both", "aspect": 40}
    figure.colorbar(ScalarMappable(scale, colours), ax=list(grid[:, :2].flat), label=quantity(forecast), **bar)
    label = quantity(forecast.assign_attrs(long_name="forecast - truth"))
    figure.colorbar(ScalarMappable(error_scale, error_colours), ax=list(grid[:, 2]), label=label, **bar)
    return figure


def _first_test(domain: Domain, archive: Archive) -> tuple[dict[str, Any], int, int]:
    """Member or trajectory of the first test steps, as indices, and the first and last + 1 of those steps within it."""
    start, stop = split_steps(archive, domain.config.data).test[0]
    length = archive.steps_per_series
    shape = tuple(archive.ds.sizes[name] for name in archive.series)
    numbers = np.unravel_index(start // length, shape) if shape else ()
    series = {name: int(number) for name, number in zip(archive.series, numbers, strict=True)}
    return series, start % length, min(stop - start // length * length, length)


def refuse_without_map(archive: Archive) -> None:
    """Refuse an archive whose places are no plane."""
    if len(archive.shape) != 2 or archive.space.kind == "stations" or archive.space.curvilinear:
        raise UserError(
            f"no map here: {archive.source} lies on {archive.space.describe()}, not on a plane with two axes"
        )
