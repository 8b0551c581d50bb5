import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciJEPA.errors import UserError
from sciJEPA.masking import STRATEGIES, Masker, MaskingConfig, TokenGrid, block_mask

GRID = TokenGrid(times=5, space=(6, 11), context_times=2, periodic=True)
PAST = 2 * 66
DISJOINT = sorted(set(STRATEGIES) - {"variable"})
"""Strategies that hide tokens, and not channels of them."""


def frequencies(name: str, grid: TokenGrid, config: MaskingConfig, share: float) -> np.ndarray:
    """How often each token was a target, over so many draws that max / min < 1.2 can be asked for.

    Every token is hidden with probability s = `share` in each of n draws, so a count has the standard deviation
    sqrt(n s (1 - s)) and max / min stays below 1 + 2 z sqrt((1 - s) / (n s)), with z = 4 in all but 1 of 16,000 tokens.
    For 1.2 that wants n = 1600 (1 - s) / s; 2000 leave a margin, and 1500 draws at least.
    """
    rng = np.random.default_rng(0)
    counts = np.zeros(grid.count)
    draws = max(1500, round(2000 * (1 - share) / share))
    for _ in range(draws):
        counts[STRATEGIES[name](grid, config, rng)[1]] += 1
    return counts


def test_context_and_target_share_no_token():
    plan = Masker(GRID, MaskingConfig(forecast=0, blocks=1))([0], epoch=0, step=0)
    assert not set(plan.context[0].tolist()) & set(plan.target[0].tolist())


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(DISJOINT),
    rows=st.integers(1, 7),
    columns=st.integers(2, 11),
    context_times=st.integers(1, 3),
    future=st.integers(1, 3),
    block=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    share=st.floats(0.01, 0.99),
    periodic=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_mask_has_its_exact_size_and_lies_in_range(
    name, rows, columns, context_times, future, block, share, periodic, seed
):
    grid = TokenGrid(context_times + future, (rows, columns), context_times, periodic)
    config = MaskingConfig(
        forecast_share=share, context_share=1 - share, hidden_share=share, block_rows=block[0], block_columns=block[1]
    )
    context, target = STRATEGIES[name](grid, config, np.random.default_rng(seed))
    past, ahead = context_times * rows * columns, future * rows * columns
    expected = {
        "forecast": (max(1, round((1 - share) * past)), max(1, round(share * ahead))),
        "random": (past - (hidden := min(max(1, round(share * past)), past - 1)), hidden),
        "blocks": (
            past - (tubes := context_times * min(max(1, round(share * rows * columns)), rows * columns - 1)),
            tubes,
        ),
    }[name]
    assert (len(context), len(target)) == expected
    both = np.concatenate([context, target])
    assert len(np.unique(both)) == len(both)
    assert both.min() >= 0 and both.max() < grid.count
    assert (np.diff(context) > 0).all() and (np.diff(target) > 0).all()
    if name == "forecast":
        assert context.max() < past <= target.min()
    else:  # hidden or visible: nothing of the issue window is lost, and nothing after it is seen
        assert set(both) == set(range(past))


def test_blocks_are_tubes_through_the_issue_window():
    _, target = block_mask(GRID, MaskingConfig(), np.random.default_rng(0))
    first, second = target.reshape(2, -1)
    np.testing.assert_array_equal(first + GRID.per_time, second)


