import dataclasses
import threading
import time
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sciJEPA.archive import Archive, open_archive
from sciJEPA.errors import UserError
from sciJEPA.loader import BatchStream, WindowReader, decoded_together
from sciJEPA.masking import Masker, MaskingConfig, TokenGrid
from sciJEPA.normalize import Normalizer, fit_normalizer
from sciJEPA.samples import DataConfig, contiguous, epoch_order, split_steps, window_starts
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
    masker = Masker(TokenGrid(length, 2, 3, length - 1), MaskingConfig(), seed=settings.get("seed", 0))
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


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sciJEPA batches"]


# --- windows ----------------------------------------------------------------------------------------------------------


def test_a_window_is_what_the_archive_holds():
    archive = days(20)
    batch = WindowReader(archive, identity(archive)).read([5], 3)
    assert batch.values.shape == (1, 1, 3, 3, 4) and batch.observed is None
    assert batch.values[0, 0, :, 0, 0].tolist() == [5.0, 6.0, 7.0]
    assert batch.samples.tolist() == [5]


def test_windows_of_ten_steps_with_a_gap_are_worked_by_hand():
    # Steps 0 1 2 3 | 4 5 6 7 8 9: windows of 3 start at 0, 1 and at 4 to 7.
    archive = days(10, missing=(4,))
    assert window_starts(archive, ((0, 10),), 3).tolist() == [0, 1, 4, 5, 6, 7]
    assert contiguous(archive).tolist() == [True] * 4 + [False] + [True] * 5
    assert window_starts(archive, ((0, 10),), 11).tolist() == []


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(8, 60),
    missing=st.sets(st.integers(1, 50), max_size=5),
    length=st.integers(1, 7),
    start=st.integers(0, 20),
    size=st.integers(0, 60),
    block=st.integers(1, 70),
    mixed=st.integers(1, 9),
    epoch=st.integers(0, 3),
)
def test_every_valid_window_comes_exactly_once_an_epoch(count, missing, length, start, size, block, mixed, epoch):
    archive = days(count, tuple(n for n in missing if n < count - 1))
    split = (start, min(start + size, count))
    starts = window_starts(archive, (split,), length)
    day = archive.hours / 24
    valid = [s for s in range(split[0], split[1] - length + 1) if day[s + length - 1] - day[s] == length - 1]
    assert starts.tolist() == valid  # none over a gap, none over an end of the split, none left out
    if valid:
        order = epoch_order(starts, seed=1, epoch=epoch, block=block, mixed=mixed)
        assert sorted(order.tolist()) == valid


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day"])
def test_months_follow_each_other(calendar):
    time = xr.date_range("2000-01-16", periods=60, freq="MS", calendar=calendar, use_cftime=calendar != "standard")
    assert contiguous(on(time)).all()
    assert not contiguous(on(time.delete(7))).all()


def test_order_is_a_function_of_seed_and_epoch():
    starts = np.arange(100)
    order = epoch_order(starts, seed=3, epoch=1, block=10, mixed=2)
    np.testing.assert_array_equal(order, epoch_order(starts, seed=3, epoch=1, block=10, mixed=2))
    for other in ({"seed": 3, "epoch": 2}, {"seed": 4, "epoch": 1}):
        assert (order != epoch_order(starts, **other, block=10, mixed=2)).any()


def test_few_blocks_are_needed_at_a_time():
    order = epoch_order(np.arange(100), seed=0, epoch=0, block=10, mixed=2) // 10
    assert all(len(set(order[first : first + 20])) == 2 for first in range(0, 100, 20))


