"""Latents that are computed range by range: lazily, on a cluster, in a store that goes on and grows."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from tiny import tiny_config

from sciJEPA import cli, explore
from sciJEPA.archive import open_archive
from sciJEPA.embedding import encoding, store
from sciJEPA.embedding.encoding import Encoding
from sciJEPA.errors import UserError
from sciJEPA.hub import Model, load, random_model
from sciJEPA.latents import embed
from sciJEPA.pretrain import pretrain
from sciJEPA.synthetic import travelling_waves


@pytest.fixture(scope="module")
def latents(model: Model, waves: Path) -> xr.Dataset:
    return embed(model, waves, progress=False)


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of 64 windows of 16 tokens of 32 features, so that the 199 windows of `waves` make four."""
    monkeypatch.setattr(encoding, "RANGE_BYTES", 64 * 16 * 32 * 4)


def encoding_of(model: Model, source: Any, **changes: Any) -> Encoding:
    options = {"domain": None, "encoder": "target", "batch_size": 64, "pooled": False}
    return Encoding(model=model, source=source, **(options | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- lazily


def test_lazy_latents_are_those_in_memory(model: Model, waves: Path, latents: xr.Dataset, small_ranges: None) -> None:
    lazy = embed(model, waves, lazy=True)
    assert lazy["latents"].chunks == ((64, 64, 64, 7), (16,), (32,))
    xr.testing.assert_identical(lazy.compute(), latents)
    xr.testing.assert_identical(lazy.isel(time=[70]).compute(), latents.isel(time=[70]))
    xr.testing.assert_identical(
        travelling_waves(200).jepa.embed(model, lazy=True)["latents"].compute().drop_attrs(),
        latents["latents"].drop_attrs(),
    )


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_do_not_change_a_bit(threads: int, waves: Path, tmp_path: Path) -> None:
    # With these sizes the products of four threads and of one had other bits.
    ds = travelling_waves(70, nlat=12, nlon=20)
    ds.to_zarr(tmp_path / "a.zarr", consolidated=False)
    config = tiny_config(tmp_path / "a.zarr", encoder={"width": 72, "depth": 3, "heads": 3}, training__steps=1)
    model = pretrain(config, tmp_path / "run", progress=False)
    before = torch.get_num_threads()
    wanted = embed(model, ds, progress=False)
    try:
        torch.set_num_threads(threads)
        xr.testing.assert_identical(embed(model, ds, progress=False), wanted)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_an_encoding_travels_as_names(model: Model, waves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(waves.parent)
    there = pickle.dumps(encoding_of(model, waves.name))
    assert len(there) < 1000  # the weights alone have 40,000 bytes
    monkeypatch.chdir("/")
    arrays = pickle.loads(pickle.dumps(pickle.loads(there))).encode(64, 70)
    np.testing.assert_array_equal(arrays["latents"], encoding_of(model, waves).encode(64, 70)["latents"])


def test_a_model_that_lies_nowhere_travels_whole(model: Model, waves: Path) -> None:
    other = random_model(model)
    assert other.folder is None
    changed = load(model.folder or "")
    changed.jepa.load_state_dict(other.jepa.state_dict())
    wanted = encoding_of(other, waves).encode(0, 5)["latents"]
    for nowhere in (other, changed):
        found = pickle.loads(pickle.dumps(encoding_of(nowhere, waves))).encode(0, 5)["latents"]
        np.testing.assert_array_equal(found, wanted)
    assert abs(wanted - encoding_of(model, waves).encode(0, 5)["latents"]).max() > 1e-3


def test_a_model_that_was_replaced_on_the_way_is_refused(run_folder: Path, waves: Path, tmp_path: Path) -> None:
    load(run_folder).save(tmp_path / "model")
    there = pickle.dumps(encoding_of(load(tmp_path / "model"), waves))
    (tmp_path / "model").rename(tmp_path / "old")
    random_model(load(run_folder)).save(tmp_path / "model")
    with pytest.raises(UserError, match="holds the model"):
        pickle.loads(there).encode(0, 5)


@pytest.mark.parametrize("source", ["dataset", "archive"])
def test_objects_travel_too(source: str, model: Model, waves: Path, latents: xr.Dataset) -> None:
    given = travelling_waves(200) if source == "dataset" else open_archive(waves)
    arrays = pickle.loads(pickle.dumps(encoding_of(model, given))).encode(0, 10)
    np.testing.assert_array_equal(arrays["latents"], latents["latents"][:10])


# --- pooled


def test_pooled_latents_are_weighted_by_area_and_by_what_was_observed(tmp_path: Path) -> None:
    ds = travelling_waves(100, missing=0.3, seed=3)
    ds.to_zarr(tmp_path / "a.zarr", consolidated=False)
    model = pretrain(tiny_config(tmp_path / "a.zarr", training__steps=2), tmp_path / "run", progress=False)
    pooled, tokens = (embed(model, ds, pooled=which, progress=False) for which in (True, False))
    assert pooled["latents"].dims == ("time", "latent") and set(pooled.coords) == {"time"}
    now = tokens.isel(time=7, token=tokens["token_offset"].values == 0)
    weight = (now["token_area"] * now["observed"]).values
    assert weight.std() > 0
    wanted = (now["latents"].values * weight[:, None]).sum(0) / weight.sum()
    np.testing.assert_allclose(pooled["latents"][7], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pooled["latents"], explore.pool(tokens)["latents"].astype(np.float32))
    xr.testing.assert_identical(embed(model, ds, pooled=True, lazy=True).compute(), pooled)
    stored = embed(model, ds, pooled=True, out=tmp_path / "pooled.zarr", progress=False)
    xr.testing.assert_identical(stored.load(), pooled)


# --- a cluster


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two worker processes."""
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster, set_as_default=False) as client:
        yield client


def test_two_workers_give_the_bits_of_one_process(
    client: Any, model: Model, waves: Path, latents: xr.Dataset, small_ranges: None, tmp_path: Path
) -> None:
    xr.testing.assert_identical(client.compute(embed(model, waves, lazy=True)).result(), latents)
    alone = embed(model, waves, out=tmp_path / "alone.zarr", progress=False)
    for number, scheduler in enumerate((client, client.scheduler.address)):
        out = tmp_path / f"cluster-{number}.zarr"
        stored = embed(model, waves, out=out, scheduler=scheduler, progress=False)
        xr.testing.assert_identical(stored.load(), alone.load())
        assert contents(out) == contents(tmp_path / "alone.zarr")


def test_a_model_and_an_archive_in_memory_go_to_the_workers(
    client: Any, model: Model, waves: Path, latents: xr.Dataset, small_ranges: None, tmp_path: Path
) -> None:
    other = random_model(model)
    stored = embed(other, travelling_waves(200), out=tmp_path / "a.zarr", scheduler=client, progress=False)
    np.testing.assert_array_equal(stored["latents"], embed(other, waves, progress=False)["latents"])


def test_what_is_wrong_on_a_worker_is_told_here(
    client: Any, model: Model, waves: Path, small_ranges: None, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.zarr"
    travelling_waves(200).to_zarr(damaged, consolidated=False, encoding={"z": {"chunks": (20, 8, 16)}})
    (damaged / "z" / "c" / "5" / "0" / "0").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot read z"):
        embed(model, damaged, out=tmp_path / "a.zarr", scheduler=client, progress=False)
    assert not (tmp_path / "a.zarr").exists()


def test_a_cluster_that_does_not_answer(model: Model, waves: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(UserError, match="no cluster answers at nowhere://1"):
        embed(model, waves, out=tmp_path / "a.zarr", scheduler="nowhere://1", progress=False)


def test_workers_that_die_are_spoken_of(
    model: Model, waves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")

    class Dying:
        """A client and a task."""

        loop = None

        def scatter(self, *_: Any, **__: Any) -> None: ...

        def submit(self, *_: Any, **__: Any) -> "Dying":
            return self

        def cancel(self, _: Any) -> None: ...

        def result(self) -> None:
            raise distributed.KilledWorker("embed", None, 3)

    monkeypatch.setattr(store, "connected", lambda _: contextlib.nullcontext(Dying()))
    monkeypatch.setattr(distributed, "as_completed", lambda running, loop: list(running))
    with pytest.raises(UserError, match=r"several workers died at latents 0:199, .* the same call goes on"):
        embed(model, waves, out=tmp_path / "a.zarr", scheduler="tcp://somewhere:1", progress=False)


# --- memory

MEASURED = """
import resource, sys
import xarray as xr
import sciJEPA.embedding.encoding as encoding
from sciJEPA import embed, load

encoding.RANGE_BYTES = 2**21
folder, archive, out = sys.argv[1:]
model, ds = load(folder), xr.open_zarr(archive, consolidated=False, chunks=None)
peaks = []
for number, steps in enumerate((4_000, 40_000)):
    embed(model, ds.isel(time=slice(steps)), out=f"{out}/{number}.zarr", progress=False)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(peaks[1] - peaks[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_memory_does_not_grow_with_the_archive(model: Model, tmp_path: Path) -> None:
    archive = tmp_path / "long.zarr"
    travelling_waves(40_000).to_zarr(archive, consolidated=False, encoding={"z": {"chunks": (1000, 8, 16)}})
    words = [sys.executable, "-c", MEASURED, str(model.folder), str(archive), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Latents of 36,000 windows more take 74 MB, their archive 18 MB.
    assert float(done.stdout) < 25


# --- a store that goes on

KILLED = """
import os, signal, sys
import sciJEPA.embedding.encoding as encoding
from sciJEPA.storage.chunked_copy import Journal

encoding.RANGE_BYTES = 64 * 16 * 32 * 4
model, archive, out, ranges = sys.argv[1:]
add = Journal.add

def add_and_die(journal, region):
    if len(journal.done) == int(ranges):
        os.kill(os.getpid(), signal.SIGKILL)
    add(journal, region)

Journal.add = add_and_die
from sciJEPA import embed, load
embed(load(model), archive, out=out, progress=False, append=True)
"""


def killed_after(ranges: int, model: Model, archive: Path, out: Path) -> None:
    """Embed in a process that dies when so many ranges are noted and the next one is written."""
    words = [sys.executable, "-c", KILLED, str(model.folder), str(archive), str(out), str(ranges)]
    assert subprocess.run(words, capture_output=True).returncode == -signal.SIGKILL


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges that are encoded."""
    ranges: list[tuple[int, int]] = []
    whole = Encoding.encode

    def encode(self: Encoding, first: int, last: int, *rest: Any) -> dict[str, np.ndarray]:
        ranges.append((first, last))
        return whole(self, first, last, *rest)

    monkeypatch.setattr(Encoding, "encode", encode)
    return ranges


def test_a_killed_run_goes_on_with_what_is_missing(
    model: Model, waves: Path, latents: xr.Dataset, small_ranges: None, tmp_path: Path, encoded: list[tuple[int, int]]
) -> None:
    out = tmp_path / "a.zarr"
    killed_after(2, model, waves, out)
    assert [file.name for file in tmp_path.iterdir()] == [".a.zarr.partial"]
    stored = embed(model, waves, out=out, progress=False)
    assert encoded == [(128, 192), (192, 199)]
    xr.testing.assert_identical(stored.load(), latents)
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr"]


def test_another_task_does_not_go_on(
    model: Model, waves: Path, small_ranges: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.zarr"
    monkeypatch.setattr(store, "write_range", interrupt)
    with pytest.raises(KeyboardInterrupt):
        embed(model, waves, out=out, progress=False)
    changed = travelling_waves(200)
    changed["z"][:] += 1
    others: list[tuple[Any, dict[str, Any]]] = [
        (waves, {"encoder": "online"}), (waves, {"pooled": True}), (travelling_waves(199), {}), (changed, {}),
        (waves, {"batch_size": 16}),
    ]  # fmt: skip
    for archive, options in others:
        with pytest.raises(UserError, match="holds unfinished latents of another"):
            embed(model, archive, out=out, progress=False, **options)
    with pytest.raises(UserError, match="holds unfinished latents of another"):
        embed(random_model(model), waves, out=out, progress=False)


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


# --- a store that grows


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("days", [20, 66, 129, 150, 199])
def test_new_times_are_added(
    days: int, pooled: bool, model: Model, waves: Path, small_ranges: None, tmp_path: Path
) -> None:
    out, options = tmp_path / "a.zarr", {"out": tmp_path / "a.zarr", "pooled": pooled, "progress": False}
    embed(model, travelling_waves(200).isel(time=slice(days)), append=True, **options)
    stored = embed(model, waves, append=True, **options)
    whole = embed(model, waves, pooled=pooled, out=tmp_path / "whole.zarr", progress=False)
    xr.testing.assert_identical(stored.load(), whole.load())
    assert contents(out) == contents(tmp_path / "whole.zarr")
    assert not (tmp_path / ".a.zarr.partial").exists()


def test_only_new_times_are_encoded(
    model: Model, waves: Path, small_ranges: None, tmp_path: Path, encoded: list[tuple[int, int]]
) -> None:
    # 149 windows are three ranges; of the third, 128 to 148, the latents are compared and written again
    embed(model, travelling_waves(200).isel(time=slice(150)), out=tmp_path / "a.zarr", progress=False)
    encoded.clear()
    embed(model, waves, out=tmp_path / "a.zarr", append=True, progress=False)
    assert encoded == [(128, 149), (128, 192), (192, 199)]
    before = contents(tmp_path / "a.zarr")
    encoded.clear()
    assert embed(model, waves, out=tmp_path / "a.zarr", append=True, progress=False).sizes["time"] == 199
    assert encoded == [] and contents(tmp_path / "a.zarr") == before


@pytest.mark.parametrize("moved", [None, 0, 1, 3, 6, 8])
def test_a_killed_append_leaves_the_old_times_and_goes_on(
    moved: int | None, model: Model, waves: Path, latents: xr.Dataset, small_ranges: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "a.zarr"
    old = embed(model, travelling_waves(200).isel(time=slice(150)), out=out, progress=False).load()
    if moved is None:
        killed_after(1, model, waves, out)
        xr.testing.assert_identical(xr.open_zarr(out, consolidated=False).load(), old)
    else:
        replace, left = os.replace, [moved]

        def until(source: Any, target: Any) -> None:
            if "store" in Path(source).parts and Path(target).is_relative_to(out):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", until)
            embed(model, waves, out=out, append=True, progress=False)
    stored = embed(model, waves, out=out, append=True, progress=False)
    xr.testing.assert_identical(stored.load(), latents)


def test_an_append_that_was_left_gives_way_to_a_later_one(
    model: Model, waves: Path, latents: xr.Dataset, small_ranges: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "a.zarr", travelling_waves(200)
    embed(model, whole.isel(time=slice(100)), out=out, progress=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "write_range", interrupt)
        embed(model, whole.isel(time=slice(150)), out=out, append=True, progress=False)
    xr.testing.assert_identical(embed(model, waves, out=out, append=True, progress=False).load(), latents)


def test_what_does_not_belong_is_not_added(model: Model, waves: Path, small_ranges: None, tmp_path: Path) -> None:
    out, whole = tmp_path / "a.zarr", travelling_waves(200)
    embed(model, whole.isel(time=slice(150)), out=out, progress=False)
    before = contents(out)
    altered = whole.copy(deep=True)
    altered["z"][140:150] += 30
    cases: list[tuple[Model, Any, dict[str, Any], str]] = [
        (random_model(model), waves, {}, "its model_id is"),
        (model, waves, {"encoder": "online"}, "its encoder is target"),
        (
            model,
            waves,
            {"pooled": True},
            "its latents have the dimensions time, token, latent, the new ones time, latent",
        ),
        (model, waves, {"batch_size": 7}, "its chunks have 64 windows, the new ones 63"),
        (model, whole.isel(time=slice(1, None)), {}, "its 149 values of time are not the first ones"),
        (model, whole.isel(time=slice(100)), {}, "its 149 values of time are not the first ones"),
        (model, altered, {}, "its last latents are not those of the archive"),
    ]
    for other, archive, options, phrase in cases:
        with pytest.raises(UserError, match=phrase):
            embed(other, archive, out=out, append=True, progress=False, **options)
        assert contents(out) == before
    with pytest.raises(UserError, match="exists already"):
        embed(model, waves, out=out, progress=False)
    for other_folder in (waves, waves.parent):
        with pytest.raises(UserError, match="is no store of latents"):
            embed(model, waves, out=other_folder, append=True, progress=False)
    with pytest.raises(UserError, match="out names none"):
        embed(model, waves, append=True)


# --- the command line


def test_the_command_goes_on_and_adds(
    run_folder: Path, waves: Path, small_ranges: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "a.zarr"
    half = tmp_path / "half.zarr"
    travelling_waves(200).isel(time=slice(150)).to_zarr(half, consolidated=False)
    words = ["embed", str(run_folder), str(half), "--out", str(out), "--pooled", "--append"]
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_range", interrupt)
        assert cli.main(words) == 130
    assert "the same command goes on where this one stopped" in capsys.readouterr().err
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"{out}: time 149, latent 32\n"
    words[2] = str(waves)
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"{out}: time 199, latent 32\n"
    assert cli.main([*words[:-1], "--scheduler", "nowhere://1"]) == 2
    assert "exists already" in capsys.readouterr().err
