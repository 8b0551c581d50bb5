"""`ds.jepa`: a thin doorway from a dataset to sciJEPA; each method calls one function.

Arrives: an `xr.Dataset`, registered when this module is imported. Leaves: what the functions return. We decided against
state: nothing is kept between calls.
"""

from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    from sciJEPA.hub import Model


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

    def embed(self, model: "Model", **options: Any) -> xr.Dataset:
        """Labelled latents of this dataset; see `sciJEPA.embed`."""
        from sciJEPA.latents import embed

        return embed(model, self._ds, **options)

    def inspect(self, **options: Any) -> dict[str, Any]:
        """Axes, units, gaps, missing values and a verdict; see `sciJEPA.inspect`."""
        from sciJEPA.inspection import inspect

        return inspect(self._ds, **options)
