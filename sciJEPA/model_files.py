"""The files of a model folder: their names, and digests that tell whether they are as they were saved.

Arrives: a folder with weights and statistics, and the description that goes beside them. Leaves: the description with
the SHA-256 of the two files and of itself; on the way back, a refusal where one differs. We decided against a digest of
the card: nothing reads it but people. A digest tells damage, not origin: whoever changes a model on purpose can write
new ones, which is what a pinned revision is for.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sciJEPA.errors import UserError

WEIGHTS, STATISTICS, CONFIG, CARD = "model.safetensors", "statistics.safetensors", "config.json", "README.md"
FILES = (WEIGHTS, STATISTICS, CONFIG, CARD)


def add_digests(folder: Path, description: Mapping[str, Any]) -> dict[str, Any]:
    """The description as plain values, with the digests of the files in the folder and its own."""
    plain = json.loads(json.dumps(description))
    plain["sha256"] = {name: _file_digest(folder / name) for name in (WEIGHTS, STATISTICS)}
    plain["sha256"][CONFIG] = _description_digest(plain)
    return plain


def check_digests(folder: Path, description: Mapping[str, Any]) -> None:
    """Refuse files that are not those that were saved.

    Raises
    ------
    UserError
        If a digest differs. Version 0.1.0 wrote none of the description itself.
    """
    digests = description["sha256"]
    found = {CONFIG: _description_digest(description)} if CONFIG in digests else {}  # first: it holds the other digests
    found |= {name: _file_digest(folder / name) for name in (WEIGHTS, STATISTICS)}
    for name, digest in found.items():
        if digests.get(name) != digest:
            raise UserError(
                f"{folder / name} is damaged or was changed after saving: its SHA-256 differs from the one in {CONFIG}."
            )


def _description_digest(description: Mapping[str, Any]) -> str:
    """SHA-256 of the values, whatever the white space; without the digest itself, which lies among them."""
    digests = {name: digest for name, digest in description["sha256"].items() if name != CONFIG}
    text = json.dumps({**description, "sha256": digests}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
