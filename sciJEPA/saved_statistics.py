"""Statistics beside an archive: written once by `prepare`, taken by `pretrain` where they are what it would compute.

Arrives: an archive in a folder, the steps of the training split and the modes of normalisation. Leaves: a `Normalizer`,
or None where there is none to be had. Saved statistics are never trusted to fit: channels, units, places, steps and
modes must be equal, and the file must be the one that was written.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.normalize import Normalizer, channel_modes
from sciJEPA.samples import Ranges, series_named

STATISTICS, DESCRIPTION = "statistics.safetensors", "dataset.json"


def write_statistics(folder: Path, normalizer: Normalizer) -> dict[str, Any]:
    """Write the arrays of a normaliser; returns its plain values and the file's SHA-256."""
    values = {field.name: getattr(normalizer, field.name) for field in dataclasses.fields(normalizer)}
    arrays = {name: np.ascontiguousarray(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    save_file(arrays, folder / STATISTICS)
    digest = hashlib.sha256((folder / STATISTICS).read_bytes()).hexdigest()
    return {name: value for name, value in values.items() if name not in arrays} | {"sha256": digest}


def read_statistics(archive: Archive, split: Ranges, modes: Mapping[str, str]) -> Normalizer | None:
    """The statistics beside the archive, where they are those of these steps, channels, places and modes.

    Raises
    ------
    UserError
        If the file is not the one that was written with the archive.
    """
    folder = Path(archive.source)
    if not ((folder / STATISTICS).is_file() and (folder / DESCRIPTION).is_file()):
        return None
    described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    saved = dict(described.get("statistics", {}))
    steps = tuple((int(start), int(stop)) for start, stop in saved.pop("steps", ()))
    known = {part["name"]: (number, part["units"]) for number, part in enumerate(described.get("channels", ()))}
    found = [known.get(channel.name, (-1, "")) for channel in archive.channels]
    if steps != split or not {"sha256", "seasonal"} <= set(saved):
        return None
    if any(n < 0 or units != c.units for (n, units), c in zip(found, archive.channels, strict=True)):
        return None
    numbers = [number for number, _ in found]
    if tuple(saved["modes"][number] for number in numbers) != channel_modes(archive, modes):
        return None
    if hashlib.sha256((folder / STATISTICS).read_bytes()).hexdigest() != saved.pop("sha256"):
        raise UserError(
            f"{folder / STATISTICS} is not the file that was written with {folder}: its SHA-256 differs from that in "
            f"{DESCRIPTION}; prepare the archive again, or remove both files."
        )
    values: dict[str, Any] = dict(load_file(folder / STATISTICS))
    values |= {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    values["series"] = series_named(archive, split)
    normalizer = Normalizer(**values).select(numbers)
    return normalizer if normalizer.coefficients.shape[2:] == archive.shape else None
