"""Models in repositories: the real client against a hub on this machine."""

import dataclasses
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import xarray as xr
from hub_server import Hub, serve

import sciJEPA
from sciJEPA.cli import main
from sciJEPA.errors import UserError
from sciJEPA.hub import Model, load
from sciJEPA.model_files import FILES
from sciJEPA.repository import parse

NAME = "lab/waves"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, which the client takes for the real one, and an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    hub = Hub()
    with serve(hub) as endpoint:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_made_up")
        yield hub


def test_what_was_pushed_is_loaded(hub: Hub, model: Model) -> None:
    address = model.push(f"hf://{NAME}")
    again = load(address)
    assert (again.id, again.spec, again.provenance) == (model.id, model.spec, model.provenance)
    assert again.config.encoder == model.config.encoder


def test_a_repository_holds_the_four_files_and_nothing_else(hub: Hub, model: Model) -> None:
    commit = model.push(f"hf://{NAME}").partition("@")[2]
    files = hub.commits[NAME][commit]
    assert set(files) == {*FILES, ".gitattributes"}  # the last one is the hub's own
    assert hub.private[NAME]
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: sciJEPA\n")
    assert f'sciJEPA.load("hf://{NAME}")' in card


def test_a_pin_stays_when_the_repository_goes_on(hub: Hub, model: Model, joint: Model) -> None:
    pinned = model.push(f"hf://{NAME}")
    later = joint.push(f"hf://{NAME}", private=False)
    assert pinned != later
    assert load(f"hf://{NAME}").id == load(later).id == joint.id
    assert load(pinned).id == model.id
    assert hub.private[NAME]  # a push does not publish what was private


def test_a_pinned_model_needs_the_network_once(hub: Hub, model: Model) -> None:
    address = model.push(f"hf://{NAME}")
    load(address)
    hub.requests.clear()
    assert load(address).id == model.id
    assert hub.requests == []


@pytest.mark.parametrize("name", ["model.pkl", "pytorch_model.bin", "modeling.py", "data/model.safetensors"])
def test_a_file_that_is_not_on_the_list_is_refused_unfetched(name: str, hub: Hub, model: Model) -> None:
    model.push(f"hf://{NAME}")
    hub.commit(NAME, {name: b"..."})
    hub.requests.clear()
    with pytest.raises(UserError, match=rf"hf://{NAME} holds {name}, which is no part of a model"):
        load(f"hf://{NAME}")
    assert not [request for request in hub.requests if "resolve" in request]
    with pytest.raises(UserError, match="no part of a model"):
        model.push(f"hf://{NAME}")


class Bomb:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (sys.exit, ("unpickled",))


def test_a_pickle_under_the_name_of_the_weights_is_refused(hub: Hub, model: Model) -> None:
    model.push(f"hf://{NAME}")
    hub.commit(NAME, {"model.safetensors": pickle.dumps(Bomb())})
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or was changed after saving"):
        load(f"hf://{NAME}")


def test_a_repository_without_a_model_says_so(hub: Hub) -> None:
    hub.commit(NAME, {"README.md": b"# soon"})
    with pytest.raises(UserError, match=r"holds no model of sciJEPA: model\.safetensors, .* missing"):
        load(f"hf://{NAME}")


def test_what_the_hub_refuses_is_one_sentence(hub: Hub, model: Model) -> None:
    with pytest.raises(
        UserError, match=r"cannot load hf://lab/absent: RepositoryNotFoundError: .*'hf auth login'"
    ) as e:
        load("hf://lab/absent")
    assert len(str(e.value).splitlines()) == 1
    commit = model.push(f"hf://{NAME}").partition("@")[2]
    with pytest.raises(UserError, match="cannot load"):
        load(f"hf://{NAME}@{commit[::-1]}")


@pytest.mark.parametrize(
    "address", ["hf://waves", "hf://lab/waves/model", "hf://lab/waves@", "hf://lab/wa ves", "hf://"]
)
def test_an_address_that_cannot_be_read_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=r"it is hf://org/name or hf://org/name@revision"):
        sciJEPA.load(address)


def test_addresses() -> None:
    assert parse("hf://lab/waves") == parse("hf://lab/waves/") == ("lab/waves", None)
    assert parse("hf://lab/waves@refs/pr/1") == ("lab/waves", "refs/pr/1")


def test_a_push_takes_no_revision(model: Model) -> None:
    with pytest.raises(UserError, match="a push is a new commit; leave '@v1' out"):
        model.push(f"hf://{NAME}@v1")


@pytest.mark.parametrize("archive", ["/home/ada/plans/waves.zarr/", "s3://lab/waves.zarr", r"C:\\ada\\waves.zarr"])
def test_paths_and_keys_stay_at_home(archive: str, hub: Hub, model: Model) -> None:
    private = {"archive": archive, "storage_options": {"key": "AKIA", "client_kwargs": {"secret": "abc"}}}
    data = dataclasses.replace(model.config.data, **private)
    commit = dataclasses.replace(model, config=dataclasses.replace(model.config, data=data)).push(f"hf://{NAME}")
    pushed = load(commit)
    assert pushed.config.data == dataclasses.replace(data, archive="waves.zarr", storage_options={})
    assert pushed.id == model.id
    text = hub.commits[NAME][commit.partition("@")[2]]["config.json"].decode()
    assert not [word for word in ("ada", "s3:", "AKIA", "abc") if word in text]


def test_without_the_client_the_message_says_what_to_install(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install "scijepa\[hub\]"'):
        load(f"hf://{NAME}")


def test_commands_take_an_address_where_they_take_a_run(
    hub: Hub, model: Model, waves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = model.push(f"hf://{NAME}")
    assert main(["embed", address, str(waves), "--out", str(tmp_path / "latents.zarr")]) == 0
    assert xr.open_zarr(tmp_path / "latents.zarr", consolidated=False).attrs["model_id"] == model.id
    assert main(["probe", address, str(waves)]) == 2
    assert "probe needs --out DIR for a model of a hub" in capsys.readouterr().err
