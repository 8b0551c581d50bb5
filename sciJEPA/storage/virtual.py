"""Part of arrow 1: Icechunk repositories and virtual references -> a Zarr store.

What arrives: a folder or address of an Icechunk repository, or of references (Kerchunk JSON or Parquet, as Kerchunk and
VirtualiZarr write them). What leaves: a store that xarray reads as Zarr.
What we decided against: our own reading of either format; and retries around Icechunk, which has its own and raises an
error for a chunk that is lost, instead of filling it.
"""

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sciJEPA.errors import UserError
from sciJEPA.storage.remote import Options, asynchronous, exists, file_system

if TYPE_CHECKING:
    from zarr.abc.store import Store
    from zarr.storage import FsspecStore

CREDENTIALS = {
    "key": "access_key_id",
    "secret": "secret_access_key",
    "token": "session_token",
    "endpoint_url": "endpoint_url",
    "region": "region",
    "anon": "anonymous",
}
"""Storage options as s3fs names them -> as Icechunk does."""
VERSIONS = ("branch", "tag", "snapshot_id")


def is_icechunk(path: str) -> bool:
    """Whether a local folder is laid out as an Icechunk repository."""
    return all(os.path.isdir(os.path.join(path, name)) for name in ("refs", "snapshots"))


def is_remote_icechunk(url: str, options: Options) -> bool:
    """Whether an address on S3 holds an Icechunk repository."""
    if not url.startswith("s3://"):
        return False
    plain = {name: value for name, value in options.items() if name not in VERSIONS}
    return exists(f"{url.rstrip('/')}/refs/branch.main/ref.json", plain)


def icechunk_store(path: str, options: Options) -> "Store":
    """A snapshot of a repository: the tip of `main`, or what the options `branch`, `tag` or `snapshot_id` name."""
    try:
        import icechunk
    except ImportError as error:
        raise UserError(f'{path} is an Icechunk repository: pip install "sciJEPA[icechunk]".') from error
    version = {name: options[name] for name in VERSIONS if name in options} or {"branch": "main"}
    try:
        if "://" in path:
            storage = icechunk.s3_storage(**_s3_location(path, options))
        else:
            storage = icechunk.local_filesystem_storage(path)
        return icechunk.Repository.open(storage).readonly_session(**version).store
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200].rstrip(". ")
        wanted = ", ".join(f"{name} {value}" for name, value in version.items())
        raise UserError(
            f"{path} cannot be opened as an Icechunk repository at {wanted}: {reason}; check the version, and "
            "whether the repository is complete."
        ) from error


def _s3_location(url: str, options: Options) -> dict[str, Any]:
    parts = urlsplit(url)
    named = {CREDENTIALS[name]: value for name, value in options.items() if name in CREDENTIALS}
    client = options.get("client_kwargs", {})
    named |= {name: client[key] for key, name in (("endpoint_url",) * 2, ("region_name", "region")) if key in client}
    endpoint = named.get("endpoint_url")
    if endpoint:
        named |= {"allow_http": endpoint.startswith("http://"), "force_path_style": True}
        named.setdefault("region", "us-east-1")
    if "access_key_id" not in named and not named.get("anonymous"):
        named["from_env"] = True
    return {"bucket": parts.netloc, "prefix": parts.path.strip("/"), **named}


def is_reference_file(path: str) -> bool:
    """Whether a local JSON file holds references."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, OSError):
        return False
    return isinstance(content, Mapping) and bool({"refs", ".zgroup", ".zmetadata"} & set(content))


def is_reference_folder(path: str) -> bool:
    """Whether a local folder holds references in Parquet."""
    if not os.path.isfile(os.path.join(path, ".zmetadata")):
        return False
    with open(os.path.join(path, ".zmetadata"), encoding="utf-8") as file:
        return '"record_size"' in file.read()


def reference_store(path: str, options: Options) -> "FsspecStore":
    """The chunks that references point to; storage options go to where these lie, under ``remote_options``.

    Options that are not meant for fsspec's reference file system are taken for those of the target.
    """
    try:
        import fsspec  # noqa: F401
    except ImportError as error:
        raise UserError(f'{path} holds virtual references: pip install "sciJEPA[virtual]".') from error
    known = {"remote_options", "remote_protocol", "target_options", "target_protocol", "fss", "fo"}
    rest = {name: value for name, value in options.items() if name not in known}
    given = {name: value for name, value in options.items() if name in known}
    if rest:
        given["remote_options"] = {**rest, **given.get("remote_options", {})}
    from zarr.storage import FsspecStore

    try:
        if "remote_protocol" not in given and not path.endswith(".json"):
            given["remote_protocol"] = _protocol_in_parquet(path, given.get("target_options", {}))
        fs, _ = file_system("reference://", {"fo": path, **given})
        return FsspecStore(asynchronous(fs), path="", read_only=True)
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(". ")
        raise UserError(f"the references in {path} cannot be read: {reason}; write them again.") from error


def _protocol_in_parquet(path: str, options: Options) -> str:
    """Where the chunks lie; fsspec's own guess fails where the first reference holds a value and no address."""
    import pandas as pd

    fs, root = file_system(path, options)
    for name in fs.find(root):
        if name.endswith((".parq", ".parquet")):
            with fs.open(name) as file:
                found = pd.read_parquet(file, columns=["path"])["path"].dropna()
            if len(found):
                return str(found.iloc[0]).partition("://")[0] if "://" in str(found.iloc[0]) else "file"
    return "file"
