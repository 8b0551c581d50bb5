"""Latents -> other people's tools: scikit-learn, Parquet, anything that reads a table.

Arrives: a frozen model and an archive, or labelled latents. Leaves: plain arrays with names for their columns, or a
`pd.DataFrame`. Latents themselves are an `xr.Dataset`, which xeofs and others take as they are; forecasts leave in the
layout of WeatherBench from `sciJEPA.forecast`. We decided against inheriting from scikit-learn's classes: its verbs are
enough for pipelines, and the package is not needed to have them.
"""

import os
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.explore.states import Latents, pool, state
from sciJEPA.hub import Model
from sciJEPA.latents import embed
from sciJEPA.samples import window_starts

Source = str | os.PathLike | xr.Dataset | Archive
POOLS = ("area", "flatten")


class LatentTransformer:
    """A frozen model as a step of a scikit-learn pipeline: an archive goes in, one row for each issue time comes out.

    Nothing is learned by `fit`. Rows are in the order of `sample_times`, which a target must follow.

    Parameters
    ----------
    model
        From `sciJEPA.load` or `sciJEPA.pretrain`.
    pool
        "area": the mean over tokens, weighted by area and by what was observed; "flatten": the tokens of the issue
        time side by side.
    encoder
        "target" or "online"; as in `sciJEPA.embed` if not given.
    domain
        Which domain of a joint model; found from the archive if not given.

    Examples
    --------
    >>> make_pipeline(LatentTransformer(model), StandardScaler(), Ridge()).fit("my.zarr", index)  # doctest: +SKIP
    """

    def __init__(
        self, model: Model, *, pool: str = "area", encoder: str | None = None, domain: str | None = None
    ) -> None:
        if pool not in POOLS:
            raise UserError(f"pool must be area or flatten, got '{pool}'.")
        self.model, self.pool, self.encoder, self.domain = model, pool, encoder, domain

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name, as scikit-learn has it."""
        return {"model": self.model, "pool": self.pool, "encoder": self.encoder, "domain": self.domain}

    def set_params(self, **parameters: Any) -> Self:
        """Set parameters by name."""
        unknown = [name for name in parameters if name not in self.get_params()]
        if unknown:
            raise UserError(
                f"LatentTransformer has no parameter '{unknown[0]}'; it has {', '.join(self.get_params())}."
            )
        self.__init__(**{**self.get_params(), **parameters})  # type: ignore[misc]  # checks them again
        return self

    def fit(self, archive: Source, target: Any = None) -> Self:
        """Check that the archive fits the model; nothing is learned."""
        self.model.open(archive, self.domain)
        return self

    def transform(self, archive: Source) -> np.ndarray:
        """Latents of every issue time, shape (n_samples, n_features)."""
        latents = embed(self.model, archive, domain=self.domain, encoder=self.encoder, progress=False)
        rows = pool(latents)["latents"] if self.pool == "area" else state(latents)
        return rows.to_numpy().reshape(rows.sizes["time"], -1)

    def fit_transform(self, archive: Source, target: Any = None) -> np.ndarray:
        """`transform`, after the check."""
        return self.fit(archive, target).transform(archive)

    def sample_times(self, archive: Source) -> pd.Index:
        """Issue times of the rows of `transform`, in order; members or trajectories follow each other."""
        opened, chosen = self.model.open(archive, self.domain)
        context = chosen.config.data.context
        return opened.time[window_starts(opened, ((0, len(opened)),), context) + context - 1]

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns: `latent_0`, or `token_0_latent_0` where tokens lie side by side."""
        latents = [f"latent_{number}" for number in range(self.model.jepa.encoder.latent_width)]
        if self.pool == "area":
            return np.array(latents, dtype=object)
        domain = self.model.only if self.domain is None else self.model.domains[self.domain]
        grid = domain.tokenizer.grid
        offset = domain.tokenizer.geometry.offset[: grid.context_times * grid.per_time]
        count = int((offset == offset.max()).sum())
        return np.array([f"token_{token}_{latent}" for token in range(count) for latent in latents], dtype=object)

    def __repr__(self) -> str:
        return f"LatentTransformer({self.model.id}, pool='{self.pool}', encoder='{self.encoder}')"

    def __sklearn_clone__(self) -> "LatentTransformer":
        """The same frozen model; scikit-learn would copy its weights."""
        return type(self)(**self.get_params())

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks before it lets a step into a pipeline."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        tags = Tags(estimator_type="transformer", target_tags=TargetTags(required=False))
        tags.transformer_tags, tags.input_tags = TransformerTags(), InputTags(two_d_array=False)
        tags.requires_fit, tags.no_validation = False, True
        return tags


def to_table(latents: Latents) -> pd.DataFrame:
    """Latents as a tidy table: one row for each time and token, one column for each feature.

    Write it with `to_parquet`, which keeps `attrs` (model id, archive, seed). Select or pool first where there is much.

    Parameters
    ----------
    latents
        From `embed`, with dims (time, token, latent), or pooled, with dims (time, latent).

    Returns
    -------
    pd.DataFrame
        `time`, `member` and the like where there are several series, `token` and its coordinates, `observed`, then
        `latent_0`, `latent_1`... Dates of calendars that pandas does not know become text.

    Examples
    --------
    >>> values = np.array([[[1.0, 2.0]], [[3.0, 4.0]]])
    >>> latents = xr.DataArray(values, dims=("time", "token", "latent"), coords={"time": [0, 1]}, name="latents")
    >>> to_table(latents).columns.tolist()
    ['time', 'token', 'latent_0', 'latent_1']
    """
    array = latents["latents"] if isinstance(latents, xr.Dataset) else latents
    if not {"time", "latent"} <= set(array.dims):
        raise UserError(f"a table needs latents with dims (time, token, latent), found {array.dims}.")
    rows = [str(dim) for dim in array.dims if dim != "latent"]
    stacked = array.transpose(*rows, "latent")
    labels = xr.Dataset(coords={**{dim: np.arange(array.sizes[dim]) for dim in rows}, **_row_coordinates(array)})
    if isinstance(latents, xr.Dataset) and "observed" in latents:
        labels["observed"] = latents["observed"]
    labels["_"] = (tuple(rows), np.zeros([array.sizes[dim] for dim in rows], bool))  # spans every row
    table = labels.to_dataframe(dim_order=rows).reset_index().drop(columns="_")
    if table["time"].dtype == object:
        table["time"] = table["time"].astype(str)
    first = [name for name in (*rows, *array.coords) if name in table.columns and name != "latent"]
    table = table[[*dict.fromkeys(first), *(name for name in table.columns if name not in first)]]
    values = stacked.to_numpy().reshape(len(table), -1)
    columns = [f"latent_{number}" for number in range(values.shape[1])]
    table = pd.concat([table, pd.DataFrame(values, columns=columns)], axis=1)
    table.attrs = {key: _plain(value) for key, value in latents.attrs.items()}
    return table


def _row_coordinates(array: xr.DataArray) -> dict[str, Any]:
    return {str(name): c.variable for name, c in array.coords.items() if c.dims and "latent" not in c.dims}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
