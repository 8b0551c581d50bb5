"""Dataset card -> opened source: download what is to be downloaded, simulate what is to be simulated, open the rest.

Arrives: a card. Leaves: an :class:`Archive` that is read lazily, and what is known of its origin. Downloads go through
pooch into a cache, with their SHA-256 where the card has one; a file that is complete is not fetched again. We decided
against unpacking or converting downloads: what was downloaded stays as it was.
"""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from tqdm import tqdm

from sciJEPA.archive import Archive, open_archive
from sciJEPA.cards import Card, RemoteFile
from sciJEPA.errors import UserError

CACHE = "SCIJEPA_CACHE"
"""Environment variable that names the folder of the downloads."""
EXTRA = 'pip install "sciJEPA[prepare]"'


class Opened(NamedTuple):
    """An opened source and its origin, as plain values for `dataset.json`."""

    archive: Archive
    origin: dict[str, Any]


def open_source(
    card: Card, *, archive: str | os.PathLike | None = None, variables: list[str] | None = None, progress: bool = True
) -> Opened:
    """Open the dataset of a card, or a copy of it at `archive`, and take the variables and the part that it names."""
    names = list(card.variables) if variables is None else variables
    origin: dict[str, Any]
    data: Any
    if archive is not None:
        data, origin = archive, {"archive": os.fspath(archive)}
    elif card.source.zarr:
        data, origin = card.source.zarr, {"zarr": card.source.zarr}
    elif card.source.function:
        data = simulate(card)
        origin = {"function": f"sciJEPA.synthetic.{card.source.function}", "arguments": card.source.arguments}
    else:
        folder, files = download(card, progress=progress)
        data, origin = folder / files[0]["path"] if len(files) == 1 else folder, {"files": files}
    opened = open_archive(data, variables=names)
    if card.select:
        part = select(opened.ds, card.select, opened.source)
        opened = open_archive(part, variables=names)
    return Opened(opened, origin)


def simulate(card: Card) -> xr.Dataset:
    """The dataset of a card that names a function of `sciJEPA.synthetic`."""
    from sciJEPA import synthetic

    name = str(card.source.function)
    function = getattr(synthetic, name, None)
    if name.startswith(("_", "write_")) or getattr(function, "__module__", None) != synthetic.__name__:
        raise UserError(f"the card {card.name} asks for sciJEPA.synthetic.{name}, which is not there; correct it.")
    try:
        dataset = function(**card.source.arguments)  # type: ignore[misc]
    except TypeError as error:
        raise UserError(f"sciJEPA.synthetic.{name} cannot be called as the card {card.name} says: {error}.") from error
    if not isinstance(dataset, xr.Dataset):
        raise UserError(f"sciJEPA.synthetic.{name} of the card {card.name} returns no dataset; name one that does.")
    return dataset


def select(ds: xr.Dataset, ranges: dict[str, tuple[float, float]], source: str) -> xr.Dataset:
    """The part of a dataset within ranges of its coordinates, in stored order.

    Longitudes that are asked for from -180 on are found in 0 to 360 too; then they come out rising from the west.
    """
    for name, (low, high) in ranges.items():
        if name not in ds.coords or ds[name].ndim != 1:
            raise UserError(f"{source} has no axis '{name}' to select from; it has {', '.join(map(str, ds.coords))}.")
        values = ds[name].values
        if low < 0 and values.min() >= 0 and values.max() > 180 and "lon" in name.lower():
            values = (values + 180) % 360 - 180
            ds = ds.assign_coords({name: (ds[name].dims, values, ds[name].attrs)}).sortby(name)
            values = ds[name].values
        chosen = np.flatnonzero((values >= low - 1e-6) & (values <= high + 1e-6))
        if not len(chosen):
            span = f"{values.min():g} to {values.max():g}"
            raise UserError(f"{name} of {source} runs from {span} and has nothing within {low:g} to {high:g}.")
        ds = ds.isel({ds[name].dims[0]: slice(int(chosen[0]), int(chosen[-1]) + 1)})
    return ds


def cache_folder() -> Path:
    """Where downloads are kept: `SCIJEPA_CACHE`, else the cache of this user."""
    named = os.environ.get(CACHE)
    return Path(named).expanduser() if named else Path(_pooch().os_cache("sciJEPA"))


def download(card: Card, *, progress: bool = True) -> tuple[Path, list[dict[str, Any]]]:
    """Fetch the files of a card; the folder they lie in, and for each its path, URL, bytes and SHA-256."""
    folder = cache_folder() / card.name
    wanted = [file for pattern in card.source.files for file in pattern.expand()]
    digest = card.sha256 if len(wanted) == 1 else None
    quiet = None if progress and len(wanted) > 1 else True
    bar = tqdm(wanted, desc="files", unit="file", disable=quiet, file=sys.stderr)
    return folder, [_fetch(file, file.sha256 or digest, folder, progress) for file in bar]


def _fetch(file: RemoteFile, digest: str | None, folder: Path, progress: bool) -> dict[str, Any]:
    pooch = _pooch()
    pooch.get_logger().setLevel("WARNING")
    path = folder / str(file.path)
    if path.name in ("", "..") or ".." in path.parts:
        raise UserError(f"the card places {file.url} at '{file.path}', outside of the cache; correct its path.")
    visible = progress and sys.stderr.isatty()
    try:
        pooch.retrieve(
            file.url,
            known_hash=f"sha256:{digest}" if digest else None,
            fname=path.name,
            path=path.parent,
            progressbar=visible,
        )
    except ValueError as error:
        if "hash" not in str(error).lower():
            raise UserError(f"cannot download {file.url}: {error}; correct the card.") from error
        raise UserError(
            f"{file.url} is not the file of the card: its SHA-256 should be {digest}; nothing was kept. Try again, "
            "and if it stays so, the file has changed at its source: compare it, and change the card."
        ) from error
    except OSError as error:  # those of requests are too
        if error.errno is not None:  # the disk, not the network
            raise
        raise UserError(
            f"cannot download {file.url} ({type(error).__name__}); check the network, or fetch it elsewhere "
            f"and put it at {path}."
        ) from error
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"path": str(file.path), "url": file.url, "bytes": path.stat().st_size, "sha256": found}


def _pooch() -> Any:
    try:
        import pooch
    except ImportError as error:
        raise UserError(f"downloads need pooch, which is not installed: {EXTRA}.") from error
    return pooch
