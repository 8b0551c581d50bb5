"""Folders that are complete or not there: what a killed or failed run leaves behind never opens by its own name."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sciJEPA.errors import UserError


def refuse_existing(path: str | os.PathLike) -> Path:
    """The path, if nothing is there yet."""
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} exists already and nothing is written over; choose another path, or remove it.")
    return path


@contextmanager
def complete_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A hidden folder beside `path`, which takes its name when the block ends and is removed when the block fails.

    Examples
    --------
    >>> import tempfile
    >>> with complete_folder(Path(tempfile.mkdtemp()) / "model") as folder:
    ...     _ = (folder / "card.md").write_text("a card")
    ...     folder.name
    '.model.partial'
    """
    path = refuse_existing(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
