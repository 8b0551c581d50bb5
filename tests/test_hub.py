import dataclasses
import functools
import json
import operator
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from tiny import joint_config, tiny_config

from sciJEPA.archive import open_archive
from sciJEPA.config import config_to_yaml
from sciJEPA.errors import UserError
from sciJEPA.hub import Model, build_jepa, load, random_model, tokenizers_of
from sciJEPA.latents import embed
from sciJEPA.model_files import add_digests
from sciJEPA.synthetic import travelling_waves

POSITION = "encoder.domains.grid.position.weight"


@pytest.fixture
def folder(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model folder that may be damaged."""
    return Path(shutil.copytree(run_folder / "model", tmp_path / "model"))


def test_a_run_and_its_model_folder_are_the_same_model(run_folder: Path) -> None:
    assert load(run_folder).id == load(run_folder / "model").id


def test_save_and_load_are_exact(model: Model, waves: Path, tmp_path: Path) -> None:
    again = load(model.save(tmp_path / "model"))
    assert again.id == model.id
    assert (again.config, again.spec, again.only.units, again.provenance) == (
        model.config,
        model.spec,
        model.only.units,
        model.provenance,
    )
    for name in ("coefficients", "spread", "missing_share"):
        np.testing.assert_array_equal(getattr(again.normalizer, name), getattr(model.normalizer, name))
        assert getattr(again.normalizer, name).dtype == getattr(model.normalizer, name).dtype
    assert again.normalizer.trained_on == model.normalizer.trained_on
    for encoder in ("target", "online"):
        xr.testing.assert_identical(
            embed(again, waves, encoder=encoder, progress=False), embed(model, waves, encoder=encoder, progress=False)
        )


def test_saving_twice_gives_the_same_bytes(model: Model, run_folder: Path, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    for file in (run_folder / "model").iterdir():
        assert (tmp_path / "model" / file.name).read_bytes() == file.read_bytes()


def test_the_folder_holds_no_code(run_folder: Path) -> None:
    files = sorted(file.name for file in (run_folder / "model").iterdir())
    assert files == ["README.md", "config.json", "model.safetensors", "statistics.safetensors"]
    for file in (run_folder / "model").glob("*.safetensors"):
        # safetensors begin with the length of a JSON header and hold numbers after it
        content = file.read_bytes()
        assert json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def test_loading_unpickles_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, refuse)
    load(folder)


def test_nothing_is_written_over(model: Model, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists already"):
        model.save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_leftover_of_a_killed_save_is_no_obstacle(model: Model, tmp_path: Path) -> None:
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "model.safetensors").write_bytes(b"half")
    assert load(model.save(tmp_path / "model")).id == model.id
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["model.safetensors", "statistics.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "empty", "noise"])
def test_damage_is_noticed_and_the_file_named(name: str, damage: str, folder: Path) -> None:
    file = folder / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "flipped":  # one bit of the last number, or a brace
        file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    else:
        file.write_bytes(
            {"truncated": content[: len(content) // 2], "empty": b"", "noise": b"\xff\xfe\x00" * 99}[damage]
        )
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        load(folder)


@pytest.mark.parametrize(
    "key, value",
    [
        ("config", {"training": {"stepz": 1}}),
        ("config", []),
        ("domains", {}),
        ("domains", {"grid": {}}),
        ("domains", {"other": {}}),
        ("domains.grid.spec", {}),
        ("domains.grid.units", 3),
        ("domains.grid.statistics", 1),
        ("sha256", []),
        ("sha256", {}),
    ],
)
def test_a_description_that_was_edited_is_refused(key: str, value: object, folder: Path) -> None:
    description = edit(folder, key, value)
    with pytest.raises(UserError, match=r"damaged"):
        load(folder)
    # nor does it help to write no digest, as version 0.1.0 did
    if key != "sha256":
        del description["sha256"]["config.json"]
        (folder / "config.json").write_text(json.dumps(description))
        with pytest.raises(UserError):
            load(folder)


def edit(folder: Path, key: str, value: object) -> dict:
    """Change one value of the description; what it is then."""
    file = folder / "config.json"
    description = json.loads(file.read_text())
    *parents, last = key.split(".")
    part = functools.reduce(operator.getitem, parents, description)
    assert part[last] != value
    part[last] = value
    file.write_text(json.dumps(description))
    return description


@pytest.mark.parametrize(
    ("key", "value"),
    [("domains.grid.units", ["K"]), ("config.encoder.heads", 4), ("domains.grid.statistics.annual", 9)],
)
def test_an_edit_that_would_load_all_the_same_is_noticed(key: str, value: object, folder: Path) -> None:
    edit(folder, key, value)
    with pytest.raises(UserError, match=r"config\.json is damaged or was changed after saving"):
        load(folder)


def test_models_of_version_0_1_0_load(folder: Path, model: Model) -> None:
    digests = {
        name: digest
        for name, digest in json.loads((folder / "config.json").read_text())["sha256"].items()
        if name != "config.json"
    }
    edit(folder, "sha256", digests)
    assert load(folder).id == model.id


@pytest.mark.parametrize("name", ["model.safetensors", "statistics.safetensors", "config.json", "README.md"])
def test_any_flipped_bit_is_refused_or_means_nothing(name: str, folder: Path, model: Model) -> None:
    content = (folder / name).read_bytes()
    random = np.random.default_rng(0)
    for place, bit in zip(random.integers(len(content), size=40), random.integers(8, size=40), strict=True):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        (folder / name).write_bytes(changed)
        try:
            found = load(folder)
        except UserError as error:
            assert name in str(error) and len(str(error).splitlines()) == 1
        else:  # white space between values, or the card, which nothing reads
            assert name in ("config.json", "README.md")
            assert (found.id, found.config, found.provenance) == (model.id, model.config, model.provenance)


@pytest.mark.parametrize("name", ["model.safetensors", "statistics.safetensors", "config.json"])
def test_any_truncation_is_refused(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    ends = [1, 7, 8, 9, *np.linspace(10, len(content.rstrip()) - 1, 12).astype(int)]
    for end in ends:
        (folder / name).write_bytes(content[:end])
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            load(folder)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.marker),))


def test_further_files_are_not_touched(folder: Path, model: Model, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for name in ("pytorch_model.bin", "model.pkl", "config.pkl"):
        (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    for name in ("modeling.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(f"import os; os.mkdir({str(marker)!r})")
    assert load(folder).id == model.id
    assert not marker.exists()
    pickle.loads((folder / "model.pkl").read_bytes())
    assert marker.exists()  # the bomb would have worked


def test_a_pickle_with_the_right_digest_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    description = json.loads((folder / "config.json").read_text())
    del description["sha256"]
    (folder / "config.json").write_text(json.dumps(add_digests(folder, description)))
    with pytest.raises(UserError, match="incomplete or damaged"):
        load(folder)
    assert not (tmp_path / "marker").exists()


def test_weights_of_another_architecture_are_refused(folder: Path) -> None:
    description = edit(folder, "config.encoder.width", 32)
    (folder / "config.json").write_text(json.dumps(add_digests(folder, description)))
    with pytest.raises(UserError, match="incomplete or damaged"):
        load(folder)


def test_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run or model folder"):
        load(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no model"):
        load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="unfinished: complete it with --resume"):
        load(tmp_path)


def other(**changes: object) -> xr.Dataset:
    return travelling_waves(40, **changes)  # type: ignore[arg-type]


def in_feet() -> xr.Dataset:
    ds = other()
    ds["z"].attrs["units"] = "ft"
    return ds


MISFITS = [
    ("units", in_feet, "ft", "m"),
    ("latitude", lambda: other(nlat=10), "10 from 31.5", "8 from 31.875"),
    ("latitude", lambda: other().isel(latitude=slice(None, None, -1)), "8 from 58.125", "8 from 31.875"),
    ("longitude", lambda: other().isel(longitude=slice(4, None)), "12 from 90", "16 from 0"),
    ("cadence", lambda: other(cadence="6h"), "6 hours", "24 hours"),
    ("channels", lambda: other(levels=(500, 850)), "z@500, z@850", "trained on z;"),
]


@pytest.mark.parametrize(("what", "archive", "found", "needed"), MISFITS)
def test_an_archive_that_does_not_fit_is_refused_with_both_sides(
    what: str, archive: object, found: str, needed: str, model: Model
) -> None:
    with pytest.raises(UserError) as raised:
        model.open(archive())  # type: ignore[operator]
    message = str(raised.value)
    assert f"its {what} {'are' if what in ('units', 'channels') else 'is'} " in message
    assert found in message
    assert needed in message
    assert len(message.splitlines()) == 1


def test_an_archive_without_the_variable_is_refused(model: Model) -> None:
    with pytest.raises(UserError, match="no variable 'z'"):
        model.open(other().rename(z="t"))


def test_further_variables_do_not_disturb(model: Model) -> None:
    ds = other()
    archive, domain = model.open(ds.assign(a=ds.z * 2))
    assert [channel.name for channel in archive.channels] == ["z"]
    assert domain.spec == model.spec


def test_random_model_has_the_weights_from_before_training(model: Model, waves: Path) -> None:
    tokenizers = tokenizers_of({"grid": open_archive(waves)}, model.config)
    before = build_jepa(model.config, tokenizers).state_dict()
    after = random_model(model).jepa.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert random_model(model).id == random_model(model).id != model.id
    assert not torch.equal(after[POSITION], model.jepa.state_dict()[POSITION])


def test_weights_follow_from_the_seed_alone(waves: Path) -> None:
    tokenizers = tokenizers_of({"grid": open_archive(waves)}, tiny_config(waves))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, three = (build_jepa(tiny_config(waves, seed=seed), tokenizers).state_dict() for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one[POSITION], two[POSITION])
    assert not torch.equal(one[POSITION], three[POSITION])


def test_the_target_of_an_untrained_model_is_its_encoder(model: Model) -> None:
    jepa = random_model(model).jepa
    for own, average in zip(jepa.encoder.parameters(), jepa.target.module.parameters(), strict=True):
        assert torch.equal(own, average)


def test_id_changes_with_the_weights_alone(model: Model) -> None:
    renamed = dataclasses.replace(model, provenance={"name": "other"})
    assert renamed.id == model.id
    assert len(model.id) == 12


def test_repr_is_one_line(model: Model) -> None:
    assert repr(model) == (
        f"<Model {model.id}: grid (1 channels, 16 tokens), latents of width 32, "
        f"{sum(p.numel() for p in model.jepa.encoder.parameters()):,} encoder parameters>"
    )


def test_the_configuration_of_the_run_travels_with_the_model(model: Model, run_folder: Path) -> None:
    assert config_to_yaml(model.config) == (run_folder / "config.yaml").read_text()


# --- several domains, and part of the channels


def part_b(days: int = 20, **changes: object) -> xr.Dataset:
    """An archive of the domain b of `joint`."""
    return travelling_waves(days, nlat=6, nlon=12, **({"variables": ("q", "t")} | changes))  # type: ignore[arg-type]


def test_a_joint_model_knows_to_which_domain_an_archive_belongs(joint: Model, two_archives: dict[str, Path]) -> None:
    assert list(joint.domains) == ["a", "b"]
    for name, path in two_archives.items():
        archive, domain = joint.open(path)
        assert domain.name == name
        assert domain.spec == joint.domains[name].spec
        assert archive.shape == {"a": (8, 16), "b": (6, 12)}[name]
        assert joint.open(path, domain=name)[1].spec == domain.spec


def test_an_archive_of_no_domain_is_refused_with_a_reason_for_each(joint: Model) -> None:
    with pytest.raises(UserError, match=r"fits no domain of the model\. a: .*no variable 'z'.* b: .*no variable 'q'"):
        joint.open(travelling_waves(20, variables=("w",)))
    with pytest.raises(UserError, match=r"fits no domain .*a: .*its latitude is 6 .* b: .*no variable 'q'"):
        joint.open(travelling_waves(20, nlat=6, nlon=12))


def test_an_archive_of_two_domains_must_be_named(joint: Model) -> None:
    twin = dataclasses.replace(joint.domains["a"], name="twin")
    model = dataclasses.replace(joint, domains={**joint.domains, "twin": twin})
    with pytest.raises(UserError, match=r"fits several domains .* domain= \(--domain\): a, twin\."):
        model.open(other())
    assert model.open(other(), domain="twin")[1].name == "twin"


def test_a_domain_that_does_not_exist_or_does_not_fit_is_refused(joint: Model, model: Model) -> None:
    with pytest.raises(UserError, match="no domain 'c'; its domains are a, b"):
        joint.open(other(), domain="c")
    with pytest.raises(UserError, match="no domain 'a'; its domains are grid"):
        model.open(other(), domain="a")
    with pytest.raises(UserError, match="no variable 'q'"):
        joint.open(other(), domain="b")
    with pytest.raises(UserError, match="the model has 2 domains; name one of a, b"):
        _ = joint.spec


def test_a_joint_model_survives_the_folder(joint: Model, two_archives: dict[str, Path], tmp_path: Path) -> None:
    again = load(joint.save(tmp_path / "model"))
    assert (again.id, again.config, again.provenance) == (joint.id, joint.config, joint.provenance)
    assert joint.provenance["archive"] == "a.zarr, b.zarr"
    assert again.config.parts["b"] == joint_config(two_archives).parts["b"]
    for name, domain in joint.domains.items():
        assert (again.domains[name].spec, again.domains[name].units) == (domain.spec, domain.units)
        np.testing.assert_array_equal(again.domains[name].normalizer.spread, domain.normalizer.spread)
        assert again.domains[name].normalizer.trained_on == domain.normalizer.trained_on
    assert "a (1 channels, 16 tokens), b (2 channels, 8 tokens)" in repr(again)


def test_a_part_of_the_channels_will_do(joint: Model) -> None:
    archive, domain = joint.open(part_b(variables=("q", "t")).drop_vars("q"))
    assert [channel.name for channel in archive.channels] == ["t"]
    assert (domain.spec.channels, domain.tokenizer.channels, domain.units) == (("t",), ("t",), ("m",))
    # statistics of t, the second channel in training
    whole = joint.domains["b"].normalizer
    np.testing.assert_array_equal(domain.normalizer.spread, whole.spread[1:])
    assert domain.trained.channels == ("q", "t")


def test_a_channel_that_the_model_does_not_know_is_refused(joint: Model) -> None:
    # of the right name at a level, and so on another channel
    with pytest.raises(UserError, match=r"its channels are t@500, .*trained on q, t;"):
        joint.open(part_b(variables=("t",), levels=(500,)), domain="b")
    with pytest.raises(UserError, match="no variable 'q'"):
        joint.open(part_b(variables=("w",)), domain="b")


def test_units_of_a_part_of_the_channels_are_checked(joint: Model) -> None:
    ds = part_b().drop_vars("q")
    ds["t"].attrs["units"] = "ft"
    with pytest.raises(UserError, match=r"its units are ft, the model was trained on m;"):
        joint.open(ds, domain="b")
