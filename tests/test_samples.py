import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sciJEPA.archive import Archive, open_archive
from sciJEPA.errors import UserError
from sciJEPA.samples import DataConfig, contiguous, epoch_order, series_named, split_steps, window_starts


def on(time: pd.Index) -> Archive:
    """An archive that has its step numbers as values: step t is t everywhere."""
    coords = {"time": time, "latitude": [30.0, 0.0, -30.0], "longitude": [0.0, 90.0, 180.0, 270.0]}
    field = np.broadcast_to(np.arange(len(time), dtype=np.float32)[:, None, None], (len(time), 3, 4))
    return open_archive(xr.DataArray(field, coords, ("time", "latitude", "longitude"), name="z"))


def days(count: int, missing: tuple[int, ...] = ()) -> Archive:
    """Daily steps, some of which are not there."""
    dates = pd.date_range("2001-01-01", periods=count + len(missing), freq="D")
    return on(dates.delete([n for n in missing]))


# --- windows ----------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("mixed, length", [(2, 1), (5, 1), (12, 4), (12, 11), (12, 25), (32, 4)])
def test_few_blocks_are_needed_at_a_time(mixed, length):
    # A block is held from the first window that needs it to the last one.
    starts = np.arange(1000)
    order = epoch_order(starts, seed=0, epoch=0, block=10, mixed=mixed, length=length)
    needed = np.stack([(order + step) // 10 for step in range(length)])
    held = np.zeros(len(order) + 1)
    for number in np.unique(needed):
        when = np.flatnonzero((needed == number).any(axis=0))
        held[when[0]] += 1
        held[when[-1] + 1] -= 1
    assert held.cumsum().max() <= mixed


@pytest.mark.parametrize(
    "count, block, mixed", [(2000, 20, 16), (1990, 20, 16), (500, 1, 8), (3000, 100, 12), (9984, 32, 60)]
)
def test_groups_drift_through_time_no_more_than_chance(count, block, mixed):
    # Blocks in plain random order would have a standard deviation of 1 / sqrt(blocks): 0.1 for 100 of them.
    correlations = []
    for epoch in range(8):
        order = epoch_order(np.arange(count), seed=0, epoch=epoch, block=block, mixed=mixed)
        correlations.append(abs(np.corrcoef(np.arange(count), order)[0, 1]))
        groups = [np.unique(order[first : first + 32] // block) for first in range(0, count - 32, 32)]
        assert min(len(group) for group in groups) >= min(8, mixed // 3)
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


def test_the_order_in_which_parameters_are_stored_moves_no_trajectory() -> None:
    rng = np.random.default_rng(0)
    flow = xr.Dataset(
        {
            "u": (("trajectory", "time", "x"), rng.normal(size=(20, 6, 8)).astype(np.float32)),
            "viscosity": ("trajectory", rng.permutation(20) / 10),
            "drag": ("trajectory", rng.permutation(20) / 10),
        },
        {"time": np.arange(6), "x": np.linspace(0, 1, 8, endpoint=False)},
        {"boundary": "periodic in x"},
    )
    one, other = (split_steps(open_archive(flow[names]), DataConfig(window=2, context=1))
                  for names in (["u", "viscosity", "drag"], ["drag", "u", "viscosity"]))  # fmt: skip
    assert one == other
    archive = open_archive(flow)
    named = series_named(archive, one.train)
    assert len(named) == len(one.train) == 14
    first = one.train[0][0] // 6
    assert named[0] == f"drag {flow.drag.values[first]:.6g}, viscosity {flow.viscosity.values[first]:.6g}"
    assert series_named(open_archive(flow[["u"]]), one.train) == ()  # nothing to know them by
