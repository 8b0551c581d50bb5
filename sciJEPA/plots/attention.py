"""Pictures of one token: whom it attends to, and what its latent answers to.

What arrives: what `explore.attention` and `explore.receptive_field` return. What leaves: a matplotlib Figure, saved
when a path is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.cm import ScalarMappable

from sciJEPA.errors import UserError
from sciJEPA.explore.states import on_map
from sciJEPA.plots.looks import Figure, cell_edges, colour_scale, finish, map_height, offset_text, upright
from sciJEPA.plots.maps import draw_border, draw_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OWN_INK = "#D55E00"


def plot_attention(found: xr.DataArray, path: str | Path | None = None, *, coast: bool = True) -> Figure:
    """One panel for each head, and one row for each time of the window; the token itself is outlined.

    Colours span what the other tokens have; the token itself may lie beyond.
    Tokens of stations and channels make a table, one line each and time to the right, in place of a map.

    Parameters
    ----------
    found
        From `explore.attention`, or its mean over heads with the attributes kept; or from `explore.receptive_field` by
        token.
    path
        Where to save the picture.
    coast
        Coastlines on maps in degrees; needs `pip install "scijepa[maps]"`.

    Examples
    --------
    >>> places = {"token_latitude": ("token", [50.0, 50.0]), "token_longitude": ("token", [0.0, 9.0])}
    >>> weights = xr.DataArray([[0.25, 0.75]], {"head": [1], **places}, ("head", "token"), attrs={"token": 1})
    >>> [axes.get_title() for axes in plot_attention(weights).axes]
    ['head 1', '']
    """
    if found.dims not in (("head", "token"), ("token",)) or "token" not in found.attrs:
        raise UserError(
            "plot_attention needs what attention() or receptive_field(by='token') returns, with its attributes, got "
            f"the dimensions {found.dims}."
        )
    token = np.arange(found.sizes["token"]) == found.attrs["token"]
    field, own = _panels(found), _panels(found.copy(data=np.broadcast_to(token, found.shape)))
    names = {str(dim): field[dim].to_numpy() for dim in field.dims[2:] if _named(field, str(dim))}
    field = field.drop_vars(names)  # by number
    rows, columns = field.shape[:2]
    figure = Figure(figsize=(2.7 * columns + 1.3, (2.7 * map_height(field) + 0.45) * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    others = field.where(~own)  # a token answers to itself far more than to others, which the colours are for
    scale, colours = colour_scale(others.to_numpy())
    for row in range(rows):
        for column, axes in enumerate(grid[row]):
            panel = field[row, column]
            draw_map(axes, panel, scale, colours, coast)
            _name_ticks(axes, panel, names)
            x, y = (cell_edges(panel, str(dim)) for dim in panel.dims[::-1])
            draw_border(axes, x, y, own[row, column].to_numpy(), OWN_INK, 2.0)
            axes.set_title(_title(panel), fontsize=9)
            axes.label_outer()
    even = f"\n(even: {1 / found.sizes['token']:.2g})" if "head" in found.dims else ""
    label = f"{found.attrs.get('long_name', found.name or 'weight')}{even}"
    figure.colorbar(ScalarMappable(scale, colours), ax=list(grid.flat), label=label, extend="both", pad=0.01)
    return finish(figure, path)


def _panels(found: xr.DataArray) -> xr.DataArray:
    """Values by time of the window, by head, and on two dimensions of place; or by head alone, on place and time."""
    field = on_map(found)
    places = [str(dim) for dim in field.dims if dim != "head" and field.sizes[dim] > 1]
    field = field.squeeze([dim for dim in field.dims if dim not in ("head", *places)])
    if len(places) > 2 and places[0] == "offset":
        row, places = "offset", places[1:]
    else:
        row = ""
        places = [*places[1:], "offset"] if places[:1] == ["offset"] and _named(field, places[-1]) else places
    while len(places) < 2:
        places.insert(0, next(name for name in ("channel", "station", "latitude", "y") if name not in places))
        field = field.expand_dims(places[0])
    if len(places) > 2:
        raise UserError(
            f"the places of these tokens have the dimensions {', '.join(places)}, a picture has two; lay them out with "
            "on_map, select one entry of the others, and draw it with plot_maps."
        )
    for dim in (row, "head"):
        field = field if dim in field.dims else field.expand_dims(dim)
    return upright(field.transpose(row, "head", *places))


def _name_ticks(axes: Axes, panel: xr.DataArray, names: Mapping[str, np.ndarray]) -> None:
    """A table where a dimension has names: read from above, with time to the right."""
    for dim, axis in zip(map(str, panel.dims[::-1]), (axes.xaxis, axes.yaxis), strict=True):
        if dim in names:
            axis.set_ticks(range(len(names[dim])), [str(name) for name in names[dim]])
    if panel.dims[-1] == "offset":
        axes.set_xticks(panel["offset"].to_numpy()[:: -max(1, panel.sizes["offset"] // 4)])
        axes.set_xlabel("last step (hours from issue time)")
    if panel.dims[0] in names:
        axes.set_ylim(len(panel) - 0.5, -0.5)


def _named(panel: xr.DataArray, dim: str) -> bool:
    return dim in panel.coords and panel[dim].dtype.kind not in "iuf"


def _title(panel: xr.DataArray) -> str:
    parts = [f"head {panel['head'].item()}"] if "head" in panel.coords else []
    parts += [offset_text(float(panel["offset"]))] if panel.coords.get("offset", panel).ndim == 0 else []
    return ", ".join(parts)