def test_a_single_block_is_a_rectangle_that_wraps_around():
    # Six places of a 6 x 11 grid, drawn as one rectangle of 2 x 3, are two neighbouring rows and three neighbouring
    # columns of the circle: rolling the grid by the first column of the rectangle brings it to columns 0, 1, 2.
    config = MaskingConfig(hidden_share=6 / 66, block_rows=2, block_columns=3)
    torn = 0
    for seed in range(100):
        _, target = block_mask(GRID, config, np.random.default_rng(seed))
        hidden = np.zeros((6, 11), dtype=bool)
        hidden.ravel()[target[:6]] = True
        columns = np.flatnonzero(hidden.any(axis=0))
        torn += columns[-1] - columns[0] > 2
        starts = [c for c in columns if (c - 1) % 11 not in columns]
        assert len(starts) == 1
        rolled = np.roll(hidden, -starts[0], axis=1)
        assert rolled[:, :3].sum() == 6 and (rolled[:, :3].sum(axis=0) == 2).all()
    # A rectangle of three columns starts at columns 9 and 10 in 2 of 11 draws: 18 of 100, standard deviation 4.
    assert 6 <= torn <= 30


@pytest.mark.parametrize(
    "rows, columns, periodic", [(6, 11, True), (6, 11, False), (4, 8, True), (1, 9, False), (5, 2, False)]
)
@pytest.mark.parametrize("block", [(2, 2), (3, 4), (4, 8)])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_blocks_hide_every_place_equally_often(rows, columns, periodic, block, share):
    # At walls and seams too: (4, 8) on 6 x 11 had a ratio of 1.6 while rectangles were cut at the walls.
    grid = TokenGrid(2, (rows, columns), 1, periodic)
    config = MaskingConfig(hidden_share=share, block_rows=block[0], block_columns=block[1])
    hidden = max(1, round(share * rows * columns)) / (rows * columns)
    counts = frequencies("blocks", grid, config, hidden)[: grid.per_time]
    assert counts.max() / counts.min() < 1.2


@pytest.mark.parametrize("rows, columns", [(6, 11), (4, 8)])
def test_random_hides_every_token_of_the_issue_window_equally_often(rows, columns):
    grid = TokenGrid(5, (rows, columns), 2)
    counts = frequencies("random", grid, MaskingConfig(hidden_share=0.4), 0.4)[: 2 * grid.per_time]
    assert counts.max() / counts.min() < 1.2


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_forecast_asks_for_every_future_token_equally_often(share):
    # The last rows and the latest times are not starved.
    counts = frequencies("forecast", GRID, MaskingConfig(forecast_share=share), share)
    assert (counts[:PAST] == 0).all()
    assert counts[PAST:].max() / counts[PAST:].min() < 1.2


