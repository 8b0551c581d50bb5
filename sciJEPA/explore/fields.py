"""Labelled times -> what the archive looked like then: fields, their means and their spread.

Arrives: an archive and the times of latents. Leaves: `xr.Dataset`s under the archive's own names and units. Anomalies
are departures from the mean and seasonal cycle of the whole archive. This is for looking, not for scores: a forecast
that is to be judged must not know that mean.
"""

import os
from collections.abc import Sequence

import numpy as np
import xarray as xr

from sciJEPA.archive import Archive, open_archive
from sciJEPA.forecasting.labelling import label_fields, steps_of
from sciJEPA.loader import WindowReader
from sciJEPA.normalize import fit_normalizer
from sciJEPA.probes import row_blocks

Source = str | os.PathLike | xr.Dataset | Archive


class Fields:
    """Reads fields at steps of an archive, as anomalies or as they are; NaN where missing."""

    def __init__(self, archive: Source, anomaly: bool) -> None:
        self.archive, self.anomaly = open_archive(archive), anomaly
        length = self.archive.steps_per_series
        ranges = tuple((start, start + length) for start in range(0, len(self.archive), length))
        self._normalizer = fit_normalizer(self.archive, ranges)
        self._reader = WindowReader(self.archive, self._normalizer)

    def steps_of(self, labelled: xr.Dataset) -> np.ndarray:
        """Steps of the archive with the times (and members) of labelled data."""
        return steps_of(labelled, self.archive)

    def read(self, steps: np.ndarray) -> np.ndarray:
        """Fields of these steps, shape (steps, V, *space), physical units."""
        batch = self._reader.read(steps, 1)
        time = self.archive.time[steps]
        values = self._normalizer.invert(batch.values.numpy()[:, :, 0], time)
        if self.anomaly:
            values = values - self._normalizer.centre(time)
        return values if batch.observed is None else np.where(batch.observed.numpy()[:, :, 0], values, np.nan)

    def label(self, values: np.ndarray, dim: str) -> xr.Dataset:
        """Fields (n, leads, V, *space) with names and units, along `dim` and lead_time without coordinates."""
        nominal = np.zeros(len(values), dtype=int)
        ds = label_fields(values, self.archive, nominal, [0] * values.shape[1])
        ds = ds.drop_vars(["init_time", "lead_time", "valid_time", *self.archive.series], errors="ignore")
        for name in ds.data_vars if self.anomaly else ():
            ds[name].attrs["long_name"] = f"{ds[name].attrs.get('long_name', name)} anomaly"
        return ds.rename(init_time=dim)

    def lead_time(self, leads: Sequence[int]) -> xr.DataArray:
        """The coordinate of these leads, in steps of the archive."""
        empty = np.zeros((0, len(leads), len(self.archive.channels), *self.archive.shape), dtype=np.float32)
        named = label_fields(empty, self.archive, np.zeros(0, dtype=int), leads)["lead_time"]
        return named.assign_attrs(long_name="time since then")


def composites(labels: xr.DataArray, archive: Source, *, anomaly: bool = True) -> xr.Dataset:
    """Mean field of the times with each label, such as regimes or seasons.

        c_k = mean of x(t) over the times t with label k

    Parameters
    ----------
    labels
        Dims (time,); any values. Missing labels (NaN) are left out.
    archive
        Where the fields are; it must have these times.
    anomaly
        Departures from the archive's mean and seasonal cycle, or the fields themselves.

    Returns
    -------
    xr.Dataset
        Every variable with a dimension named after `labels` in front, and `number`, the count of times.

    Examples
    --------
    >>> from sciJEPA.synthetic import travelling_waves
    >>> waves = travelling_waves(40)
    >>> half = xr.DataArray(np.repeat([0, 1], 20), dims="time", coords={"time": waves["time"]}, name="half")
    >>> composites(half, waves)["number"].values.tolist()
    [20, 20]
    """
    fields, dim = Fields(archive, anomaly), str(labels.name or "label")
    labels = labels.dropna("time")
    steps = fields.steps_of(labels.to_dataset(name="_"))
    names, owner = np.unique(labels.to_numpy(), return_inverse=True)
    shape = (len(names), len(fields.archive.channels), *fields.archive.shape)
    total, count = np.zeros(shape), np.zeros(shape)
    for block in row_blocks(np.arange(len(steps))):
        values = fields.read(steps[block])
        np.add.at(total, owner[block], np.nan_to_num(values))
        np.add.at(count, owner[block], np.isfinite(values))
    mean = np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
    ds = fields.label(mean[:, None].astype(np.float32), dim).isel(lead_time=0)
    number = (dim, np.bincount(owner, minlength=len(names)), {"units": "1", "long_name": "number of times"})
    return ds.assign(number=number).assign_coords({dim: names})
