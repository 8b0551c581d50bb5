"""What a probe has computed -> files that the next one finds: latents, errors and forecasts.

Arrives: a run folder and a problem. Leaves: `RUN/cache`, from which a finished probe is repeated in seconds and a
killed one goes on, method by method. A file is known by the model, the content of the archive, and all that its numbers
depend on. We decided against keeping what comes from an archive in memory: nothing says that it is the same the next
time.
"""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import xarray as xr

from sciJEPA.archive import Archive
from sciJEPA.hub import Domain, Model
from sciJEPA.judging.problem import Errors
from sciJEPA.latents import MEMORY_LIMIT, embed
from sciJEPA.plan import versions

FORMAT = 2
SAMPLED_STEPS = 8


@dataclass(frozen=True)
class Cache:
    """A folder for what can be computed again.

    Attributes
    ----------
    folder : where files are kept.
    lasting : the folder outlives the probe; latents that fit in memory are written for that alone.
    archive_id : digest of the archive's content.
    """

    folder: Path
    lasting: bool
    archive_id: str

    def latents(self, model: Model, domain: Domain, archive: Archive, encoder: str, *, progress: bool) -> xr.Dataset:
        """Latents of a model, in memory where they fit."""
        path = self.folder / "latents" / f"{model.id}-{domain.name}-{encoder}-{self.archive_id}.zarr"
        grid = domain.tokenizer.grid
        size = len(archive) * grid.context_times * grid.per_time * model.jepa.encoder.latent_width * 4
        if not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            out = path if self.lasting or size > MEMORY_LIMIT else None
            found = embed(model, archive, domain=domain.name, encoder=encoder, out=out, progress=progress)
            if out is None:
                return found
        stored = xr.open_zarr(path, consolidated=False, chunks=None)
        return stored.load() if size <= MEMORY_LIMIT else stored

    def errors(self, name: str, key: str) -> Errors | None:
        """Errors of a method, if they are there."""
        path = self._errors(name, key)
        if not path.is_file():
            return None
        with np.load(path) as stored:
            return Errors(**{name: stored[name] for name in stored.files})

    def keep_errors(self, name: str, key: str, errors: Errors) -> None:
        """Write the errors of a method, complete or not at all."""
        content = io.BytesIO()
        np.savez(content, **vars(errors))
        self._write(self._errors(name, key), content.getvalue())

    def array(self, name: str, key: str) -> np.ndarray | None:
        """A single array, if it is there."""
        path = self.folder / "errors" / f"{name}-{key}-{self.archive_id}.npy"
        return np.load(path) if path.is_file() else None

    def keep_array(self, name: str, key: str, values: np.ndarray) -> None:
        """Write a single array."""
        content = io.BytesIO()
        np.save(content, values)
        self._write(self.folder / "errors" / f"{name}-{key}-{self.archive_id}.npy", content.getvalue())

    def forecasts(self, name: str, key: str) -> Path:
        """Where the forecasts of a method are kept."""
        return self.folder / "forecasts" / f"{name}-{key}-{self.archive_id}.zarr"

    def _errors(self, name: str, key: str) -> Path:
        return self.folder / "errors" / f"{name}-{key}-{self.archive_id}.npz"

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(content)
        os.replace(partial, path)


@contextmanager
def open_cache(folder: Path | None, archive: Archive, beside: Path | None) -> Iterator[Cache]:
    """The cache in this folder; one that is thrown away where there is no folder, or the archive is in memory.

    `beside` is where large latents go that are thrown away.
    """
    archive_id = fingerprint(archive)
    if folder is not None and archive_id is not None:
        yield Cache(folder, True, archive_id)
        return
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".latents-", dir=beside) as spill:
        yield Cache(Path(spill), False, "once")


def fingerprint(archive: Archive) -> str | None:
    """Digest of an archive: names and sizes, times, places, its files' sizes and dates, and a few fields.

    None for an archive in memory, and for one that cannot say.
    """
    if archive.source.startswith("<"):
        return None
    labels = [str(channel) for channel in archive.channels]
    digest = hashlib.sha256(repr((FORMAT, versions()["sciJEPA"], archive.source, archive.shape, labels)).encode())
    digest.update(archive.hours.tobytes() + "".join(map(str, archive.time[:: max(1, len(archive) // 64)])).encode())
    for part in (archive.latitude, archive.longitude, *archive.space.coordinates):
        digest.update(np.ascontiguousarray(part).tobytes())
    for file in _files(Path(archive.source)):
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    for step in np.linspace(0, len(archive) - 1, SAMPLED_STEPS).astype(int).tolist():
        digest.update(archive.read(step, step + 1).tobytes())
    return digest.hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    """The files of an archive on this machine, in order."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