def test_forecast_shows_every_token_of_the_issue_window_equally_often():
    # n = 2000 at s = 1/2, as derived in `frequencies`.
    plan = Masker(GRID, MaskingConfig(blocks=0, context_share=0.5))(range(2000), epoch=0, step=0)
    assert plan.context.shape == (2000, PAST // 2) and plan.target.shape == (2000, GRID.count - PAST)
    counts = np.bincount(plan.context.ravel().numpy(), minlength=PAST)
    assert counts.max() / counts.min() < 1.2


def test_consecutive_sample_numbers_as_seeds_are_as_even():
    # As in a run: the sample number is the seed. n = 2000 at s = 1/2, as derived in `frequencies`.
    plan = Masker(GRID, MaskingConfig(forecast=0, blocks=1))(range(2000), epoch=3, step=0)
    counts = np.bincount(plan.target.ravel().numpy(), minlength=PAST)
    assert counts.max() / counts.min() < 1.2


def test_a_mask_depends_on_seed_epoch_and_sample_alone():
    masker = Masker(GRID, MaskingConfig(forecast=0, blocks=1), seed=5)
    batch = masker([3, 1, 8, 40], epoch=2, step=7)
    shuffled = masker([40, 8, 1], epoch=2, step=900)
    assert torch.equal(batch.target[[3, 2, 1]], shuffled.target)
    assert torch.equal(batch.context[[3, 2, 1]], shuffled.context)
    for other in (
        masker([3, 1, 8, 40], epoch=3, step=7),
        Masker(GRID, MaskingConfig(forecast=0, blocks=1), seed=6)([3, 1, 8, 40], epoch=2, step=7),
    ):
        assert (batch.target != other.target).any(dim=1).all()
    assert len({tuple(row) for row in masker(range(100), epoch=0, step=0).target.tolist()}) == 100


def test_numpy_and_python_sample_numbers_mean_the_same():
    masker = Masker(GRID, MaskingConfig(forecast=0, blocks=1))
    plain, numbers = masker([7, 9], epoch=0, step=0), masker(list(np.array([7, 9])), epoch=0, step=0)
    assert torch.equal(plain.target, numbers.target)


def test_strategies_follow_their_weights():
    # 3 to 1: 1500 of 2000 batches, standard deviation sqrt(2000 * 3/16) = 19.
    masker = Masker(GRID, MaskingConfig(forecast=3, blocks=1))
    names = [masker.strategy(step) for step in range(2000)]
    assert abs(names.count("forecast") - 1500) < 80
    assert set(names) == {"forecast", "blocks"}
    assert names[:5] == [Masker(GRID, masker.config).strategy(step) for step in range(5)]


def test_mixture_drops_what_is_off():
    assert MaskingConfig(forecast=0, blocks=2, random=2).mixture == {"blocks": 0.5, "random": 0.5}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"forecast": 0, "blocks": 0}, "set one of them to 1"),
        ({"forecast": -1}, "at least zero"),
        ({"hidden_share": 1.0}, "masking.hidden_share"),
        ({"forecast_share": 0.0}, "masking.forecast_share"),
        ({"context_share": 1.1}, "masking.context_share"),
        ({"block_rows": 0}, "0 x 2"),
        ({"points": 1.0}, "masking.points"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        MaskingConfig(**wrong)


@pytest.mark.parametrize(
    "grid, config, message",
    [
        (TokenGrid(2, (3, 4), 2), MaskingConfig(), "make data.window longer"),
        (TokenGrid(2, (1, 1), 1), MaskingConfig(blocks=1), "masking.blocks"),
        (TokenGrid(2, (1, 1), 1), MaskingConfig(blocks=0, random=1), "masking.random"),
    ],
)
def test_a_grid_too_small_for_a_strategy_is_refused(grid, config, message):
    with pytest.raises(UserError, match=message):
        Masker(grid, config)


# --- spaces of any number of dimensions, and without an order

SPACES = [
    TokenGrid(3, (12,), 2),
    TokenGrid(3, (12,), 2, periodic=True),
    TokenGrid(3, (3, 4, 5), 2),
    TokenGrid(2, (2, 3, 2, 3), 1),
    TokenGrid(3, (13,), 2, ordered=False),
    TokenGrid(3, (4, 5), 2, ordered=False),
]


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(DISJOINT),
    space=st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple).filter(lambda space: np.prod(space) > 1),
    ordered=st.booleans(),
    block=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_masks_of_any_space_have_their_exact_size(name, space, ordered, block, share, seed):
    grid, places = TokenGrid(3, space, 2, ordered=ordered), int(np.prod(space))
    config = MaskingConfig(hidden_share=share, block_rows=block[0], block_columns=block[1])
    context, target = STRATEGIES[name](grid, config, np.random.default_rng(seed))
    hidden = {
        "forecast": places,
        "random": min(max(1, round(share * 2 * places)), 2 * places - 1),
        "blocks": 2 * min(max(1, round(share * places)), places - 1),
    }[name]
    assert len(target) == hidden
    assert len(context) == 2 * places - (0 if name == "forecast" else hidden)
    assert len(set(context) | set(target)) == len(context) + len(target)
    assert max(context) < 2 * places and max(target) < grid.count


@pytest.mark.parametrize("grid", SPACES, ids=str)
@pytest.mark.parametrize("block", [(1, 1), (2, 3)])
def test_blocks_of_any_space_hide_every_place_equally_often(grid, block):
    config = MaskingConfig(hidden_share=0.4, block_rows=block[0], block_columns=block[1])
    hidden = round(0.4 * grid.per_time) / grid.per_time
    counts = frequencies("blocks", grid, config, hidden)[: grid.per_time]
    assert counts.max() / counts.min() < 1.2


