"""Dataset cards: what a dataset is, where it comes from, what may be done with it, and how it is split.

Arrives: the name of a shipped card, or the path of a `dataset.yaml`. Leaves: a :class:`Card`, checked. We decided
against code in cards: a simulated dataset names a function of `sciJEPA.synthetic`, and nothing else can be called.
"""

import itertools
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sciJEPA.errors import UserError
from sciJEPA.resources import datasets_folder

SHA256 = r"^[0-9a-f]{64}$"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class RemoteFile(_Part):
    """A file to download, or several of one pattern: braces in `url` and `path` are filled from `each`."""

    url: str
    path: str | None = None
    """Where it goes in the folder of the download; the last part of the URL if not given."""
    sha256: str | None = Field(default=None, pattern=SHA256)
    each: dict[str, tuple[int | str, ...]] = {}

    @model_validator(mode="after")
    def _one_digest_for_one_file(self) -> "RemoteFile":
        if self.each and self.sha256:
            raise ValueError("one sha256 cannot belong to the several files of `each`")
        return self

    def expand(self) -> list["RemoteFile"]:
        """One entry a file, in the order of `each`, with its path.

        Examples
        --------
        >>> files = RemoteFile(url="https://example.org/slp.{year}.nc", each={"year": (2001, 2002)}).expand()
        >>> [file.path for file in files]
        ['slp.2001.nc', 'slp.2002.nc']
        """
        path = self.path or self.url.rstrip("/").rpartition("/")[2]
        found = []
        for values in itertools.product(*self.each.values()):
            filled = dict(zip(self.each, values, strict=True))
            file = RemoteFile(url=self.url.format(**filled), path=path.format(**filled), sha256=self.sha256)
            found.append(file)
        return found


class Source(_Part):
    """Where a dataset comes from, for people (`from`, `url`) and for `prepare` (one of the last three)."""

    kind: Literal["reanalysis", "simulated", "measured"]
    from_: str = Field(alias="from")
    url: str | None = None
    redistributable: bool
    simulated: str | None = None
    zarr: str | None = None
    """Address of a Zarr store that is read where it lies."""
    files: tuple[RemoteFile, ...] = ()
    """Files to download."""
    function: str | None = None
    """Name of a function of `sciJEPA.synthetic` that returns the dataset."""
    arguments: dict[str, Any] = {}
    """What the function is called with."""

    @model_validator(mode="after")
    def _one_way(self) -> "Source":
        ways = [name for name in ("zarr", "files", "function") if getattr(self, name)]
        if len(ways) != 1:
            raise ValueError(f"a source needs one of zarr, files and function, and has {', '.join(ways) or 'none'}")
        return self


class CardVariable(_Part):
    """A variable as the source names it."""

    units: str
    long_name: str | None = None
    standard_name: str | None = None


class CardSplits(_Part):
    """Chronological splits: by shares, by rows, or by the first dates of validation and test.

    With the method `source`, an archive of trajectories says itself which of them belongs to which split.
    """

    method: Literal["chronological", "source"]
    train: float | None = None
    validation: float | None = None
    test: float | None = None
    rows: dict[Literal["train", "validation", "test"], tuple[int, int]] | None = None
    validation_start: str | None = None
    test_start: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "CardSplits":
        shares = (self.train, self.validation, self.test)
        ways = [None not in shares, self.rows is not None, bool(self.validation_start and self.test_start)]
        if sum(ways) != (self.method == "chronological"):
            raise ValueError("chronological splits are three shares, or rows, or validation_start with test_start")
        if ways[0] and abs(sum(share or 0 for share in shares) - 1) > 1e-6:
            raise ValueError(f"the shares of the splits sum to {sum(share or 0 for share in shares):g}, not to 1")
        return self


class Work(_Part):
    """What to cite."""

    authors: str
    year: int
    title: str
    in_: str | None = Field(default=None, alias="in")
    doi: str


class Card(_Part):
    """A dataset card as it stands in `dataset.yaml`."""

    name: str
    title: str
    domain: Literal["climate", "simulation", "sensors"]
    source: Source
    licence: str
    variables: dict[str, CardVariable]
    """Those that `prepare` takes, under the names of the source."""
    dims: dict[str, int | None]
    coordinates: dict[str, tuple[Any, ...]] = {}
    """First and last value of coordinates, for people."""
    select: dict[str, tuple[float, float]] = {}
    """Part of the source to take: coordinate -> lowest and highest value."""
    cadence: str
    splits: CardSplits
    sha256: str | None = Field(pattern=SHA256)
    sha256_note: str | None = None
    """Why there is no checksum."""
    citation: tuple[Work, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _digest_or_reason(self) -> "Card":
        if self.sha256 is None and not self.sha256_note:
            raise ValueError("without a sha256, sha256_note has to say why")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain values as in the YAML file, without what is not given."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def list_cards() -> list[str]:
    """Names of the shipped cards."""
    return sorted(path.parent.name for path in datasets_folder().glob("*/dataset.yaml"))


def find_card(dataset: str | os.PathLike) -> Path | None:
    """The file of a shipped card, or of the user's own; None where `dataset` is neither."""
    text = os.fspath(dataset)
    if text in list_cards():
        return datasets_folder() / text / "dataset.yaml"
    if text.endswith((".yaml", ".yml")):
        return Path(text).expanduser()
    return None


def load_card(dataset: str | os.PathLike) -> Card:
    """Read and check a card.

    Examples
    --------
    >>> load_card("qg-channel").licence
    'Apache-2.0'
    """
    path = find_card(dataset)
    if path is None:
        raise unknown_dataset(dataset)
    try:
        return Card.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the path of a dataset.yaml.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())[:200]}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the card"
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path} is no dataset card: {where}: {reason}; compare it with a shipped one.") from error


def unknown_dataset(dataset: str | os.PathLike) -> UserError:
    """What to say of something that is neither a card nor there."""
    names = list_cards()
    close = get_close_matches(os.fspath(dataset), names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return UserError(
        f"'{os.fspath(dataset)}' is no dataset card and no archive; {hint}the cards are {', '.join(names)}, and the "
        "path of a dataset.yaml or of an archive does as well."
    )
