"""`ds.jepa`: a thin doorway from a dataset to sciJEPA; each method calls one function.

Arrives: an `xr.Dataset`, registered when this module is imported. Leaves: what the functions return. We decided against
state: nothing is kept between calls.
"""

from html import escape
from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    from sciJEPA.config import RunConfig
    from sciJEPA.forecast import ForecastProbe
    from sciJEPA.hub import Model

DOORS = ("inspect", "tokens", "mask", "embed", "energy", "forecast")


@xr.register_dataset_accessor("jepa")
class JepaAccessor:
    """What sciJEPA does with this dataset.

    Examples
    --------
    >>> from sciJEPA.synthetic import travelling_waves
    >>> travelling_waves(5).jepa.inspect(window=2)["axes"]["time"]["size"]
    5
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def __repr__(self) -> str:
        variables = ", ".join(map(str, list(self._ds.data_vars)[:4])) + (", ..." if len(self._ds.data_vars) > 4 else "")
        sizes = ", ".join(f"{dim} {size}" for dim, size in self._ds.sizes.items())
        return f"<ds.jepa of {variables or 'no variables'} ({sizes}): {', '.join(DOORS)}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<dt><code>ds.jepa.{name}(...)</code></dt><dd>{escape(str(getattr(self, name).__doc__))}</dd>"
            for name in DOORS
        )
        return f"<details><summary>{escape(repr(self))}</summary><dl>{rows}</dl></details>"

    def inspect(self, **options: Any) -> dict[str, Any]:
        """Axes, units, gaps, missing values and a verdict; see `sciJEPA.inspect`."""
        from sciJEPA.inspection import inspect

        return inspect(self._ds, **options)

    def tokens(self, how: "RunConfig | Model | str", **options: Any) -> xr.Dataset:
        """Where and when the tokens of a window are, for a model or a configuration: `explore.views.tokens`."""
        from sciJEPA.explore.views import tokens

        return tokens(self._ds, how, **options)

    def mask(self, model: "Model", time: object, **options: Any) -> xr.Dataset:
        """A window of this dataset under a mask; see `sciJEPA.explore.views.mask`."""
        from sciJEPA.explore.views import mask

        return mask(self._ds, model, time, **options)

    def embed(self, model: "Model", **options: Any) -> xr.Dataset:
        """Labelled latents of this dataset, in memory, lazily or in a store; see `sciJEPA.embed`."""
        from sciJEPA.latents import embed

        return embed(model, self._ds, **options)

    def energy(self, model: "Model", **options: Any) -> xr.Dataset:
        """How surprising each sample of this dataset is, per token; see `sciJEPA.latents.energy`."""
        from sciJEPA.latents import energy

        return energy(model, self._ds, **options)

    def forecast(self, probe: "ForecastProbe", model: "Model", **options: Any) -> xr.Dataset:
        """Forecasts from the latents of this dataset by a fitted probe; options are those of `sciJEPA.embed`."""
        return probe.predict(self.embed(model, **options))