def test_a_block_in_three_dimensions_is_a_box():
    # One box of 2 x 2 x 3 of 4 x 4 x 5 places: rolled to the origin it fills the first 2, 2 and 3 places of each axis.
    config = MaskingConfig(hidden_share=12 / 80, block_rows=2, block_columns=3)
    for seed in range(30):
        _, target = block_mask(TokenGrid(1, (4, 4, 5), 1), config, np.random.default_rng(seed))
        hidden = np.zeros((4, 4, 5), dtype=bool)
        hidden.ravel()[target] = True
        for axis, size in enumerate(hidden.shape):
            others = tuple(other for other in range(3) if other != axis)
            inside = hidden.any(axis=others)
            (start,) = [place for place in np.flatnonzero(inside) if not inside[place - 1]]
            hidden = np.roll(hidden, -start, axis=axis)
            assert hidden.any(axis=others).tolist() == [place < (2, 2, 3)[axis] for place in range(size)]
        assert hidden[:2, :2, :3].all()


def test_a_block_in_one_dimension_is_a_run_of_neighbours():
    config = MaskingConfig(hidden_share=3 / 10, block_rows=1, block_columns=3)
    for seed in range(30):
        _, target = block_mask(TokenGrid(1, (10,), 1), config, np.random.default_rng(seed))
        assert any(set(target) == {(start + step) % 10 for step in range(3)} for start in range(10))


def test_places_without_an_order_know_no_neighbours():
    # Of all pairs of 10 places, 10 of 45 are neighbours on the circle. Hidden pairs are: in n = 2000 draws
    # 2000 * 10 / 45 = 444 of them, standard deviation sqrt(444 * 35 / 45) = 19. With an order all of them are.
    grid = TokenGrid(1, (10,), 1, ordered=False)
    config = MaskingConfig(hidden_share=0.2, block_rows=2, block_columns=2)
    pairs = [block_mask(grid, config, np.random.default_rng(seed))[1] for seed in range(2000)]
    neighbours = sum(int((last - first) in (1, 9)) for first, last in pairs)
    assert abs(neighbours - 444) < 80
    one_by_one = MaskingConfig(hidden_share=0.2, block_rows=1, block_columns=1)
    for seed in range(20):
        np.testing.assert_array_equal(block_mask(grid, one_by_one, np.random.default_rng(seed))[1], pairs[seed])


# --- horizons and channels


def test_horizons_choose_the_times_that_are_asked_for():
    # 5 times, 2 of them in the issue window: steps 1 and 3 ahead are times 2 and 4.
    plan = Masker(GRID, MaskingConfig(horizons=(3, 1)))([0, 7], epoch=0, step=0)
    assert plan.context.tolist() == [list(range(PAST))] * 2
    assert plan.target.tolist() == [[*range(2 * 66, 3 * 66), *range(4 * 66, 5 * 66)]] * 2
    assert torch.equal(
        Masker(GRID, MaskingConfig(horizons=(1, 2, 3)))([0], epoch=0, step=0).target,
        Masker(GRID, MaskingConfig())([0], epoch=0, step=0).target,
    )


def test_tokens_at_chosen_horizons_are_asked_for_equally_often():
    counts = frequencies("forecast", GRID, MaskingConfig(forecast_share=0.3, horizons=(1, 3)), 0.3)
    asked = np.r_[2 * 66 : 3 * 66, 4 * 66 : 5 * 66]
    assert counts[asked].max() / counts[asked].min() < 1.2
    assert counts.sum() == counts[asked].sum()


@pytest.mark.parametrize("horizons", [(0,), (2, 2)])
def test_impossible_horizons_are_refused(horizons):
    with pytest.raises(UserError, match="horizons must be different numbers of at least 1"):
        MaskingConfig(horizons=horizons)