@pytest.mark.parametrize("count, block, mixed", [(2000, 20, 16), (1990, 20, 16), (500, 1, 8), (3000, 100, 12)])
def test_groups_drift_through_time_no_more_than_chance(count, block, mixed):
    # Blocks in plain random order would have a standard deviation of 1 / sqrt(blocks): 0.1 for 100 of them.
    correlations = []
    for epoch in range(8):
        order = epoch_order(np.arange(count), seed=0, epoch=epoch, block=block, mixed=mixed)
        correlations.append(abs(np.corrcoef(np.arange(count), order)[0, 1]))
        groups = [np.unique(order[first : first + 32] // block) for first in range(0, count - 32, 32)]
        assert min(len(group) for group in groups) >= min(8, mixed // 2)
    assert np.mean(correlations) < 0.05


# --- splits -----------------------------------------------------------------------------------------------------------


def test_splits_by_share_are_worked_by_hand():
    # 0.7 + 0.1 of 100 is 80, although 0.7 + 0.1 is 0.7999... in binary; a gap of 2 is taken from what comes after.
    splits = split_steps(days(100), DataConfig(split=(0.7, 0.1, 0.2), gap=2, window=8))
    assert (splits.train, splits.validation, splits.test) == (((0, 70),), ((72, 80),), ((82, 100),))


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(40, 400),
    shares=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    gap=st.integers(0, 5),
    length=st.integers(1, 6),
)
def test_splits_share_no_window(count, shares, gap, length):
    archive = days(count)
    config = DataConfig(split=tuple(s / sum(shares) for s in shares), gap=gap, window=length, context=1)
    try:
        splits = split_steps(archive, config)
    except UserError as error:
        assert "fewer than data.window" in str(error)
        return
    ranges = [splits.train, splits.validation, splits.test]
    steps = [
        {s + t for s in window_starts(archive, r, length) for t in range(length)} for r in ranges
    ]  # every step that a window of the split reads
    assert max(steps[0]) + gap < min(steps[1]) and max(steps[1]) + gap < min(steps[2])
    assert max(steps[2]) == count - 1


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day"])
@pytest.mark.parametrize("validation, test", [("2002", "2003"), ("2002-01-01", "2003-01-01"), ("2002-01", "2003-01")])
def test_splits_by_date_start_there(calendar, validation, test):
    time = xr.date_range("2001-01-01", "2003-12-30", freq="D", calendar=calendar, use_cftime=calendar != "standard")
    splits = split_steps(on(time), DataConfig(validation_start=validation, test_start=test, gap=1))
    year = 360 if calendar == "360_day" else 365
    assert (splits.train, splits.validation) == (((0, year),), ((year + 1, 2 * year),))
    assert splits.test == ((2 * year + 1, len(time)),)


def test_a_date_of_the_archives_own_calendar_is_understood():
    time = xr.date_range("2001-01-01", periods=900, freq="D", calendar="360_day", use_cftime=True)
    splits = split_steps(on(time), DataConfig(validation_start="2002-02-30", test_start="2003-01-01"))
    assert splits.train == ((0, 360 + 59),)


@pytest.mark.parametrize("calendar", ["standard", "360_day"])
@pytest.mark.parametrize("date", ["soon", "2002-13-01", "2002-02-31"])
def test_a_date_that_is_none_is_refused(calendar, date):
    time = xr.date_range("2001-01-01", periods=900, freq="D", calendar=calendar, use_cftime=calendar != "standard")
    with pytest.raises(UserError, match=f"'{date}' is no date of the .* calendar"):
        split_steps(on(time), DataConfig(validation_start=date, test_start="2003-01-01"))


@pytest.mark.parametrize("dates", [("2003", "2002"), ("1990", "2002"), ("2002", "2030"), ("2001", "2002")])
def test_dates_out_of_order_or_outside_are_refused(dates):
    with pytest.raises(UserError, match=r"split of <memory> has \d+ steps, fewer than data.window"):
        split_steps(days(1000), DataConfig(validation_start=dates[0], test_start=dates[1]))


def test_dates_need_a_calendar():
    with pytest.raises(UserError, match=r"no calendar.*use data\.split"):
        split_steps(on(pd.RangeIndex(100)), DataConfig(validation_start="2001", test_start="2002"))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"context": 9, "window": 8}, "data.context must lie between 1 and data.window, got 9 and 8"),
        ({"split": (0.5, 0.2, 0.2)}, "sum to 1"),
        ({"split": (0.9, 0.0, 0.1)}, "three positive shares"),
        ({"test_start": "2001"}, "give both or neither"),
        ({"gap": -1}, "must not be negative"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**wrong)


# --- reading ----------------------------------------------------------------------------------------------------------


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
        held = sum(v.nbytes + (0 if o is None else o.nbytes) for v, o in reader._blocks.values())
        largest = max(largest, held)
    assert len(archive) * 16 * 32 * 5 > memory_mb * 2**20 / 3  # or the limit would mean nothing
    assert largest <= memory_mb * 2**20


