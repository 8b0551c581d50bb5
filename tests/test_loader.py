import dataclasses
import threading
from itertools import chain, permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from sciJEPA.archive import Archive, open_archive
from sciJEPA.errors import UserError
from sciJEPA.loader import BatchStream, WindowReader, decoded_together
from sciJEPA.masking import Masker, MaskingConfig, TokenGrid
from sciJEPA.normalize import Normalizer, fit_normalizer
from sciJEPA.samples import window_starts
from sciJEPA.synthetic import travelling_waves
from sciJEPA.tokenizers.base import Batch


def on(time: pd.Index) -> Archive:
    """An archive that has its step numbers as values: step t is t everywhere."""
    coords = {"time": time, "latitude": [30.0, 0.0, -30.0], "longitude": [0.0, 90.0, 180.0, 270.0]}
    field = np.broadcast_to(np.arange(len(time), dtype=np.float32)[:, None, None], (len(time), 3, 4))
    return open_archive(xr.DataArray(field, coords, ("time", "latitude", "longitude"), name="z"))


def days(count: int, missing: tuple[int, ...] = ()) -> Archive:
    """Daily steps, some of which are not there."""
    dates = pd.date_range("2001-01-01", periods=count + len(missing), freq="D")
    return on(dates.delete([n for n in missing]))


def identity(archive: Archive) -> Normalizer:
    """Leaves values as they are."""
    shape = (1, len(archive.channels), len(archive.latitude), len(archive.longitude))
    ones = np.ones(len(archive.channels), dtype=np.float32)
    return Normalizer(np.zeros(shape, dtype=np.float32), ones, 0 * ones, 0, 0, ("", ""))


def chunked(archive: Archive, steps: int) -> Archive:
    return dataclasses.replace(archive, chunk_steps=steps)


def stream(archive: Archive, *, batches: int = 12, batch_size: int = 4, length: int = 3, **settings) -> BatchStream:
    starts = window_starts(archive, ((0, len(archive)),), length)
    masker = Masker(TokenGrid(length, (2, 3), length - 1), MaskingConfig(), seed=settings.get("seed", 0))
    reader = WindowReader(archive, identity(archive))
    return BatchStream(reader, masker, starts, length, batches, batch_size, **settings)