def test_a_horizon_beyond_the_window_is_refused():
    with pytest.raises(UserError, match=r"token step 4 after the issue window, but the window has 3"):
        Masker(GRID, MaskingConfig(horizons=(1, 4)))


def test_variable_hides_channels_of_the_whole_issue_window():
    masker = Masker(GRID, MaskingConfig(forecast=0, variable=1, hidden_share=0.4), channels=5)
    plan = masker([3, 4], epoch=0, step=0)
    assert plan.context.tolist() == plan.target.tolist() == [list(range(PAST))] * 2
    assert plan.channels is not None and len(plan.channels) == 3  # 2 of 5 are hidden
    assert plan.channels == masker([9], epoch=4, step=0).channels
    assert len({masker([0], epoch=0, step=step).channels for step in range(50)}) > 5  # of 10
    assert plan.to("cpu").channels == plan.channels
    assert Masker(GRID, MaskingConfig(), channels=5)([0], epoch=0, step=0).channels is None


@pytest.mark.parametrize("share, hidden", [(0.1, 1), (0.5, 2), (0.99, 3)])
def test_variable_hides_every_channel_equally_often(share, hidden):
    # Some channel is always hidden and another shown. n draws as derived in `frequencies`, with s = hidden / 4.
    masker = Masker(GRID, MaskingConfig(forecast=0, variable=1, hidden_share=share), channels=4)
    part = hidden / 4
    draws = max(1500, round(2000 * (1 - part) / part))
    shown = [masker._shown(step) for step in range(draws)]
    assert {len(channels) for channels in shown} == {4 - hidden}
    counts = draws - np.bincount(np.concatenate(shown), minlength=4)
    assert counts.max() / counts.min() < 1.2


def test_a_token_of_one_channel_has_none_to_hide():
    with pytest.raises(UserError, match="a token has one channel"):
        Masker(GRID, MaskingConfig(variable=1))


# --- single values ----------------------------------------------------------------------------------------------------

SHAPE = (400, 3, 10, 4)
"""Windows of 3 channels, 10 steps and 4 stations, of which GRID's 2 of 5 times are steps 0 to 3."""


def test_no_value_is_hidden_by_default():
    assert Masker(GRID)(range(2), epoch=0, step=0).context.shape == (2, PAST)
    assert Masker(GRID).points((2, *SHAPE[1:]), range(2), epoch=0) is None


def test_values_are_hidden_in_the_issue_window_alone_and_equally_often():
    # A window's share is uniform in [0, 0.8]: 0.4 +- 0.8 / sqrt(12) / sqrt(400) = 0.012 on average over 400 windows. A
    # value is hidden in 0.4 of them, with a deviation of sqrt(0.24 / 400) = 0.025, so all 48 lie within 0.3 and 0.5.
    hidden = Masker(GRID, MaskingConfig(points=0.8)).points(SHAPE, range(SHAPE[0]), epoch=0)
    assert hidden is not None and hidden.shape == SHAPE and not hidden[:, :, 4:].any()
    often = hidden[:, :, :4].float().mean(dim=0)
    assert often.min() > 0.3 and often.max() < 0.5 and abs(often.mean() - 0.4) < 0.05
    share = hidden[:, :, :4].float().mean(dim=(1, 2, 3))  # of 48 values, so within 0.2 of what was drawn
    assert share.min() < 0.1 and 0.7 < share.max() < 1.0 and share.std() > 0.2


def test_hidden_values_depend_on_seed_epoch_and_sample_alone():
    masker = Masker(GRID, MaskingConfig(points=0.8), seed=5)
    first, second = masker.points(SHAPE, range(400), epoch=2), masker.points(SHAPE, range(399, -1, -1), epoch=2)
    assert first is not None and second is not None and torch.equal(first, second.flip(0))
    for other in (
        masker.points(SHAPE, range(400), epoch=3),
        Masker(GRID, masker.config).points(SHAPE, range(400), epoch=2),
    ):
        assert other is not None and not torch.equal(first, other)
