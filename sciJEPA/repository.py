"""Models in repositories of the Hugging Face hub: an address -> a model folder; a model -> a commit.

Arrives: an address, `hf://org/name` or `hf://org/name@revision`. Leaves: a folder with the files of a model and no
other; or, where a model was pushed, the address of the commit, which never changes. We decided against taking what else
a repository holds: one with a file that is not on the list, such as a pickle or a module, is refused before anything is
fetched. We decided against calling a commit that is here already: a pinned model loads without a network.
"""

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from sciJEPA.config import config_from_dict, config_to_dict
from sciJEPA.errors import UserError
from sciJEPA.model_files import CARD, FILES

if TYPE_CHECKING:
    from sciJEPA.hub import Model

BESIDE = (".gitattributes",)
"""What the hub itself puts into every repository; it is left there."""
ADDRESS = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@\s]+))?/?")
COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch(address: str) -> Path:
    """The folder of a model from the hub, in the hub's cache on this machine.

    Parameters
    ----------
    address
        `hf://org/name@revision`; the revision is a commit, a tag or a branch. Without it, the newest commit is taken.

    Raises
    ------
    UserError
        If the address cannot be read, or the repository holds other files than those of a model.
    """
    name, revision = parse(address)
    hub = _library()
    if revision and COMMIT.fullmatch(revision):
        kept = _kept(hub, name, revision)
        if kept is not None:
            return kept
    with _in_words(f"cannot load {address}"):
        found = hub.HfApi().model_info(name, revision=revision)
    _check_files(address, {file.rfilename for file in found.siblings or ()})
    with _in_words(f"cannot load {address}"):
        return Path(hub.snapshot_download(name, revision=found.sha, allow_patterns=list(FILES)))


def push(model: "Model", address: str, *, private: bool = True) -> str:
    """Write a model as a commit of a repository, which is made if it is not there; see `Model.push`."""
    name, revision = parse(address)
    if revision is not None:
        raise UserError(f"cannot push to {address}: a push is a new commit; leave '@{revision}' out.")
    hub = _library()
    api = hub.HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        folder = _public(model).save(Path(scratch) / "model")
        _head_card(folder / CARD, name)
        with _in_words(f"cannot push to {address}"):
            api.create_repo(name, private=private, exist_ok=True)
            there = api.model_info(name).siblings or ()
        _check_files(address, {file.rfilename for file in there} | set(FILES))
        with _in_words(f"cannot push to {address}"):
            commit = api.upload_folder(
                repo_id=name, folder_path=folder, allow_patterns=list(FILES), commit_message=f"Model {model.id}"
            )
    return f"hf://{name}@{commit.oid}"


def _head_card(card: Path, name: str) -> None:
    """What the hub reads at the head of a card, and the address to load the model by."""
    head = "---\nlibrary_name: sciJEPA\ntags: [self-supervised-learning, jepa]\n---\n\n"
    text = card.read_text(encoding="utf-8").replace('sciJEPA.load("this folder")', f'sciJEPA.load("hf://{name}")')
    card.write_text(head + text, encoding="utf-8")


def parse(address: str) -> tuple[str, str | None]:
    """Name of the repository, and the revision if one is given.

    Examples
    --------
    >>> parse("hf://org/name@v1")
    ('org/name', 'v1')
    """
    found = ADDRESS.fullmatch(address)
    if found is None:
        raise UserError(f"cannot read the address '{address}'; it is hf://org/name or hf://org/name@revision.")
    return found["name"], found["revision"]


def _check_files(address: str, names: set[str]) -> None:
    """Refuse a repository that holds anything else, or less."""
    foreign = sorted(names - {*FILES, *BESIDE})
    if foreign:
        some = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise UserError(
            f"{address} holds {some}, which is no part of a model, and so it is left alone; a repository of a model "
            f"has {', '.join(FILES)} and nothing else."
        )
    missing = [name for name in FILES if name not in names]
    if missing:
        raise UserError(f"{address} holds no model of sciJEPA: {', '.join(missing)} is missing; check the name.")


def _kept(hub: ModuleType, name: str, commit: str) -> Path | None:
    """The folder of a commit that was fetched before, if it is whole."""
    try:
        folder = Path(hub.snapshot_download(name, revision=commit, allow_patterns=list(FILES), local_files_only=True))
    except (OSError, ValueError):  # not here, not whole, or no name of a repository
        return None
    return folder if all((folder / file).is_file() for file in FILES) else None


def _public(model: "Model") -> "Model":
    """The model without what is private in its configuration: paths of this machine, and options of its storages."""
    tree = config_to_dict(model.config)
    for part in (tree, *tree["domains"].values()):
        data = part["data"]
        data["storage_options"] = {}
        data["archive"] = re.split(r"[/\\]", data["archive"].partition("?")[0].rstrip("/\\"))[-1]
    return dataclasses.replace(model, config=config_from_dict(tree))


def _library() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            'hf:// needs the package huggingface_hub, which is not installed; run: pip install "scijepa[hub]".'
        ) from error
    return huggingface_hub


@contextlib.contextmanager
def _in_words(what: str) -> Iterator[None]:
    """One sentence for whatever the hub's library raises; its errors and those of its HTTP client share no class."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
        reason = lines[0][:200].rstrip(". ")
        raise UserError(
            f"{what}: {type(error).__name__}: {reason}; check the address and the network, and run 'hf auth login' for "
            "a private repository."
        ) from error
