import re
from pathlib import Path

import pytest

from sciJEPA.config import (
    DomainConfig,
    RunConfig,
    config_from_dict,
    config_text,
    config_to_dict,
    config_to_yaml,
    list_configs,
    load_config,
)
from sciJEPA.errors import UserError
from sciJEPA.resources import configs_folder
from sciJEPA.tokenizers import config_class


def written(folder: Path, text: str) -> Path:
    (folder / "run.yaml").write_text(text)
    return folder / "run.yaml"


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "")) == RunConfig()


@pytest.mark.parametrize("file", sorted(configs_folder().glob("*")), ids=lambda file: file.name)
def test_every_preset_is_a_configuration_and_says_what_it_is_for(file: Path) -> None:
    config = load_config(file.stem)
    assert config == load_config(file)
    assert list_configs()[file.stem]
    assert file.read_text().startswith("# ")
    assert config_text(file.stem) == file.read_text()
    assert config.data.archive == ""  # an archive is somebody's own


def test_yaml_round_trip_is_exact(tmp_path: Path) -> None:
    tree = {
        "seed": 7,
        "data": {"archive": "a: b#c", "variables": ["z", "t"], "split": [0.6, 0.15, 0.25]},
        "training": {"learning_rate": 1.2345678901234567e-5, "threads": 2},
    }
    config = config_from_dict(tree)
    assert load_config(written(tmp_path, config_to_yaml(config))) == config
    assert config_from_dict(config_to_dict(config)) == config
    assert config_to_yaml(load_config(written(tmp_path, config_to_yaml(config)))) == config_to_yaml(config)


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "'0.001'", "1E-3"])
def test_a_number_is_a_number_however_it_is_written(text: str, tmp_path: Path) -> None:
    # YAML 1.1 reads 1e-3, without a dot, as text
    config = load_config(written(tmp_path, f"training: {{learning_rate: {text}}}"))
    assert config.training.learning_rate == 0.001
    assert load_config(written(tmp_path, ""), {"training.learning_rate": text}).training.learning_rate == 0.001


@pytest.mark.parametrize("text", ["z, t", "z,t", "[z, t]", "['z', 't']"])
def test_variables_need_no_brackets(text: str, tmp_path: Path) -> None:
    assert load_config(written(tmp_path, ""), {"data.variables": text}).data.variables == ("z", "t")


def test_overrides_beat_the_file_and_leave_the_rest(tmp_path: Path) -> None:
    file = written(tmp_path, "training: {steps: 5, batch_size: 4}\ndata: {archive: a.zarr}")
    overrides = {"training.steps": "7", "data.variables": "[z, t]", "seed": 3, "data.validation_start": "null"}
    config = load_config(file, overrides)
    assert (config.training.steps, config.training.batch_size, config.seed) == (7, 4, 3)
    assert config.data.variables == ("z", "t")
    assert config.data.archive == "a.zarr"


def test_a_section_without_keys_takes_defaults_and_overrides(tmp_path: Path) -> None:
    file = written(tmp_path, "masking:\n# forecast: 1.0\n")
    assert load_config(file).masking == RunConfig().masking
    assert load_config(file, {"masking.blocks": "0.5"}).masking.blocks == 0.5


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("training.step", "training.steps"),
        ("traning.steps", "training"),
        ("steps", "training.steps"),
        ("data.archives", "data.archive"),
        ("sed", "seed"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, meant: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no key '.*did you mean '{meant}'"):
        load_config(written(tmp_path, ""), {key: "1"})


def test_an_unknown_key_without_a_near_one_lists_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"no key .masking\.xqzwvkjyu.; the keys here are forecast, blocks"):
        config_from_dict({"masking": {"xqzwvkjyu": 1}})


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("training.steps", "many", "int"),
        ("training.steps", "1.5", "int"),
        ("training.steps", "true", "int"),
        ("training.steps", "null", "int"),
        ("training.learning_rate", "fast", "float"),
        ("training.learning_rate", "yes", "float"),
        ("training.threads", "false", "int"),
        ("data.archive", "2020", "str"),
        ("data.variables", "3", "tuple"),
        ("data.split", "[0.5, 0.5]", "tuple"),
        ("tokenizer.pad", "3", "bool"),
    ],
)
def test_a_wrong_type_names_the_key_the_type_and_the_value(key: str, value: str, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"run\.yaml: {key} must be .*{wanted}.*, got "):
        load_config(written(tmp_path, ""), {key: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"steps": 0}},
        {"training": {"learning_rate": -1}},
        {"training": {"learning_rate": float("nan")}},
        {"training": {"weight_decay": -0.1}},
        {"training": {"threads": 0}},
        {"training": {"warmup": 1.0}},
        {"training": {"precision": "float16"}},
        {"encoder": {"heads": 0}},
        {"predictor": {"width": 0}},
        {"data": {"context": 9}},
        {"data": {"split": [0.5, 0.5, 0.5]}},
        {"data": {"test_start": "2001-01-01"}},
        {"masking": {"forecast": 0, "blocks": 0}},
        {"encoder": {"size": "huge"}},
        {"seed": -1},
    ],
    ids=str,
)
def test_impossible_values_are_refused_before_anything_is_read(changes: dict) -> None:
    with pytest.raises(UserError):
        config_from_dict(changes)