def same(first: Batch, second: Batch) -> bool:
    """Equal batches; no mask means that all is observed."""

    def flags(batch: Batch) -> torch.Tensor:
        return torch.ones_like(batch.values, dtype=torch.bool) if batch.observed is None else batch.observed

    return all(
        torch.equal(a, b)
        for a, b in (
            (first.values, second.values),
            (flags(first), flags(second)),
            (first.calendar, second.calendar),
            (first.samples, second.samples),
        )
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_window_is_what_the_archive_holds():
    archive = days(20)
    batch = WindowReader(archive, identity(archive)).read([5], 3)
    assert batch.values.shape == (1, 1, 3, 3, 4) and batch.observed is None
    assert batch.values[0, 0, :, 0, 0].tolist() == [5.0, 6.0, 7.0]
    assert batch.samples.tolist() == [5]


@pytest.mark.parametrize("missing", [0.0, 0.05])
@pytest.mark.parametrize("chunk, block", [(1, 1), (7, 7), (7, 21), (500, 500)])
def test_chunks_and_blocks_are_invisible(chunk, block, missing):
    archive = open_archive(travelling_waves(100, missing=missing))
    normalizer = fit_normalizer(archive, ((0, 70),))
    whole = WindowReader(archive, normalizer)
    assert whole.block >= 100
    cut = WindowReader(chunked(archive, chunk), normalizer)
    cut.block, cut.capacity = block, 2
    starts = [0, 90, 33, 34, 94, 6, 7]
    assert same(whole.read(starts, 6), cut.read(starts, 6))


def test_missing_values_are_zero_and_flagged():
    archive = open_archive(travelling_waves(60, missing=0.2))
    batch = WindowReader(archive, fit_normalizer(archive, ((0, 60),))).read([0, 30], 5)
    raw = np.stack([archive.read(0, 5), archive.read(30, 35)]).swapaxes(1, 2)
    assert batch.observed is not None
    np.testing.assert_array_equal(batch.observed.numpy(), np.isfinite(raw))
    assert (batch.values[~batch.observed] == 0).all() and batch.values.isfinite().all()


def test_what_a_missing_value_is_filled_with_makes_no_difference(tmp_path):
    ds = travelling_waves(60, missing=0.2)
    batches = []
    for number, fill in enumerate((-999.0, 1e30, np.nan)):
        path = tmp_path / f"{number}.nc"
        ds.to_netcdf(path, encoding={"z": {"_FillValue": np.float32(fill)}})
        archive = open_archive(path)
        batches.append(WindowReader(archive, fit_normalizer(archive, ((0, 40),))).read([0, 50], 6))
    assert same(batches[0], batches[1]) and same(batches[0], batches[2])


@pytest.mark.parametrize("memory_mb", [1, 2, 5])
def test_decoded_blocks_stay_below_the_memory_limit(memory_mb):
    archive = chunked(open_archive(travelling_waves(800, nlat=16, nlon=32, missing=0.01)), 4)
    reader = WindowReader(archive, identity(archive), memory_mb=memory_mb)
    largest = 0
    for start in np.random.default_rng(0).integers(0, 790, 300):
        reader.read([start], 8)
        held = sum(b.values.nbytes + (0 if b.observed is None else b.observed.nbytes) for b in reader._blocks.values())
        largest = max(largest, held)
    assert len(archive) * 16 * 32 * 5 > memory_mb * 2**20 / 3  # or the limit would mean nothing
    assert largest <= memory_mb * 2**20


def decoded(run: BatchStream) -> list[int]:
    """The first steps of the blocks that a stream decodes."""
    first: list[int] = []
    begin = run.reader._chunks.begin

    def counted(start: int, *others: Any) -> Any:
        first.append(start)
        return begin(start, *others)

    run.reader._chunks.begin = counted
    for _ in run:
        pass
    return first


@pytest.mark.parametrize("block, length", [(4, 1), (4, 3), (4, 5), (2, 5), (1, 6), (24, 8)])
@pytest.mark.parametrize("first", [0, 40])
def test_an_epoch_decodes_every_block_once(block, length, first):
    run = stream(days(480), batches=(481 - length) // 4, length=length)
    run.first, run.reader.block, run.reader.capacity = first, block, 16
    blocks = decoded(run)
    assert len(blocks) == len(set(blocks)) > (480 - first * 4) // block * 0.9


def test_an_archive_that_fits_is_decoded_once():
    run = stream(days(200), batches=3 * (193 // 4), length=8)
    run.reader.block, run.reader.capacity = 20, 10
    assert sorted(decoded(run)) == list(range(0, 200, 20))


def test_what_is_forgotten_is_decoded_again_into_the_same_memory():
    run = stream(days(200))
    run.reader.block, run.reader.capacity = 20, 4
    expected = run.reader.read(range(100), 3)
    memory = {block.values.ctypes.data for block in run.reader._blocks.values()}
    run.reader.forget()
    assert same(run.reader.read(range(100), 3), expected)
    assert {block.values.ctypes.data for block in run.reader._blocks.values()} == memory


@pytest.mark.parametrize("missing", [0.0, 0.01])
def test_threads_are_invisible(missing):
    archive = open_archive(travelling_waves(300, missing=missing))
    normalizer = fit_normalizer(archive, ((0, 300),))
    alone = WindowReader(archive, normalizer, threads=1).read(range(0, 290, 3), 6)
    for threads in (2, 7):
        assert same(alone, WindowReader(archive, normalizer, threads=threads).read(range(0, 290, 3), 6))


def test_a_batch_keeps_its_values_when_others_are_read():
    archive = days(100)
    reader = WindowReader(chunked(archive, 5), identity(archive))
    reader.block, reader.capacity = 5, 2
    batch = reader.read([5, 60], 3)
    kept = batch.values.clone()
    for start in range(0, 97):
        reader.read([start], 3)
    assert torch.equal(batch.values, kept)


def test_batches_that_nobody_holds_lend_their_memory_to_the_next():
    run, kept, places = stream(days(100), batches=24), [], set()
    for number, (batch, _) in enumerate(run):
        places.add(batch.values.data_ptr())
        if number in (3, 7):
            kept.append((batch.values[1:, :, :2], batch.values.clone()))  # a view holds the memory, too
        del batch
    assert len(places) < 10
    for view, values in kept:
        assert torch.equal(view, values[1:, :, :2])


@pytest.mark.parametrize("order", list(permutations(("time", "latitude", "longitude"))))
def test_the_order_of_the_storage_is_invisible(tmp_path, order):
    ds = travelling_waves(60, nlat=6, nlon=8, missing=0.05)
    ds.transpose(*order).to_netcdf(tmp_path / "a.nc")
    archive, plain = open_archive(tmp_path / "a.nc"), open_archive(ds)
    normalizer = fit_normalizer(plain, ((0, 50),))
    np.testing.assert_allclose(fit_normalizer(archive, ((0, 50),)).coefficients, normalizer.coefficients, rtol=1e-6)
    first, second = (WindowReader(a, normalizer) for a in (archive, plain))
    assert same(first.read([0, 3, 50], 8), second.read([0, 3, 50], 8))
    for found, expected in zip(first.steps(7, 20), second.steps(7, 20), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_block_that_could_not_be_read_is_read_again(tmp_path):
    ds, path = travelling_waves(40), tmp_path / "a.zarr"
    ds.to_zarr(path, zarr_format=2, consolidated=False, encoding={"z": {"chunks": (10, *ds.z.shape[1:])}})
    archive = open_archive(path)
    reader = WindowReader(archive, fit_normalizer(archive, ((0, 40),)))
    chunk = next(path.glob("z/2.*"))
    content = chunk.read_bytes()
    chunk.write_bytes(content[:20])
    with pytest.raises(UserError, match=r"cannot read z of .* the file is damaged"):
        reader.read([18], 4)
    chunk.write_bytes(content)
    np.testing.assert_array_equal(reader.read([18], 4).values[0].numpy(), reader.steps(18, 22)[0].swapaxes(0, 1))


def test_chunks_inside_of_shards_are_decoded_apart(tmp_path):
    ds = travelling_waves(64)
    path = tmp_path / "shards.zarr"
    ds.to_zarr(path, zarr_format=3, encoding={"z": {"chunks": (8, *ds.z.shape[1:]), "shards": (32, *ds.z.shape[1:])}})
    archive = open_archive(path)
    assert archive.chunk_steps == 32 and decoded_together(archive) == 8


def test_an_archive_that_fits_is_shuffled_as_a_whole():
    archive = days(100)
    reader = WindowReader(chunked(archive, 5), identity(archive))
    reader.block, reader.capacity = 5, 20
    assert reader.mixed(8) == 20
    reader.capacity = 19
    assert reader.mixed(8) < 19


def test_a_reader_serves_several_threads():
    archive = open_archive(travelling_waves(200))
    reader = WindowReader(chunked(archive, 2), identity(archive))
    reader.block, reader.capacity = 2, 2
    expected = reader.read(range(0, 190, 10), 4)
    failed: list[BaseException | None] = []

    def work() -> None:
        try:
            for _ in range(20):
                assert same(reader.read(range(0, 190, 10), 4), expected)
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed


def test_steps_and_windows_agree():
    archive = open_archive(travelling_waves(50, missing=0.1))
    reader = WindowReader(archive, fit_normalizer(archive, ((0, 50),)))
    values, observed = reader.steps(10, 16)
    batch = reader.read([10], 6)
    assert batch.observed is not None
    np.testing.assert_array_equal(values.swapaxes(0, 1), batch.values[0])
    np.testing.assert_array_equal(observed.swapaxes(0, 1), batch.observed[0])


# --- the stream -------------------------------------------------------------------------------------------------------


def test_an_epoch_serves_every_window_once():
    run = stream(days(42), batches=10)  # 40 windows, 10 batches of 4
    samples = [batch.samples.tolist() for batch, _ in run]
    assert sorted(chain(*samples)) == list(range(40))


def test_an_incomplete_batch_is_left_out():
    run = stream(days(44), batches=22)  # 42 windows: 10 batches an epoch and 2 windows left
    samples = [batch.samples.tolist() for batch, _ in run]
    assert len(samples) == 22 and run.per_epoch == 10
    first, second = list(chain(*samples[:10])), list(chain(*samples[10:20]))
    assert len(set(first)) == len(set(second)) == 40 and first != second


@pytest.mark.parametrize("first", [0, 1, 9, 10, 11, 23, 24])
def test_a_resumed_stream_goes_on_identically(first):
    # 10 batches an epoch: resumed within, at the end of, and past the end of an epoch.
    whole = list(stream(days(42), batches=24))
    resumed = list(stream(days(42), batches=24, first=first))
    assert len(resumed) == 24 - first
    for (batch, plan), (again, plan_again) in zip(whole[first:], resumed, strict=True):
        assert same(batch, again)
        assert plan.strategy == plan_again.strategy
        assert torch.equal(plan.context, plan_again.context) and torch.equal(plan.target, plan_again.target)


@pytest.mark.parametrize("first", [0, 11])
def test_values_that_the_masker_hides_are_missing_as_any_other(first):
    plain, hiding = stream(days(42), first=first), stream(days(42), first=first)
    config = MaskingConfig(points=0.9)
    hiding = dataclasses.replace(hiding, masker=dataclasses.replace(hiding.masker, config=config))
    for number, ((whole, _), (batch, _)) in enumerate(zip(plain, hiding, strict=True), first):
        hidden = hiding.masker.points(whole.values.shape, whole.samples.tolist(), epoch=number // hiding.per_epoch)
        assert hidden is not None and hidden.any() and batch.observed is not None
        assert torch.equal(batch.observed, ~hidden) and torch.equal(batch.values, whole.values * ~hidden)


def test_what_is_missing_stays_missing_where_the_masker_hides_values():
    archive = open_archive(travelling_waves(60, missing=0.2))
    reader = WindowReader(archive, fit_normalizer(archive, ((0, 60),)))
    masker = Masker(TokenGrid(3, (2, 2), 2), MaskingConfig(points=0.5))
    run = BatchStream(reader, masker, np.arange(50), 6, batches=2, batch_size=4)
    for batch, _ in run:
        before = reader.read(batch.samples.numpy(), 6).observed
        assert before is not None and batch.observed is not None
        assert not (batch.observed & ~before).any() and (before & ~batch.observed).any()


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_every_batch(world):
    whole = list(stream(days(42)))
    parts = [list(stream(days(42), rank=rank, world=world)) for rank in range(world)]
    for number, (batch, plan) in enumerate(whole):
        got = [parts[rank][number] for rank in range(world)]
        order = torch.argsort(torch.cat([torch.arange(rank, 4, world) for rank in range(world)]))
        assert torch.equal(torch.cat([b.samples for b, _ in got])[order], batch.samples)
        assert torch.equal(torch.cat([b.values for b, _ in got])[order], batch.values)
        assert torch.equal(torch.cat([p.target for _, p in got])[order], plan.target)


def test_another_seed_is_another_order():
    first, second = stream(days(42)), stream(days(42), seed=1)
    assert first.samples(0).tolist() != second.samples(0).tolist()


def test_too_few_windows_are_refused():
    with pytest.raises(UserError, match=r"has 3 windows of 3 steps without a gap, fewer than one batch of 4"):
        stream(days(5))


class Failing(WindowReader):
    """Reads two batches and then no more."""

    count = 0

    def begin(self, *arguments):
        self.count += 1
        if self.count > 2:
            raise UserError("the file is gone")
        return super().begin(*arguments)


def failing() -> BatchStream:
    run = stream(days(42))
    return dataclasses.replace(run, reader=Failing(run.reader.archive, run.reader.normalizer))


def test_an_exception_reaches_the_consumer():
    with pytest.raises(UserError, match="the file is gone"):
        list(failing())
