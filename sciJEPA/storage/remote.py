"""Part of arrow 1: an address -> a Zarr store that is read with care, or a local copy of a NetCDF file.

What arrives: any URL that fsspec understands (http, s3, gs, memory, zip, simplecache:: chains...) and its storage
options. What leaves: a zarr store whose chunks are fetched concurrently, or the path of a complete copy.
What we decided against: reading NetCDF by byte ranges over a network (an epoch would fetch the file many times over,
and its library can neither time out nor try again); the file is fetched once and kept.
"""

import hashlib
import os
import posixpath
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sciJEPA.errors import UserError
from sciJEPA.storage import faults
from sciJEPA.storage.faults import may_pass, with_retries

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from zarr.storage import FsspecStore

Options = Mapping[str, Any]


def file_system(url: str, options: Options) -> "tuple[AbstractFileSystem, str]":
    """The file system of an address, and the path within it."""
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url, **_patient(url, options))
    except ImportError as error:
        missing = f"{url} needs a package that is not installed ({error})".splitlines()[0].rstrip(". ")
        raise UserError(f'{missing}; for http, s3 and gs: pip install "sciJEPA[remote]".') from error
    except (ValueError, TypeError, OSError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(". ")
        raise UserError(f"{url} is no address that we can open: {reason}; check it and storage_options.") from error


def _patient(url: str, options: Options) -> dict[str, Any]:
    """Over HTTP a file of any size may arrive, as long as some of it does: aiohttp would end all after five minutes."""
    if not url.startswith(("http://", "https://")) or "timeout" in options.get("client_kwargs", {}):
        return dict(options)
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=faults.TRY_SECONDS, sock_read=faults.TRY_SECONDS)
    return {**options, "client_kwargs": {**options.get("client_kwargs", {}), "timeout": timeout}}


def zarr_store(url: str, options: Options) -> "FsspecStore":
    """The store behind an address; chunks of one read are fetched concurrently."""
    from zarr.storage import FsspecStore

    fs, path = file_system(url, options)
    return FsspecStore(asynchronous(fs), path=path.rstrip("/"), read_only=True)


def asynchronous(fs: "AbstractFileSystem") -> "AbstractFileSystem":
    """The same file system for use in zarr's event loop."""
    from fsspec.asyn import AsyncFileSystem

    if issubclass(type(fs), AsyncFileSystem):  # caches answer for the file system behind them, and block all the same
        return fs if fs.asynchronous else type(fs)(*fs.storage_args, **{**fs.storage_options, "asynchronous": True})
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

    return AsyncFileSystemWrapper(fs, asynchronous=True)


def exists(url: str, options: Options) -> bool:
    """Whether an object is there; errors that may pass are tried again."""
    fs, path = file_system(url, options)
    return bool(with_retries(lambda: fs.exists(path), url))


def local_copy(url: str, options: Options) -> str:
    """Fetch a file once and keep it, under a name that changes when the file does.

    Copies lie in ``SCIJEPA_CACHE``, else in the user's cache. A copy appears under its name only when it is complete.
    """
    fs, path = file_system(url, options)
    info = with_retries(lambda: _info(fs, path), url)
    size = info.get("size")
    version = [url, size, *(str(info.get(key)) for key in ("ETag", "etag", "LastModified", "mtime", "created"))]
    digest = hashlib.sha256(repr(version).encode()).hexdigest()[:16]
    copy = _cache_folder() / f"{digest}-{posixpath.basename(path.split('?')[0]) or 'file'}"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with_retries(lambda: _fetch(fs, path, copy, size), url)
    return str(copy)


def _info(fs: "AbstractFileSystem", path: str) -> dict[str, Any]:
    """Size and version of a file; over HTTP fsspec says "not found" for every failure, and keeps the true one."""
    try:
        return dict(fs.info(path))
    except FileNotFoundError as error:
        cause = error.__cause__
        raise cause if isinstance(cause, Exception) and may_pass(cause) else error from None


def _fetch(fs: "AbstractFileSystem", path: str, copy: Path, size: int | None) -> None:
    handle, partial = tempfile.mkstemp(dir=copy.parent, suffix=".partial")
    os.close(handle)
    try:
        fs.get_file(path, partial)
        if size is not None and os.path.getsize(partial) != size:
            raise OSError(f"{os.path.getsize(partial)} of {size} bytes arrived")
        os.replace(partial, copy)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def _cache_folder() -> Path:
    named = os.environ.get("SCIJEPA_CACHE")
    if named:
        return Path(named).expanduser() / "fetched"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sciJEPA" / "fetched"