@pytest.mark.parametrize("text", ["- a\n- b", "just words", "a: [1", "training: 5", "data: [1]"])
def test_what_is_no_configuration_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.yaml"):
        load_config(written(tmp_path, text))


def test_a_preset_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'slp-north-atlantic'"):
        load_config("slp-north-atlantik")
    with pytest.raises(UserError, match="did you mean 'slp-north-atlantic'"):
        config_text("slp-north-atlantik")


def test_an_override_of_a_value_as_if_it_were_a_section_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'seed\.x'.*'seed' holds a value"):
        load_config(written(tmp_path, "seed: 1"), {"seed.x": "1"})


# --- several domains


def test_a_run_of_one_archive_has_one_domain_named_after_its_kind() -> None:
    config = config_from_dict({"data": {"archive": "a.zarr"}, "masking": {"blocks": 1}})
    assert list(config.parts) == ["grid"]
    assert config.parts["grid"] == DomainConfig(data=config.data, tokenizer=config.tokenizer, masking=config.masking)


def test_domains_survive_yaml(tmp_path: Path) -> None:
    tree = {
        "domains": {
            "a": {"data": {"archive": "a.zarr", "variables": ["z"]}, "weight": 0.5, "batch_size": 3},
            "b": {"data": {"archive": "b.zarr"}, "tokenizer": {"kind": "sensors"}},
            "c": None,
        }
    }
    config = config_from_dict(tree)
    assert list(config.parts) == ["a", "b", "c"]
    assert config.parts["c"] == DomainConfig()
    assert type(config.parts["b"].tokenizer) is config_class("sensors")
    assert load_config(written(tmp_path, config_to_yaml(config))) == config
    assert config_from_dict(config_to_dict(config)) == config


def test_a_key_of_a_domain_may_be_overridden(tmp_path: Path) -> None:
    file = written(tmp_path, "domains: {a: {weight: 2}, b: }")
    config = load_config(file, {"domains.a.data.archive": "a.zarr", "domains.b.masking.blocks": "1"})
    assert (config.parts["a"].data.archive, config.parts["a"].weight) == ("a.zarr", 2)
    assert config.parts["b"].masking.blocks == 1


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"data": {"archive": "x.zarr"}, "domains": {"a": {}}}, "data.archive and domains are both given"),
        ({"domains": {"north-atlantic": {}}}, "'north-atlantic' cannot name a domain; use letters, digits and _"),
        ({"domains": {"2020": {}}}, "'2020' cannot name a domain"),
        ({"domains": {"": {}}}, "'' cannot name a domain"),
        ({"domains": {"a": {"weight": 0}}}, "weight of a domain must be above 0, got 0"),
        ({"domains": {"a": {"weight": -1.5}}}, "weight of a domain must be above 0, got -1.5"),
        ({"domains": {"a": {"weight": float("nan")}}}, "weight of a domain must be above 0, got nan"),
        ({"domains": {"a": {"batch_size": 0}}}, "batch_size of a domain must be at least 1, got 0"),
        ({"domains": {"a": {"weights": 1}}}, "no key 'domains.a.weights'; did you mean 'domains.a.weight'"),
        ({"domains": {"a": 3}}, "'domains.a' is a section with keys of its own, got 3"),
        ({"domains": 3}, "domains is a section with a name for every archive, got 3"),
        ({"tokenizer": {"kind": "mesh"}}, "no tokenizer.kind 'mesh'; the kinds are grid, simulation, sensors"),
        ({"domains": {"a": {"tokenizer": {"kind": "mesh"}}}}, "no tokenizer.kind 'mesh'"),
        ({"tokenizer": 3}, "'tokenizer' is a section with keys of its own, got 3"),
    ],
    ids=str,
)
def test_impossible_domains_are_refused(tree: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        config_from_dict(tree)


@pytest.mark.parametrize("name", ["keys", "values", "training", "half", "latent"])
def test_names_that_the_layers_need_themselves_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' cannot name a domain, .*choose another"):
        config_from_dict({"domains": {name: {}}})