@pytest.mark.parametrize("block, length", [(4, 3), (4, 5), (2, 8), (1, 6)])
def test_no_block_is_decoded_twice_while_its_windows_are_served(block, length):
    # `mixed` blocks and those that their windows reach into fit into the memory: within the group that is shuffled
    # together a block is decoded once.
    archive = days(240)
    reader = WindowReader(chunked(archive, block), identity(archive))
    reader.block, reader.capacity = block, 12
    mixed = reader.mixed(length)
    order = epoch_order(window_starts(archive, ((0, 240),), length), seed=0, epoch=0, block=block, mixed=mixed)
    loads: list[int] = []
    read = reader.normalizer.apply
    reader.normalizer = type("Counting", (), {"apply": lambda _, f, t: (loads.append(int(f.flat[0])), read(f, t))[1]})()
    for start in order[: mixed * block]:
        reader.read([start], length)
    assert len(loads) == len(set(loads))


def decoded_in_an_epoch(reader: WindowReader, length: int) -> list[tuple[int, int]]:
    """The ranges of steps that an epoch in batches of 4 reads from the storage."""
    archive, ranges = reader.archive, []
    read = reader._read
    reader._read = lambda start, stop: (ranges.append((start, stop)), read(start, stop))[1]
    starts = window_starts(archive, ((0, len(archive)),), length)
    order = epoch_order(starts, seed=0, epoch=0, block=reader.block, mixed=reader.mixed(length))
    for first in range(0, len(order), 4):
        reader.read(order[first : first + 4], length)
    return ranges


def test_only_the_first_chunk_of_a_block_is_decoded_twice():
    archive = days(480)
    reader = WindowReader(chunked(archive, 4), identity(archive))
    reader.block, reader.capacity = 24, 10
    ranges = decoded_in_an_epoch(reader, 4)
    assert {stop - start for start, stop in ranges} == {4, 20}
    steps = np.concatenate([np.arange(start, stop) for start, stop in ranges])
    counts = np.bincount(steps, minlength=480)
    assert counts.min() == 1 and (counts[np.arange(480) % 24 >= 4] == 1).all() and counts.max() <= 2


def test_an_archive_that_fits_is_decoded_once():
    archive = days(200)
    reader = WindowReader(chunked(archive, 4), identity(archive))
    reader.block, reader.capacity = 20, 10
    assert sorted(decoded_in_an_epoch(reader, 8)) == [(start, start + 20) for start in range(0, 200, 20)]


@pytest.mark.parametrize("missing", [0.0, 0.01])
def test_threads_are_invisible(monkeypatch, missing):
    archive = open_archive(travelling_waves(300, missing=missing))
    normalizer = fit_normalizer(archive, ((0, 300),))
    alone = WindowReader(archive, normalizer, threads=1).read(range(0, 290, 3), 6)
    monkeypatch.setattr("sciJEPA.loader.THREADED_BYTES", 0)
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

    def read(self, starts, length):
        self.count += 1
        if self.count > 2:
            raise UserError("the file is gone")
        return super().read(starts, length)


def failing() -> BatchStream:
    run = stream(days(42))
    return dataclasses.replace(run, reader=Failing(run.reader.archive, run.reader.normalizer))


def test_an_exception_in_the_thread_reaches_the_consumer_in_its_turn():
    received = []
    with pytest.raises(UserError, match="the file is gone"):
        for item in failing():
            received.append(item)
    assert len(received) == 2 and not threads()


@pytest.mark.parametrize("taken", [1, 3])
def test_no_thread_is_left_when_the_consumer_stops_early(taken):
    batches = iter(stream(days(42)))
    for _ in range(taken):
        next(batches)
    assert threads()
    batches.close()
    assert not threads()


def test_a_consumer_may_stop_while_an_exception_waits_for_room():
    # The first batch is taken, the next two fill the queue, and the fourth read fails.
    run = failing()
    run.reader.count = -1
    batches = iter(run)
    next(batches)
    deadline = time.monotonic() + 5
    while run.reader.count < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert run.reader.count == 3
    time.sleep(0.05)
    closer = threading.Thread(target=batches.close, daemon=True)
    closer.start()
    closer.join(5)
    assert not closer.is_alive() and not threads()
