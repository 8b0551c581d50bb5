"""Issue windows -> moments and spectra: what a parameter probe must beat, as these know no network.

Arrives: a reader of standardised fields in a box. Leaves: `Rows` with a few numbers for every channel and step: mean,
standard deviation, skewness, kurtosis, and the logarithm of the power at each wavenumber. A viscosity shows in how
power falls off, so that latents which know it have shown little yet. We decided against one mean over the steps of a
window: how power changes within it tells of decay, and an encoder sees that too.
"""

import numpy as np

from sciJEPA.errors import UserError
from sciJEPA.loader import WindowReader
from sciJEPA.probes import Rows
from sciJEPA.space import Space

FLOOR = 1e-12
"""Power below this share of a channel's variance counts as none; single precision leaves less than that by rounding."""
MOMENTS = 4


def moments_and_spectrum(reader: WindowReader, context: int) -> Rows:
    """Moments and the radially averaged log spectrum of each step of the issue window, channel by channel.

    A row has the shape (steps, channels, moments and wavenumbers), flattened: its steps may serve as tokens. Missing
    values count as climatology.

    Raises
    ------
    UserError
        If the archive is no box of evenly spaced cells.
    """
    archive = reader.archive
    numbers, tapers = wavenumbers(archive.space, archive.source), _taper(archive.space)
    width = len(archive.channels) * (MOMENTS + int(numbers.max()))

    def read(steps: np.ndarray) -> np.ndarray:
        values = reader.read(steps - context + 1, context).values.numpy().swapaxes(1, 2).astype(np.float64)
        fields = values.reshape(-1, *archive.shape)
        return np.concatenate([moments(fields), log_spectrum(fields, numbers, tapers)], axis=1).reshape(len(steps), -1)

    return Rows(read, width * context)


def moments(fields: np.ndarray) -> np.ndarray:
    """Mean, standard deviation, skewness and excess kurtosis of fields (n, *space); zero where a field is constant.

    Examples
    --------
    >>> moments(np.array([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0]])).tolist()
    [[1.0, 1.0, 0.0, -2.0], [5.0, 0.0, 0.0, 0.0]]
    """
    flat = fields.reshape(len(fields), -1)
    mean, deviation = flat.mean(axis=1), flat.std(axis=1)
    # A field that varies by rounding alone has no shape.
    varies = deviation > 1e-6 * (1 + np.abs(mean))
    scaled = (flat - mean[:, None]) / np.where(varies, deviation, 1)[:, None]
    skewness, kurtosis = (
        np.where(varies, (scaled**power).mean(axis=1) - normal, 0) for power, normal in ((3, 0), (4, 3))
    )
    return np.stack([mean, deviation, skewness, kurtosis], axis=1)


def log_spectrum(fields: np.ndarray, numbers: np.ndarray, taper: np.ndarray | None = None) -> np.ndarray:
    """log10 of the mean power |F|^2 in each shell of wavenumbers, F = mean of x exp(-i k x), without the mean field.

    Parameters
    ----------
    fields
        Shape (n, *space), standardised.
    numbers
        Shell of every Fourier coefficient, shape (*space), from `wavenumbers`; shell 0 is left out.
    taper
        Shape (*space): brings fields to zero at sides that are not periodic.

    Examples
    --------
    >>> wave = np.cos(2 * np.pi * np.arange(8) / 4)  # two waves in the box, half of the power at k = 2, half at -2
    >>> log_spectrum(wave[None], np.array([0, 1, 2, 3, 4, 3, 2, 1])).round(3).tolist()
    [[-12.0, -0.602, -12.0, -12.0]]
    """
    space = tuple(range(1, fields.ndim))
    centred = fields - fields.mean(axis=space, keepdims=True)
    power = np.abs(np.fft.fftn(centred if taper is None else centred * taper, axes=space) / numbers.size) ** 2
    shells, count = numbers.ravel(), np.bincount(numbers.ravel())
    sums = np.stack([np.bincount(shells, each.ravel(), minlength=len(count)) for each in power])
    return np.log10(sums[:, 1:] / np.maximum(count[1:], 1) + FLOOR)


def wavenumbers(space: Space, source: str) -> np.ndarray:
    """Shell of every Fourier coefficient: |k| in waves along the longest side of the box, rounded.

    Coefficients beyond the shortest wave that all dimensions hold share the last shell.

    Examples
    --------
    >>> line = Space(kind="box", dims=("x",), shape=(6,), coordinates=(np.arange(6.0),), sides=(("periodic",) * 2,))
    >>> wavenumbers(line, "line").tolist()
    [0, 1, 2, 3, 2, 1]
    """
    widths = [np.diff(values) for values in space.coordinates]
    if space.kind != "box" or not all(len(w) and np.ptp(w) <= 1e-3 * np.abs(w).mean() for w in widths):
        raise UserError(
            "moments_and_spectrum needs fields on evenly spaced cells of a box, at least two along each dimension, but "
            f"{source} is a {space.describe()} with other ones; leave it out."
        )
    cells = [float(np.abs(width.mean())) for width in widths]
    longest = max(size * cell for size, cell in zip(space.shape, cells, strict=True))
    waves = [np.fft.fftfreq(size, cell) * longest for size, cell in zip(space.shape, cells, strict=True)]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*waves, indexing="ij")))
    return np.minimum(np.rint(radius), int(min(np.abs(axis).max() for axis in waves))).astype(int)


def _taper(space: Space) -> np.ndarray | None:
    """Hann windows along the dimensions that do not close, with the mean power kept; none if all of them do."""
    if all(space.periodic):
        return None
    halves = [
        np.ones(size) if periodic else 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(size) + 0.5) / size)
        for size, periodic in zip(space.shape, space.periodic, strict=True)
    ]
    shapes = np.meshgrid(*halves, indexing="ij")
    taper = np.prod(shapes, axis=0)
    return taper / np.sqrt((taper**2).mean())
