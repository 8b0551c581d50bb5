"""Dataset cards: the shipped ones say all that is needed, and others are refused in one sentence."""

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml

from sciJEPA.cards import RemoteFile, find_card, list_cards, load_card
from sciJEPA.errors import UserError
from sciJEPA.resources import datasets_folder
from sciJEPA.storage.sources import select, simulate


def test_a_card_is_found_by_its_name() -> None:
    assert load_card("ett").licence == "CC-BY-ND-4.0"


@pytest.mark.parametrize("name", list_cards())
def test_a_shipped_card_says_where_from_under_which_licence_and_what_to_cite(name: str) -> None:
    card = load_card(name)
    text = (datasets_folder() / name / "card.md").read_text(encoding="utf-8")
    assert card.name == name
    assert card.sha256 or card.sha256_note
    assert "\n| licence | " in text
    for work in card.citation:
        assert work.doi in text or work.doi == "none"
    assert f"scijepa prepare {name} " in text
    addresses = [file.url for pattern in card.source.files for file in pattern.expand()]
    addresses += [card.source.zarr] if card.source.zarr else []
    assert addresses or card.source.function
    assert all(re.fullmatch(r"https://[^ {}]+", address) for address in addresses)
    assert len(set(addresses)) == len(addresses)
    assert set(card.select) <= set(card.dims)


@pytest.mark.parametrize("name", [name for name in list_cards() if load_card(name).source.function])
def test_a_simulated_card_has_the_dims_and_variables_of_what_is_simulated(name: str, tmp_path: Path) -> None:
    content = yaml.safe_load((datasets_folder() / name / "dataset.yaml").read_text())
    content["source"]["arguments"]["days"] = 5
    content["dims"]["time"] = 5
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(content))
    card = load_card(tmp_path / "card.yaml")
    ds = simulate(card)
    assert dict(ds.sizes) == card.dims
    assert {str(name): ds[name].attrs["units"] for name in ds} == {n: v.units for n, v in card.variables.items()}


def test_files_of_a_pattern() -> None:
    each = {"split": ("a", "b"), "k": (1,)}
    pattern = RemoteFile(url="https://a.org/{split}/{k}.h5", path="{split}/{k}.h5", each=each)
    assert [(file.url, file.path) for file in pattern.expand()] == [
        ("https://a.org/a/1.h5", "a/1.h5"),
        ("https://a.org/b/1.h5", "b/1.h5"),
    ]


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"sha256_note": None}, "sha256_note has to say why"),
        ({"sha256": "abc"}, "sha256"),
        ({"citation": []}, "citation"),
        ({"licence": None}, "licence"),
        ({"typo": 1}, "typo"),
        ({"splits": {"method": "chronological", "train": 0.7, "validation": 0.1, "test": 0.1}}, "sum to 0.9"),
        ({"splits": {"method": "chronological"}}, "three shares, or rows"),
        ({"source": {"kind": "simulated", "from": "x", "redistributable": True}}, "one of zarr, files and function"),
    ],
)
def test_what_a_card_lacks_is_said(tmp_path: Path, change: dict, phrase: str) -> None:
    content = yaml.safe_load((datasets_folder() / "qg-channel" / "dataset.yaml").read_text()) | change
    path = tmp_path / "dataset.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=phrase):
        load_card(path)


def test_what_is_no_card(tmp_path: Path) -> None:
    assert find_card("era5.zarr") is None
    with pytest.raises(UserError, match="did you mean 'era5-64x32'"):
        load_card("era5-64x3")
    with pytest.raises(UserError, match="cannot be read"):
        load_card(tmp_path / "none.yaml")
    (tmp_path / "torn.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="no YAML"):
        load_card(tmp_path / "torn.yaml")


def test_a_card_calls_nothing_but_the_simulations(tmp_path: Path) -> None:
    content = yaml.safe_load((datasets_folder() / "qg-channel" / "dataset.yaml").read_text())
    for name in ("_labelled", "write_qg_channel", "os", "nothing", "streamfunction"):
        content["source"] |= {"function": name, "arguments": {}}
        (tmp_path / "card.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(UserError, match=name):
            simulate(load_card(tmp_path / "card.yaml"))


def test_a_part_across_greenwich() -> None:
    # 0, 90, 180, 270 east; from -90 to 90 lie 270 (as -90), 0 and 90.
    ds = xr.Dataset({"z": (("lat", "lon"), np.arange(8).reshape(2, 4))}, {"lat": [50, 10], "lon": [0, 90, 180, 270]})
    part = select(ds, {"lat": (30, 70), "lon": (-90, 90)}, "here")
    assert part.lon.values.tolist() == [-90, 0, 90]
    assert part.z.values.tolist() == [[3, 0, 1]]
    with pytest.raises(UserError, match="nothing within 80 to 90"):
        select(ds, {"lat": (80, 90)}, "here")
    with pytest.raises(UserError, match="no axis 'level'"):
        select(ds, {"level": (80, 90)}, "here")
