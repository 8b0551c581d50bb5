"""The command line: what it prints where, its exit codes, and that a mistake is met with one sentence."""

import importlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray as xr
import yaml
from tiny import joint_config

from sciJEPA import cli
from sciJEPA.config import config_to_yaml
from sciJEPA.errors import UserError
from sciJEPA.synthetic import travelling_waves

TINY: dict[str, Any] = {
    "data": {"window": 4, "context": 2},
    "encoder": {"width": 16, "depth": 1, "heads": 2},
    "predictor": {"width": 16, "depth": 1, "heads": 2},
    "training": {"steps": 3, "batch_size": 4, "log_every": 1, "checkpoint_every": 1, "precision": "float32"},
}
HEAVY = ("torch", "pytorch_lightning", "matplotlib", "zarr", "dask", "sklearn")


class Done(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def scijepa(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process."""

    def run(*argv: object) -> Done:
        code = cli.main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


def process(*argv: object, **options: Any) -> Done:
    """Runs a command as a process of its own."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 300} | options
    done = subprocess.run([sys.executable, "-m", "sciJEPA.cli", *map(str, argv)], **options)
    return Done(done.returncode, done.stdout or "", done.stderr or "")


def write_archive(path: Path, ds: xr.Dataset) -> Path:
    """Ten steps a chunk, without a warning about consolidated metadata."""
    chunks = {name: (10, *ds[name].shape[1:]) for name in ds.data_vars if "time" in ds[name].dims}
    encoding = {name: {"chunks": shape} for name, shape in chunks.items()}
    ds.to_zarr(path, encoding=encoding, consolidated=False)
    return path


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small archive in order: 200 days of q and z on 8 x 16 points."""
    ds = travelling_waves(200, variables=("q", "z"))
    return write_archive(tmp_path_factory.mktemp("archive") / "waves.zarr", ds)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A configuration that trains in a moment."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="module")
def trained(waves: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    out = folder / "run"
    assert (
        cli.main(["pretrain", "--config", str(folder / "tiny.yaml"), "--archive", str(waves), "--out", str(out)]) == 0
    )
    return out


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder, and its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(folder.rglob("*"))
    }


def assert_refused(done: Done, *phrases: str) -> None:
    """Exit code 2, and one line on stderr that holds the phrases, besides the progress."""
    lines = [line.rpartition("\r")[2] for line in done.err.splitlines()]
    lines = [line for line in lines if line.strip() and "it/s]" not in line and "step/s" not in line]
    assert done.code == 2, done
    assert len(lines) == 1, done.err
    assert lines[0].startswith("scijepa: ")
    assert lines[0].endswith((".", "?"))
    for phrase in phrases:
        assert phrase in lines[0]
    assert done.out == ""
    assert "Traceback" not in done.err


# --- without doing anything


def test_without_a_verb_it_helps(scijepa: Command) -> None:
    done = scijepa()
    assert done.code == 0
    assert done.out.startswith("usage: scijepa")
    assert done.err == ""


@pytest.mark.parametrize("verb", ["inspect", "configs", "pretrain", "embed", "probe", "demo", "doctor"])
def test_every_verb_has_help(scijepa: Command, verb: str) -> None:
    assert verb in scijepa().out
    done = scijepa(verb, "--help")
    assert done.code == 0
    assert f"usage: scijepa {verb}" in done.out


def test_version(scijepa: Command) -> None:
    import sciJEPA

    assert scijepa("--version") == Done(0, f"scijepa {sciJEPA.__version__}\n", "")


@pytest.mark.parametrize("argv", [[], ["--help"], ["pretrain", "--help"], ["inspekt"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = f"import sys; from sciJEPA.cli import main; main({argv}); print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", ["sciJEPA", "sciJEPA.cli", "sciJEPA.errors"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["forecast", "prepare", "pretrain", "report"])
def test_a_module_does_not_hide_the_function_of_its_name(name: str) -> None:
    code = f"import sciJEPA, sciJEPA.{name}; from sciJEPA.{name} import {name}; print(sciJEPA.{name} is {name})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_presets_in_the_help_exist() -> None:
    from sciJEPA.config import list_configs

    words = cli.EPILOG.split()
    named = {words[i + 1] for i, word in enumerate(words) if word == "--config"}
    assert named <= set(list_configs())


# --- mistakes in the arguments


@pytest.mark.parametrize(
    ("argv", "phrases"),
    [
        (["inspekt", "a.zarr"], ["'inspekt'", "'inspect'"]),
        (["configs", "shw"], ["'shw'", "'show'"]),
        (["configs", "show"], ["NAME"]),
        (["inspect"], ["ARCHIVE", "scijepa inspect --help"]),
        (["inspect", "a.zarr", "b.zarr"], ["'b.zarr'"]),
        (["inspect", "a.zarr", "--windows", "3"], ["--windows", "'--window'"]),
        (["inspect", "a.zarr", "--window", "0"], ["--window", "at least 1", "'0'"]),
        (["inspect", "a.zarr", "--window", "1.5"], ["--window", "whole number", "'1.5'"]),
        (["embed", "run", "a.zarr"], ["--out"]),
        (["embed", "run", "a.zarr", "--out", "x", "--encoder", "both"], ["--encoder", "'both'", "target", "online"]),
        (["probe", "run", "a.zarr", "--leads", "1D"], ["--leads", "'--lead'"]),
        (["probe", "run", "a.zarr", "--lead", ","], ["--lead", "needs a name"]),
        (["pretrain"], ["--config", "scijepa configs"]),
        (["pretrain", "--resume", "--out", "runs/none"], ["runs/none/config.yaml", "--resume"]),
        (["pretrain", "--config", "x", "--stpes", "3"], ["--stpes", "'--training.steps'"]),
        (["pretrain", "--config", "x", "--training.steps"], ["--training.steps", "needs a value"]),
        (["pretrain", "--config", "x", "--training.steps", "--dry-run"], ["--training.steps", "needs a value"]),
        (["--verison"], ["--verison", "'--version'"]),
        (["forecast", "run", "a.zarr"], ["--out", "scijepa forecast --help"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistaken_arguments(
    scijepa: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], phrases: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(scijepa(*argv), *phrases)
    assert contents(tmp_path) == {}


# --- inspect and configs


def test_inspect_prints_the_report(scijepa: Command, waves: Path) -> None:
    done = scijepa("inspect", waves)
    assert done.code == 0
    assert "latitude" in done.out
    assert "verdict: " in done.out


def test_inspect_json_is_what_the_function_returns(waves: Path) -> None:
    done = process("inspect", waves, "--json", "--variables", "q", "--window", 4)
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    assert list(report["variables"]) == ["q"]
    assert report["window"] == 4
    assert report["axes"]["time"]["size"] == 200


def test_inspect_describes_what_pretrain_refuses(scijepa: Command, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "mixed.zarr", travelling_waves(20).isel(time=[*range(10, 20), *range(10)]))
    done = scijepa("inspect", path)
    assert done.code == 0
    assert 'ds.sortby("time")' in done.out


def test_configs_lists_and_shows_the_presets(scijepa: Command) -> None:
    from sciJEPA.config import config_text, list_configs

    listed = scijepa("configs")
    assert listed == scijepa("configs", "list")
    assert [line.split()[0] for line in listed.out.splitlines()] == list(list_configs())
    name = next(iter(list_configs()))
    assert scijepa("configs", "show", name).out.rstrip() == config_text(name).rstrip()


def test_configs_copies_a_preset_and_writes_over_nothing(scijepa: Command, tmp_path: Path) -> None:
    from sciJEPA.config import config_text, list_configs

    name = next(iter(list_configs()))
    copy = tmp_path / f"{name}.yaml"
    assert scijepa("configs", "copy", name, tmp_path) == Done(0, f"{copy}\n", "")
    assert copy.read_text() == config_text(name)
    copy.write_text("mine")
    assert_refused(scijepa("configs", "copy", name, tmp_path), str(copy), "exists already")
    assert copy.read_text() == "mine"
    assert_refused(scijepa("configs", "copy", name, tmp_path / "absent"), str(tmp_path / "absent"))
    assert_refused(scijepa("configs", "show", name[:-1]), f"'{name[:-1]}'", f"'{name}'")


# --- pretrain


@pytest.mark.parametrize("override", [["--training.steps", "7"], ["--training.steps=7"]])
def test_dotted_overrides(scijepa: Command, tiny: Path, override: list[str]) -> None:
    done = scijepa("pretrain", "--config", tiny, *override, "--data.variables", "[z]", "--seed", 3, "--print-config")
    assert (done.code, done.err) == (0, "")
    config = yaml.safe_load(done.out)
    assert config["training"]["steps"] == 7
    assert config["data"]["variables"] == ["z"]
    assert config["seed"] == 3
    assert config["encoder"]["width"] == 16


def test_negative_and_scientific_values_are_values(scijepa: Command, tiny: Path) -> None:
    done = scijepa("pretrain", "--config", tiny, "--training.learning_rate", "1e-4", "--print-config")
    assert yaml.safe_load(done.out)["training"]["learning_rate"] == pytest.approx(1e-4)
    assert_refused(scijepa("pretrain", "--config", tiny, "--training.clip", "-1e-3"), "training.clip", "-0.001")


def test_an_archive_is_a_path_even_when_it_looks_like_a_number(scijepa: Command, tiny: Path) -> None:
    for path in ("2020", "a: b", "null", "données/[1].zarr"):
        done = scijepa("pretrain", "--config", tiny, "--archive", path, "--print-config")
        assert yaml.safe_load(done.out)["data"]["archive"] == path


def test_dry_run_writes_nothing(scijepa: Command, waves: Path, tiny: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    argv = ("pretrain", "--config", tiny, "--archive", waves, "--out", tmp_path / "run", "--dry-run")
    text, done = scijepa(*argv), scijepa(*argv, "--json")
    assert (text.code, done.code, done.err) == (0, 0, "")
    described = json.loads(done.out)
    assert described["steps"] == 3
    assert described["channels"] == ["q", "z"]
    assert described["windows"]["train"] == 137  # 70 % of 200 steps are 140, and a window takes 4
    assert "q, z" in text.out
    assert "roughly" in text.out and described["time"]["seconds"] > 0
    assert contents(tmp_path) == before


def test_dry_run_of_a_joint_run_shows_every_domain(
    scijepa: Command, two_archives: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "joint.yaml"
    path.write_text(config_to_yaml(joint_config(two_archives)))
    argv = ("pretrain", "--config", path, "--out", tmp_path / "run", "--dry-run")
    text, done = scijepa(*argv), scijepa(*argv, "--json")
    assert (text.code, done.code, done.err) == (0, 0, "")
    described = json.loads(done.out)
    assert list(described["domains"]) == ["a", "b"]
    assert [part["channels"] for part in described["domains"].values()] == [["z"], ["q", "t"]]
    assert described["steps"] == 6
    for archive in two_archives.values():
        assert str(archive) in text.out
    assert "q, t" in text.out
    assert not (tmp_path / "run").exists()
    done = scijepa(*argv, "--archive", two_archives["a"])
    assert_refused(done, "data.archive and domains are both given")


def test_a_domain_is_named_on_the_command_line(
    scijepa: Command, joint_run: Path, two_archives: dict[str, Path], tmp_path: Path
) -> None:
    archive, out = two_archives["a"], tmp_path / "latents.zarr"
    done = scijepa("embed", joint_run, archive, "--domain", "a", "--out", out)
    assert done.code == 0, done.err
    assert xr.open_zarr(out, consolidated=False).attrs["domain"] == "a"
    for verb in ("embed", "probe", "forecast"):
        words = (verb, joint_run, archive, "--out", tmp_path / "none", "--domain")
        assert_refused(scijepa(*words, "c"), "no domain 'c'", "its domains are a, b")
        assert_refused(scijepa(*words, "b"), "has no variable 'q'")  # what b has, and a has not


def test_pretrain_embed_and_probe(
    scijepa: Command, waves: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of the README; stdout holds the result alone, also of a process."""
    monkeypatch.chdir(tmp_path)
    done = process("pretrain", "--config", tiny, "--archive", waves, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"run": "runs/tiny", "model": "runs/tiny/model", "length": {}}
    assert "Traceback" not in done.err

    embed = ("embed", "runs/tiny", waves, "--out", "latents.zarr", "--encoder", "online")
    done = scijepa(*embed)
    assert done.code == 0, done.err
    # 200 steps give 199 issue windows of 2 steps; 8 x 16 points in patches of 4 x 4 give 8 tokens a step
    assert done.out == "latents.zarr: time 199, token 16, latent 32\n"
    assert xr.open_zarr("latents.zarr", consolidated=False).sizes["time"] == 199

    probe = ("probe", "runs/tiny", waves, "--lead", "1D", "--controls", "persistence,climatology")
    done = process(*probe, "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out, parse_constant=pytest.fail)["scores"]
    assert {"persistence", "climatology", "jepa_target"} <= {row["method"] for row in rows}
    assert {row["lead"] for row in rows} == {"1D"}
    assert Path("runs/tiny/probe/scores.csv").is_file()
    table = scijepa(*probe, "--out", "again")
    assert table.code == 0, table.err
    assert "z [m]" in table.out
    assert "persistence" in table.out

    before = contents(tmp_path)
    assert_refused(scijepa(*probe), "runs/tiny/probe", "exists already")
    assert_refused(scijepa(*embed), "latents.zarr", "exists already")
    assert contents(tmp_path) == before


def test_demo_prints_the_table_and_goes_on_where_it_was(
    scijepa: Command, waves: Path, tiny: Path, tmp_path: Path
) -> None:
    argv = ("demo", "--out", tmp_path / "demo", "--archive", waves, "--config", tiny)
    done = scijepa(*argv)
    assert done.code == 0, done.err
    assert "z [m]" in done.out
    assert str(tmp_path / "demo") in done.out
    assert "Traceback" not in done.err
    before = contents(tmp_path / "demo" / "model")
    assert scijepa(*argv).out == done.out
    assert contents(tmp_path / "demo" / "model") == before


def test_resume_needs_the_folder_alone(scijepa: Command, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("model"))
    done = scijepa("pretrain", "--resume", "--out", run)
    assert done.code == 0, done.err
    assert contents(run / "model").keys() == contents(trained / "model").keys()


# --- bad input: one sentence, exit code 2, nothing written over


def damaged_chunk(path: Path) -> Path:
    write_archive(path, travelling_waves(60))
    (path / "z" / "c" / "1" / "0" / "0").write_bytes(b"no compressed numbers")
    return path


def changed(function: Callable[[xr.Dataset], xr.Dataset]) -> Callable[[Path], Path]:
    return lambda path: write_archive(path, function(travelling_waves(60, variables=("z", "q"))))


BAD_ARCHIVES: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "missing path": (lambda path: path, ["does not exist"]),
    "no time axis": (changed(lambda ds: ds.isel(time=0, drop=True)), ["no time axis", "latitude (8)"]),
    "unsorted times": (
        changed(lambda ds: ds.isel(time=[*range(30, 60), *range(30)])),
        ["not sorted", "step 29 (2001-03-01)", "step 30 (2001-01-01)"],
    ),
    "duplicate times": (
        changed(lambda ds: ds.isel(time=[*range(30), *range(29, 59)])),
        ["1 of 60 times", "duplicates", "2001-01-30"],
    ),
    "all NaN": (changed(lambda ds: ds.assign(q=ds.q * np.nan)), ["q of", "NaN", "42 training steps"]),
    "constant": (changed(lambda ds: ds.assign(q=ds.q * 0 + 5)), ["q of", "does not vary", "42 training steps"]),
    "damaged chunk": (damaged_chunk, ["z of", "damaged", "2001-0"]),
}


@pytest.mark.parametrize("what", BAD_ARCHIVES)
def test_bad_archive(scijepa: Command, tiny: Path, tmp_path: Path, what: str) -> None:
    make, phrases = BAD_ARCHIVES[what]
    archive = make(tmp_path / "bad.zarr")
    before = contents(tmp_path)
    done = scijepa("pretrain", "--config", tiny, "--archive", archive, "--out", tmp_path / "run")
    assert_refused(done, str(archive), *phrases)
    assert contents(tmp_path) == before


BAD_CONFIGS: dict[str, tuple[list[str], list[str]]] = {
    "absent variable": (["--data.variables", "[zz]"], ["'zz'", "did you mean z?"]),
    "patch that does not divide": (["--tokenizer.patch_latitude", "3"], ["3", "8", "latitude"]),
    "unknown key": (["--training.step", "3"], ["'training.step'", "'training.steps'"]),
    "unknown section": (["--trainin.steps", "3"], ["'trainin'", "'training'"]),
    "wrong type": (["--training.steps", "many"], ["training.steps", "int", "'many'"]),
    "malformed value": (["--data.variables", "[z"], ["data.variables", "[z"]),
    "section as a value": (["--training.steps.more", "3"], ["training.steps"]),
    "value out of range": (["--training.steps", "0"], ["training.steps", "0", "at least 1"]),
    "batch larger than the split": (["--training.batch_size", "140"], ["137 windows", "140", "training.batch_size"]),
}


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_bad_configuration(scijepa: Command, waves: Path, tiny: Path, tmp_path: Path, what: str) -> None:
    overrides, phrases = BAD_CONFIGS[what]
    before = contents(tmp_path)
    done = scijepa("pretrain", "--config", tiny, "--archive", waves, "--out", tmp_path / "run", *overrides)
    assert_refused(done, *phrases)
    assert contents(tmp_path) == before


def test_no_archive_is_given(scijepa: Command, tiny: Path, tmp_path: Path) -> None:
    assert_refused(scijepa("pretrain", "--config", tiny, "--out", tmp_path / "run"), "--archive")


def test_malformed_yaml(scijepa: Command, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("seed: 0\ntraining: {steps: 3\n")
    done = scijepa("pretrain", "--config", path, "--out", tmp_path / "run")
    assert_refused(done, str(path), "not valid YAML", "line")
    assert contents(tmp_path).keys() == {"bad.yaml"}


@pytest.mark.parametrize("content", [b"\xff\xfe\x00bad", b"- a\n- b\n", b"seed: !!python/object:os.system {}\n"])
def test_file_that_is_no_configuration(scijepa: Command, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert_refused(scijepa("pretrain", "--config", path, "--print-config"), str(path))


def test_unknown_preset(scijepa: Command) -> None:
    assert_refused(scijepa("pretrain", "--config", "no-such-preset"), "'no-such-preset'")


def test_a_run_folder_that_exists_is_left_alone(
    scijepa: Command, waves: Path, tiny: Path, trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = contents(tmp_path)
    argv = ("pretrain", "--config", tiny, "--archive", waves, "--out", run)
    assert_refused(scijepa(*argv), str(run), "exists already")
    assert_refused(scijepa(*argv, "--resume", "--training.steps", 4), str(run), "another configuration")
    assert_refused(scijepa(*argv[:-1], tmp_path / "other", "--resume"), str(tmp_path / "other"))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("verb", ["pretrain", "embed", "probe", "demo"])
def test_a_place_inside_a_file(scijepa: Command, waves: Path, tiny: Path, trained: Path, verb: str) -> None:
    before = contents(tiny.parent)
    inputs = (trained, waves) if verb in ("embed", "probe") else ("--config", tiny, "--archive", waves)
    assert_refused(scijepa(verb, *inputs, "--out", tiny / "a" / "b"), str(tiny / "a" / "b"), f"{tiny} is a file")
    assert contents(tiny.parent) == before


@pytest.mark.parametrize("verb", ["embed", "probe"])
def test_run_and_archive_that_do_not_fit(
    scijepa: Command, waves: Path, trained: Path, tmp_path: Path, verb: str
) -> None:
    out = ("--out", tmp_path / "out")
    before = contents(trained)
    assert_refused(scijepa(verb, tmp_path / "absent", waves, *out), str(tmp_path / "absent"))
    other = write_archive(tmp_path / "other.zarr", travelling_waves(60, nlat=4, variables=("z", "q")))
    assert_refused(scijepa(verb, trained, other, *out), str(other), "latitude")
    other = write_archive(tmp_path / "t.zarr", travelling_waves(60, variables=("t",)))
    assert_refused(scijepa(verb, trained, other, *out), str(other), "'q'")
    other = write_archive(tmp_path / "levels.zarr", travelling_waves(60, levels=(500,)))
    assert_refused(scijepa(verb, trained, other, *out), str(other), "z@500", "trained on q, z")
    assert not (tmp_path / "out").exists()
    assert contents(trained) == before


def test_a_part_of_the_channels_is_embedded(scijepa: Command, trained: Path, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "z.zarr", travelling_waves(60))
    done = scijepa("embed", trained, archive, "--out", tmp_path / "latents.zarr")
    assert done.code == 0, done.err
    # windows of 2 in 60 days
    assert xr.open_zarr(tmp_path / "latents.zarr", consolidated=False).sizes["time"] == 59


@pytest.mark.parametrize("file", ["model.safetensors", "statistics.safetensors", "config.json"])
def test_damaged_model(scijepa: Command, waves: Path, trained: Path, tmp_path: Path, file: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    path = run / "model" / file
    path.write_bytes(path.read_bytes()[:-20])
    assert_refused(scijepa("embed", run, waves, "--out", tmp_path / "out"), str(run / "model"))
    assert not (tmp_path / "out").exists()


def test_unknown_lead_and_control(scijepa: Command, waves: Path, trained: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert_refused(scijepa("probe", trained, waves, "--lead", "soon", *out), "'soon'")
    assert_refused(scijepa("probe", trained, waves, "--lead", "1D", "--controls", "persistenc", *out), "persistence")
    assert not (tmp_path / "out").exists()


# --- a machine that refuses

needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is a device of Linux")


@needs_dev_full
def test_disk_full_behind_stdout() -> None:
    with open("/dev/full", "w") as full:
        done = process("configs", stdout=full)
    assert_refused(done, "disk is full", "standard output")


@needs_dev_full
def test_disk_full_while_resuming(scijepa: Command, trained: Path, tmp_path: Path, waves: Path, tiny: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("model", "versions.json"))
    (run / ".versions.json.partial").symlink_to("/dev/full")
    done = scijepa("pretrain", "--resume", "--out", run)
    assert_refused(done, "disk is full", str(run), "--resume")


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Done]:
    """Runs a command and then a line of shell in a file system of its own, which vanishes with them."""
    full = tmp_path_factory.mktemp("small") / "full"
    full.mkdir()

    def run(size: str, *argv: object, then: str = "true") -> Done:
        mount = (
            f'mount -t tmpfs -o size={size} tmpfs "{full}" || exit 77; cd "{full}"; "$@"; code=$?; {then}; exit $code'
        )
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        command = ["unshare", *user, "--mount", "sh", "-c", mount, "sh", *map(str, argv)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        return Done(done.returncode, done.stdout, done.stderr)

    if shutil.which("unshare") is None or run("64k", "true").code != 0:
        pytest.skip("a file system of one's own cannot be mounted here")
    return run


@pytest.mark.slow
@pytest.mark.parametrize("size", ["8k", "300k"])
def test_disk_full_in_pretrain(small_disk: Callable[..., Done], waves: Path, tiny: Path, size: str) -> None:
    command = [sys.executable, "-m", "sciJEPA.cli", "pretrain", "--config", tiny, "--archive", waves, "--out", "run"]
    # Room is made, and the run goes on from what was written before.
    again = shlex.join(map(str, [*command, "--resume", "--json"]))
    done = small_disk(size, *command, then=f"mount -o remount,size=64m . && {again}; ls run/model >&2")
    first, *rest = done.err.splitlines()
    assert_refused(done._replace(err=first, out=""), "disk is full", "run", "--resume")
    assert json.loads(done.out)["run"] == "run"
    assert "model.safetensors" in rest


@pytest.mark.slow
@pytest.mark.parametrize("size", ["8k", "100k"])
def test_disk_full_in_embed(small_disk: Callable[..., Done], waves: Path, trained: Path, size: str) -> None:
    command = (sys.executable, "-m", "sciJEPA.cli", "embed", trained, waves, "--out", "latents.zarr")
    done = small_disk(size, *command, then="ls >&2")  # what is incomplete must not look like latents
    first, *files = done.err.splitlines()
    assert "latents.zarr" not in files
    assert_refused(done._replace(err=first), "disk is full", "latents.zarr")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files")
def test_file_size_limit(waves: Path, tiny: Path, tmp_path: Path) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    argv = ("pretrain", "--config", tiny, "--archive", waves, "--out", tmp_path / "run")
    assert_refused(process(*argv, preexec_fn=limit), "size limit", "run")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(scijepa: Command, waves: Path, tiny: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    done = scijepa("pretrain", "--config", tiny, "--archive", waves, "--out", locked / "run")
    assert_refused(done, str(locked), "permission")


# --- interruptions, failures of our own, and what libraries print


def doctor_that(monkeypatch: pytest.MonkeyPatch, action: Callable[[], Any]) -> None:
    module = importlib.import_module("sciJEPA.doctor")  # sciJEPA.doctor is the function
    monkeypatch.setattr(module, "doctor", action)


def test_own_failure_shows_itself(scijepa: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a bolt came loose")

    doctor_that(monkeypatch, fail)
    done = scijepa("doctor", "--json")
    assert (done.code, done.out) == (1, "")
    assert "Traceback" in done.err
    assert "RuntimeError: a bolt came loose" in done.err
    assert done.err.splitlines()[-1].startswith("scijepa: this is a failure of sciJEPA")


def test_libraries_cannot_reach_stdout(scijepa: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    from sciJEPA.training.monitor import CollapseWarning

    def talk() -> dict[str, float]:
        print("GPU available: no")
        warnings.warn("something is deprecated", DeprecationWarning, stacklevel=1)
        warnings.warn("a library is uneasy", UserWarning, stacklevel=1)
        warnings.warn("the latents have collapsed", CollapseWarning, stacklevel=1)
        return {"skill": float("nan")}

    doctor_that(monkeypatch, talk)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = scijepa("doctor", "--json")
    assert json.loads(done.out) == {"skill": None}
    assert done.err == "GPU available: no\nscijepa: warning: the latents have collapsed\n"


def test_one_sentence_stays_in_one_line(scijepa: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UserError("two\nlines.")

    doctor_that(monkeypatch, fail)
    assert scijepa("doctor") == Done(2, "", "scijepa: two lines.\n")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes close differently")
def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    shell = f'set -o pipefail; "{sys.executable}" -m sciJEPA.cli configs | true'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # 0 when the line was written before the reader left


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no signals for one process")
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_run_that_is_stopped_says_how_to_go_on(
    waves: Path, tiny: Path, tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    run = tmp_path / "run"
    argv = ["pretrain", "--config", tiny, "--archive", waves, "--out", run, "--training.steps", 20_000]
    command = [sys.executable, "-m", "sciJEPA.cli", *map(str, argv)]

    def listen() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job inherits that it is ignored

    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    try:
        deadline = time.monotonic() + 120
        while not (run / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
            assert started.poll() is None, started.communicate()
            time.sleep(0.1)
        started.send_signal(number)
        out, err = started.communicate(timeout=120)
    finally:
        started.kill()
    assert (started.returncode, out) == (code, "")
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith(f"scijepa: {word}")
    assert "--resume" in last
    assert not (run / "model").exists()


def test_an_interruption_before_the_first_step(
    scijepa: Command, waves: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("sciJEPA.pretrain"), "fit_normalizer", interrupt)
    done = scijepa("pretrain", "--config", tiny, "--archive", waves, "--out", tmp_path / "run")
    assert done == Done(130, "", "scijepa: interrupted; nothing that existed before was changed.\n")
