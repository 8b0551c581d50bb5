import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sciJEPA.archive import open_archive
from sciJEPA.config import config_from_dict
from sciJEPA.errors import UserError
from sciJEPA.masking import Masker, MaskingConfig
from sciJEPA.positions import AXIS_WIDTH
from sciJEPA.tokenizers.base import Batch, Tokenizer, Tokens, parameter_name
from sciJEPA.tokenizers.convolution import ConvolutionalEmbedding
from sciJEPA.tokenizers.simulation import (
    SLOT_WIDTH,
    SimulationSpec,
    SimulationTokenizer,
    SimulationTokenizerConfig,
)

AROUND, WALLS, OPEN = ("periodic", "periodic"), ("wall", "wall"), ("open", "open")


def make(
    *shape: int,
    sides: tuple[tuple[str, str], ...] | None = None,
    coordinates: tuple[tuple[float, ...], ...] | None = None,
    channels: tuple[str, ...] = ("velocity_x", "p"),
    window: int = 6,
    context: int = 4,
    fields: dict | None = None,
    **config,
) -> SimulationTokenizer:
    """A box of side 1 in cells whose centres lie half a cell inside."""
    spec = SimulationSpec(
        channels=channels,
        dims=("x", "y", "z")[: len(shape)],
        coordinates=coordinates or tuple(tuple(((np.arange(n) + 0.5) / n).tolist()) for n in shape),
        sides=sides or (AROUND,) * len(shape),
        cadence=0.5,
        window=window,
        context=context,
        **(fields or {}),
    )
    return SimulationTokenizerConfig(**config).build(spec)


def batch(tokenizer: SimulationTokenizer, size: int = 2, *, missing: float = 0.0, steps: int | None = None) -> Batch:
    spec = tokenizer.spec
    steps = steps or spec.window
    torch.manual_seed(0)
    values = torch.randn(size, len(spec.channels), steps, *spec.shape)
    observed = torch.rand(values.shape) >= missing if missing else None
    if observed is not None:
        values = values * observed
    return Batch(values, observed, torch.rand(size, steps, 4), torch.arange(size))


SHAPES = [
    ((16,), {"patch": 4}),
    ((16,), {"patch": (16,), "patch_time": 2}),
    ((13,), {"patch": 4, "pad": True}),
    ((8, 12), {"patch": 4, "patch_time": 2}),
    ((8, 12), {"patch": (2, 3)}),
    ((7, 10), {"patch": (3, 4), "patch_time": 2, "pad": True}),
    ((8, 8, 8), {"patch": 4}),
    ((4, 6, 8), {"patch": (2, 3, 4), "patch_time": 2}),
    ((5, 6, 7), {"patch": (2, 4, 3), "pad": True}),
]


@pytest.mark.parametrize("shape, config", SHAPES)
def test_unpatchify_is_the_exact_inverse_of_patchify(shape, config):
    tokenizer = make(*shape, **config)
    values = batch(tokenizer).values
    patches = tokenizer.patchify(values)
    assert patches.shape == (2, tokenizer.grid.count, 2, tokenizer.patch_size)
    assert torch.equal(tokenizer.unpatchify(patches), values)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3), st.sampled_from([1, 2]))
def test_the_way_back_is_exact_for_any_box_and_patch(sizes, patch_time):
    shape, patch = (tuple(part) for part in zip(*((max(pair), min(pair)) for pair in sizes), strict=True))
    tokenizer = make(*shape, patch=patch, patch_time=patch_time, pad=True)
    values = batch(tokenizer).values
    tokens = tokenizer(batch(tokenizer))
    assert torch.equal(tokenizer.unpatchify(tokens.values), values)
    assert tokenizer.embedding(8)(tokens).shape == (2, tokenizer.grid.count, 8)


def test_a_simulation_tokenizer_keeps_the_contract():
    assert isinstance(make(16), Tokenizer)


def test_tokens_are_numbered_by_time_then_as_in_an_array():
    # 4 x 6 x 8 in patches of 2 x 3 x 4 and tubelets of 2: 2 x 2 x 2. Token 8 + 5 is time 1, x 1, y 0, z 1.
    tokenizer = make(4, 6, 8, patch=(2, 3, 4), patch_time=2)
    values = batch(tokenizer).values
    assert torch.equal(tokenizer.patchify(values)[:, 13], values[:, :, 2:4, 2:4, 0:3, 4:8].flatten(2))


@pytest.mark.parametrize("shape, config", SHAPES)
def test_an_issue_window_without_its_future_gives_the_first_tokens(shape, config):
    tokenizer = make(*shape, **config)
    whole = batch(tokenizer, missing=0.1)
    assert whole.observed is not None
    issue = Batch(whole.values[:, :, :4], whole.observed[:, :, :4], whole.calendar[:, :4], whole.samples)
    long, short = tokenizer(whole), tokenizer(issue)
    past = tokenizer.grid.context_times * tokenizer.grid.per_time
    assert long.features.shape == (2, tokenizer.grid.count, tokenizer.feature_width)
    assert torch.equal(long.features[:, :past], short.features)
    assert torch.equal(long.values[:, :past], short.values)


def test_nothing_missing_needs_no_mask_but_padding_does():
    assert make(16)(batch(make(16))).observed is None
    # 13 cells in patches of 4: the last patch has seen 1 of its 4.
    tokenizer = make(13, patch=4, pad=True)
    weight = tokenizer(batch(tokenizer)).weight
    assert weight is not None
    assert weight[0, :4].tolist() == [1, 1, 1, 0.25]


# --- what does not suit -----------------------------------------------------------------------------------------------


def test_a_patch_that_does_not_divide_names_sizes_that_do():
    with pytest.raises(UserError, match=r"patch of 5 does not divide the 12 cells along y; use one of \[1, 2, 3, 4, 6"):
        make(10, 12, patch=5)
    with pytest.raises(UserError, match=r"larger than the box, which has 6 cells along x"):
        make(6, 12, patch=8, pad=True)
    with pytest.raises(UserError, match=r"has 3 numbers, but the box has the dimensions x, y; give one number"):
        make(8, 8, patch=(2, 2, 2))
    with pytest.raises(UserError, match=r"patch_time of 4 does not divide data.window of 6 steps; use one of \[1, 2\]"):
        make(16, patch_time=4)


@pytest.mark.parametrize("change", [{"patch": 0}, {"patch": ()}, {"patch": (8, 0)}, {"patch_time": 0}, {"stem": "x"}])
def test_a_configuration_without_sense_is_refused(change):
    with pytest.raises(UserError, match=r"must be"):
        SimulationTokenizerConfig(**change)


@pytest.mark.parametrize("patch", [16, [16], [8, 16]])
def test_a_preset_may_give_one_patch_or_one_for_each_dimension(patch):
    config = config_from_dict({"tokenizer": {"kind": "simulation", "patch": patch}}).tokenizer
    assert config == SimulationTokenizerConfig(patch=tuple(patch) if isinstance(patch, list) else patch)


# --- geometry ---------------------------------------------------------------------------------------------------------


def test_centres_shares_and_times_under_the_dimensions_own_names():
    # 16 cells of 1/16 in patches of 4 have their centres at 1/8, 3/8, 5/8, 7/8; 2 rows of y at 1/4 and 3/4. Tubelets of
    # 2 of 6 steps of half an hour, 4 of them in the issue window, end 1 hour before, at and 1 hour after its end.
    tokenizer = make(16, 8, patch=4, patch_time=2, fields={"units": ("m", "")})
    geometry = tokenizer.geometry
    assert list(geometry.coordinates) == ["x", "y"]
    assert geometry.coordinates["x"][1] == {"units": "m"} and geometry.coordinates["y"][1] == {}
    np.testing.assert_allclose(geometry.coordinates["x"][0], np.tile(np.repeat([1 / 8, 3 / 8, 5 / 8, 7 / 8], 2), 3))
    np.testing.assert_allclose(geometry.coordinates["y"][0], np.tile([1 / 4, 3 / 4], 12))
    np.testing.assert_allclose(geometry.area, 1 / 8)
    np.testing.assert_array_equal(geometry.offset, np.repeat([-1.0, 0.0, 1.0], 8))


def test_shares_follow_the_spacing_and_leave_padding_out():
    # Centres 0, 1, 3, 7: cells of 1, 1.5, 3, 4, from middle to middle; outer cells are as wide as their spacing.
    tokenizer = make(4, coordinates=((0.0, 1.0, 3.0, 7.0),), sides=(WALLS,), patch=3, pad=True)
    np.testing.assert_allclose(tokenizer.geometry.area[:2], [5.5 / 9.5, 4 / 9.5])
    np.testing.assert_allclose(tokenizer.geometry.coordinates["x"][0][:2], [4 / 3, 7])


@pytest.mark.parametrize("shape, config", SHAPES)
def test_shares_of_the_volume_sum_to_one_at_every_time(shape, config):
    tokenizer = make(*shape, **config)
    np.testing.assert_allclose(tokenizer.geometry.area.reshape(tokenizer.grid.times, -1).sum(axis=1), 1)


def test_the_last_dimension_closes_a_circle_where_its_sides_and_patches_do():
    assert make(8, 8, sides=(WALLS, AROUND)).grid.periodic
    assert not make(8, 8, sides=(AROUND, WALLS)).grid.periodic
    assert not make(8, 12, pad=True).grid.periodic


# --- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rolling_a_periodic_box_by_whole_patches_permutes_the_tokens(axis):
    # The box that begins a patch later along one dimension holds the same world, its tokens in another order.
    shape, patch = (8, 12, 6), (4, 3, 2)
    plain = make(*shape, patch=patch)
    shifted = list(plain.spec.coordinates)
    shifted[axis] = tuple(value + patch[axis] / shape[axis] for value in shifted[axis])
    rolled = make(*shape, patch=patch, coordinates=tuple(shifted))
    first = batch(plain, missing=0.2)
    assert first.observed is not None
    second = replace(
        first,
        values=first.values.roll(-patch[axis], 3 + axis),
        observed=first.observed.roll(-patch[axis], 3 + axis),
    )
    numbers = torch.arange(plain.grid.count).reshape(plain.grid.times, *plain.grid.space).roll(-1, 1 + axis).flatten()
    expected, got = plain(first).take(numbers.expand(2, -1)), rolled(second)
    assert torch.equal(expected.values, got.values)
    assert expected.observed is not None and got.observed is not None
    assert torch.equal(expected.observed, got.observed)
    torch.testing.assert_close(expected.features, got.features, atol=1e-5, rtol=0)


def test_walls_open_ends_and_circles_look_different():
    features = [make(16, sides=(sides,))._place for sides in (AROUND, WALLS, OPEN, ("wall", "open"))]
    for number, one in enumerate(features):
        for other in features[:number]:
            assert (one - other).abs().amax(dim=1).min() > 0.5  # at every token


def test_a_side_is_known_by_its_kind_and_distance():
    # 4 patches between a wall and an open end: centres at 1/8, 3/8, 5/8, 7/8; patches of 1/4, cells of 1/16.
    slot = make(16, patch=4, sides=(("wall", "open"),))._place[:4, :SLOT_WIDTH]
    place = torch.tensor([1 / 8, 3 / 8, 5 / 8, 7 / 8])
    ones, zeros = torch.ones(4), torch.zeros(4)
    sizes = [torch.full((4,), np.log(share)) for share in (1 / 4, 1 / 16)]
    expected = torch.stack([ones, zeros, place, zeros, ones, 1 - place, *sizes], dim=-1)
    torch.testing.assert_close(slot[:, AXIS_WIDTH:], expected)


def test_a_box_read_from_its_other_end_has_the_same_positions():
    up = make(16, patch=4, sides=(("wall", "open"),))
    down = make(16, patch=4, coordinates=(up.spec.coordinates[0][::-1],), sides=(("open", "wall"),))
    torch.testing.assert_close(up._place[:4], down._place[:4].flip(0))


def test_dimensions_that_a_box_lacks_are_zero():
    line, plane, cube = make(8)._place, make(8, 8)._place, make(8, 8, 8)._place
    assert line.shape[-1] == plane.shape[-1] == cube.shape[-1]
    assert (line[:, SLOT_WIDTH : 3 * SLOT_WIDTH] == 0).all()
    assert (plane[:, 2 * SLOT_WIDTH : 3 * SLOT_WIDTH] == 0).all()
    torch.testing.assert_close(line[:, :SLOT_WIDTH], cube[:, :SLOT_WIDTH])


def test_position_does_not_depend_on_resolution():
    # The same patches in twice as many cells: only the size of a cell differs, by log 2.
    for sides in (AROUND, WALLS):
        coarse, fine = make(32, sides=(sides,), patch=8), make(64, sides=(sides,), patch=16)
        difference = coarse._place - fine._place
        torch.testing.assert_close(difference[:, SLOT_WIDTH - 1], torch.full((24,), np.log(2)))
        difference[:, SLOT_WIDTH - 1] = 0
        assert difference.abs().max() < 1e-5


def test_twice_the_resolution_meets_the_same_weights_with_more_tokens():
    coarse, fine = make(16, 16, patch=8), make(32, 32, patch=8)
    assert (coarse.patch_size, coarse.feature_width) == (fine.patch_size, fine.feature_width)
    embedding, other = coarse.embedding(16), fine.embedding(16)
    other.load_state_dict(embedding.state_dict())
    assert other(fine(batch(fine))).shape == (2, 4 * coarse.grid.count, 16)
    # Between two fine tokens of 1/4 each, centred at 1/8 and 3/8, lies the coarse one at 1/4: the lowest octave, an
    # angle of 2 pi u, brackets it.
    sine = [tokenizer._place[:, 0].unique() for tokenizer in (coarse, fine)]
    torch.testing.assert_close(sine[0], torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(sine[1].abs(), torch.full_like(sine[1], 0.5**0.5), atol=1e-6, rtol=0)


def test_time_counts_in_steps_of_stated_length():
    plain, slow = make(16), make(16)
    slow = SimulationTokenizer(slow.config, replace(slow.spec, cadence=50.0))
    torch.testing.assert_close(slow._place[:, :-1], plain._place[:, :-1])
    torch.testing.assert_close(slow._place[:, -1] - plain._place[:, -1], torch.full((12,), 2.0))  # 50 / 0.5 = 10**2
    single = SimulationTokenizer(plain.config, replace(plain.spec, cadence=float("nan")))
    assert single._place.isfinite().all()


def test_neighbours_differ_in_a_long_box():
    features = make(512, sides=(WALLS,))._place[:64]
    assert torch.pdist(features).min() > 0.5


# --- parameters -------------------------------------------------------------------------------------------------------


def test_parameters_are_features_of_every_token_of_their_trajectory():
    # Values 1 and 3: mean 2, deviation 1. Series of 10 steps: windows from 0 and 9 are of the first, 10 of the second.
    fields = {
        "steps": 10,
        "parameters": ("nu", "f"),
        "parameter_values": ((1.0, 3.0), (0.01, 1.0)),
        "parameter_scales": ((False, 2.0, 1.0), (True, -1.0, 1.0)),
    }
    tokenizer = make(16, fields=fields)
    data = replace(batch(tokenizer, 3), samples=torch.tensor([0, 9, 10]))
    known = tokenizer(data).features[..., -2:]
    assert tokenizer.feature_width == make(16).feature_width + 2
    expected = torch.tensor([[-1.0, -1.0], [-1.0, -1.0], [1.0, 1.0]])
    torch.testing.assert_close(known, expected[:, None].expand_as(known))


def simulations(dims: tuple[str, ...] = ("x", "y"), size: int = 8, **coordinates) -> xr.Dataset:
    """Three trajectories of 12 steps."""
    shape = (3, 12, *(size for _ in dims))
    rng = np.random.default_rng(0)
    fields = {n: (("trajectory", "time", *dims), rng.normal(size=shape).astype("float32")) for n in ("u", "p")}
    coords = {dim: (dim, np.arange(size) / size, {"units": "m"}) for dim in dims} | {"time": np.arange(12) * 0.25}
    sides = {dim: ["periodic", "periodic"] for dim in dims[:-1]} | {dims[-1]: ["wall", "open"]}
    return xr.Dataset(fields, coords | coordinates, {"boundary_conditions": json.dumps(sides)})


def test_an_archive_is_described_by_plain_values_that_come_back():
    ds = simulations(viscosity=("trajectory", [0.001, 0.01, 0.1]), forcing=("trajectory", [1.0, 2.0, 3.0]))
    config = SimulationTokenizerConfig(patch=4, parameters=("viscosity", "forcing"))
    spec = config.describe(open_archive(ds), 6, 4)
    assert (spec.channels, spec.dims, spec.shape, spec.units) == (("u", "p"), ("x", "y"), (8, 8), ("m", "m"))
    assert spec.sides == (AROUND, ("wall", "open")) and spec.steps == 12
    # Over more than a decade: logarithms -3, -2, -1 of deviation sqrt(2/3). 1, 2, 3 stay as they are.
    assert [scale[0] for scale in spec.parameter_scales] == [True, False]
    np.testing.assert_allclose([scale[1:] for scale in spec.parameter_scales], [[-2, 1.5**-0.5], [2, 1.5**-0.5]])
    assert config.restore(json.loads(json.dumps(asdict(spec)))) == spec
    assert config.build(spec).grid.space == (2, 2)


@pytest.mark.parametrize("dims", [("x",), ("x", "y"), ("x", "y", "z")])
def test_windows_of_an_archive_become_tokens_and_masks(dims):
    archive = open_archive(simulations(dims))
    tokenizer = SimulationTokenizerConfig(patch=4).build(SimulationTokenizerConfig().describe(archive, 6, 4))
    values = torch.from_numpy(np.stack([archive.read(start, start + 6) for start in (0, 12)])).transpose(1, 2)
    tokens = tokenizer(Batch(values, None, torch.zeros(2, 6, 4), torch.tensor([0, 12])))
    assert torch.equal(tokenizer.unpatchify(tokens.values), values)
    masking = MaskingConfig(forecast=0, blocks=1, block_rows=1, block_columns=1)
    plan = Masker(tokenizer.grid, masking)([0, 12], epoch=0, step=0)
    assert tokenizer.embedding(8)(tokens.take(plan.context)).shape == (2, 4 * 2 ** len(dims) // 2, 8)


def test_a_series_of_several_dimensions_keeps_parameters_with_their_steps():
    # (member, trajectory) = (2, 3): series 4 is member 1, trajectory 1. The parameter varies with the trajectory alone.
    ds = simulations().expand_dims(member=2).assign_coords(nu=("trajectory", [1.0, 2.0, 4.0]))
    archive = open_archive(ds)
    spec = SimulationTokenizerConfig(patch=4, parameters=("nu",)).describe(archive, 6, 4)
    for number in range(archive.repeats):
        ((index, *_),) = archive.segments(12 * number, 12 * number + 6)
        place = dict(zip(archive.series, index, strict=True))
        assert spec.parameter_values[0][number] == ds["nu"].values[place["trajectory"]]


def test_parameters_of_another_archive_are_taken_on_the_model_s_scale():
    config = SimulationTokenizerConfig(parameters=("nu",))
    trained, new, bad = (
        config.describe(open_archive(simulations(nu=("trajectory", values))), 6, 4)
        for values in ([0.01, 0.1, 1.0], [0.1, 0.1, 0.1], [0.0, 1.0, 2.0])
    )
    # 0.1 is the middle of the three of training, whatever the new archive holds.
    tokens = config.build(new.scaled_as(trained))(batch(config.build(new)))
    assert tokens.features[..., -1].abs().max() < 1e-6
    with pytest.raises(UserError, match=r"logarithm of nu, but the archive has the value 0"):
        bad.scaled_as(trained)
    with pytest.raises(UserError, match=r"the model knows the parameters nu, but the archive was described with none"):
        replace(new, parameters=()).scaled_as(trained)


def test_an_archive_of_twice_the_resolution_differs_in_what_may_differ():
    config = SimulationTokenizerConfig(patch=4, parameters=("nu",))
    nu = ("trajectory", [1.0, 2.0, 4.0])
    coarse, fine = (config.describe(open_archive(simulations(size=size, nu=nu)), 6, 4) for size in (8, 16))
    assert {name for name, value in asdict(coarse).items() if value != asdict(fine)[name]} == {"coordinates"}
    first, second = config.build(coarse), config.build(fine)
    assert (first.patch_size, first.feature_width) == (second.patch_size, second.feature_width)
    assert set(config.may_differ) <= set(asdict(coarse))
    assert fine.scaled_as(coarse).averaged == (2, 2) and coarse.scaled_as(fine) == coarse
    np.testing.assert_allclose(fine.scaled_as(coarse).coordinates[0], np.arange(8) / 8 + 1 / 32)


@pytest.mark.parametrize("factors, shape", [((2, 2), (8, 4)), ((3, 1), (8, 4)), ((1, 2), (6, 7))])
def test_finer_cells_than_those_of_training_enter_by_their_mean(factors, shape):
    trained = make(*shape, patch=4, pad=True)
    fine = make(*(n * factor for n, factor in zip(shape, factors, strict=True)), patch=4, pad=True)
    spec = fine.spec.in_cells_of(trained.spec)
    assert spec.averaged == factors
    tokenizer, seen = SimulationTokenizer(fine.config, spec), batch(trained)
    torch.testing.assert_close(tokenizer._place, trained._place)
    field = seen.values.repeat_interleave(factors[0], 3).repeat_interleave(factors[1], 4)
    noise = torch.randn(field.shape)
    noise -= tokenizer.unpatchify(tokenizer.patchify(noise))
    tokens, expected = tokenizer(replace(seen, values=field + noise)), trained(seen)
    torch.testing.assert_close(tokens.values, expected.values)
    torch.testing.assert_close(tokens.features, expected.features)
    torch.testing.assert_close(tokenizer.unpatchify(tokens.values), field)


def test_of_finer_cells_those_that_are_missing_do_not_count_in_the_mean():
    trained, fine = (make(cells, patch=4, channels=("p",), window=1, context=1) for cells in (4, 8))
    tokenizer = SimulationTokenizer(trained.config, fine.spec.in_cells_of(trained.spec))
    values = torch.tensor([1.0, 3.0, 5.0, 0.0, 0.0, 7.0, 0.0, 0.0]).reshape(1, 1, 1, 8)
    observed = torch.tensor([1, 1, 1, 0, 0, 1, 0, 0], dtype=torch.bool).reshape(1, 1, 1, 8)
    values.requires_grad_()
    tokens = tokenizer(Batch(values, observed, torch.zeros(1, 1, 4), torch.arange(1)))
    assert tokens.values.flatten().tolist() == [2, 5, 7, 0]
    tokens.values.sum().backward()
    assert values.grad is not None and values.grad.isfinite().all()
    assert tokens.observed.flatten().tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    "own, trained",
    [
        (make(8, 8), make(8, 8)),
        (make(8, 8), make(16, 16)),
        (make(12, patch=4), make(8, patch=4)),  # one and a half
        (make(9, coordinates=(tuple(np.arange(9) / 16),), pad=True), make(8)),  # nine cells of one half leave a rest
        # As large as in training, in a box of twice the length.
        (make(16, coordinates=(tuple(np.arange(16) / 8),)), make(8)),
    ],
)
def test_cells_that_are_not_a_whole_part_of_those_of_training_stay_as_they_are(own, trained):
    assert own.spec.in_cells_of(trained.spec) is own.spec


def test_a_parameter_that_is_unknown_or_missing_is_refused():
    archive = open_archive(simulations(nu=("trajectory", [1.0, np.nan, 2.0])))
    with pytest.raises(UserError, match=r"has no parameter viscosity: .* of which it has nu"):
        SimulationTokenizerConfig(parameters=("viscosity",)).describe(archive, 6, 4)
    with pytest.raises(UserError, match=r"nu of .* is missing in 1 of 3 trajectories"):
        SimulationTokenizerConfig(parameters=("nu",)).describe(archive, 6, 4)


def test_archives_of_other_domains_are_refused():
    coords = {"time": np.arange(4), "lat": [10.0, 0.0], "lon": [0.0, 90.0, 180.0, 270.0]}
    grid = xr.Dataset({"z": (("time", "lat", "lon"), np.zeros((4, 2, 4)))}, coords)
    with pytest.raises(UserError, match=r"2 x 4 grid, but the configuration is for simulations .*kind to grid"):
        SimulationTokenizerConfig().describe(open_archive(grid), 2, 1)
    series = xr.Dataset({"z": (("time",), np.zeros(4))}, {"time": np.arange(4)})
    with pytest.raises(UserError, match=r"set tokenizer.kind to sensors"):
        SimulationTokenizerConfig().describe(open_archive(series), 2, 1)
    torn = simulations().assign_coords(x=[4.0, 5, 6, 7, 0, 1, 2, 3])
    with pytest.raises(UserError, match=r"x of .* neither rises nor falls throughout"):
        SimulationTokenizerConfig().describe(open_archive(torn), 2, 1)


# --- the stem ---------------------------------------------------------------------------------------------------------


def scattered(embedding: torch.nn.Module) -> torch.nn.Module:
    """The embedding as if trained: flags have weights too."""
    torch.manual_seed(1)
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return embedding


@pytest.mark.parametrize("stem", ["convolution", "linear"])
@pytest.mark.parametrize("shape, config", SHAPES)
def test_embeddings_of_any_box_and_any_subset_of_its_channels(shape, config, stem):
    tokenizer = make(*shape, stem=stem, **config)
    embedding = tokenizer.embedding(12)
    tokens = tokenizer(batch(tokenizer, missing=0.3))
    for part in (tokens, tokens.only([1]), tokens.span(1, 3)):
        out = embedding(part)
        assert out.shape == (*part.values.shape[:2], 12) and out.isfinite().all()


def test_an_embedding_depends_on_its_own_patch_alone():
    tokenizer = make(8, 8, patch=4)
    embedding, tokens = tokenizer.embedding(8), tokenizer(batch(tokenizer))
    values = tokens.values.clone()
    values[:, 5] += 1
    moved = (embedding(replace(tokens, values=values)) - embedding(tokens)).abs().amax(dim=(0, 2))
    assert torch.nonzero(moved).flatten().tolist() == [5]


@pytest.mark.parametrize("filler", [7.0, float("nan")])
def test_what_fills_a_missing_value_never_matters(filler):
    tokenizer = make(8, 8, patch=4)
    embedding, tokens = scattered(tokenizer.embedding(8)), tokenizer(batch(tokenizer, missing=0.4))
    assert tokens.observed is not None
    filled = replace(tokens, values=tokens.values.masked_fill(~tokens.observed, filler))
    assert torch.equal(embedding(filled), embedding(tokens))


def test_a_missing_value_is_no_zero():
    tokenizer = make(8, patch=4)
    embedding = scattered(tokenizer.embedding(8))
    tokens = tokenizer(batch(tokenizer, missing=0.4))
    plain = replace(tokens, observed=None)
    assert tokens.observed is not None
    moved = (embedding(tokens) - embedding(plain)).abs().amax(dim=-1) > 1e-6
    assert torch.equal(moved, ~tokens.observed.all(dim=3).all(dim=2))


def test_channels_in_another_order_embed_the_same():
    names, order = ("velocity_x", "velocity_y", "D_xy"), [2, 0, 1]
    tokenizer = make(8, 8, patch=4, channels=names)
    embedding, tokens = scattered(tokenizer.embedding(8)), tokenizer(batch(tokenizer, missing=0.2))
    torch.testing.assert_close(embedding(tokens.only(order)), embedding(tokens))
    other = make(8, 8, patch=4, channels=tuple(names[i] for i in order)).embedding(8)
    other.load_state_dict(embedding.state_dict())
    torch.testing.assert_close(other(tokens), embedding(tokens))


def test_a_sum_over_channels_is_scaled_by_the_number_of_those_present():
    # Two channels with equal weights and equal values x: (x W + x W) / sqrt(2) is one channel with x sqrt(2).
    embedding = ConvolutionalEmbedding(("a", "b"), 1, (4,), 8)
    with torch.no_grad():
        embedding.value[parameter_name("a")].copy_(embedding.value[parameter_name("b")])
    values = torch.randn(1, 3, 1, 4)
    both = Tokens(values.expand(-1, -1, 2, -1), None, torch.zeros(1, 3, 1), ("a", "b"))
    one = Tokens(values * 2**0.5, None, torch.zeros(1, 3, 1), ("a",))
    torch.testing.assert_close(embedding(both), embedding(one))


@pytest.mark.parametrize("shape, config", SHAPES)
def test_the_stem_keeps_the_size_of_what_it_embeds(shape, config):
    # Weights have variance 2 / inputs, so noise of variance 1 comes out with a variance near 1.
    tokenizer = make(*shape, **config)
    torch.manual_seed(0)
    embedding = tokenizer.embedding(64)
    variance = embedding(tokenizer(batch(tokenizer, 16))).var().item()
    assert 0.2 < variance < 3


def test_convolutions_see_the_order_of_cells_along_every_dimension():
    tokenizer = make(4, 4, 4, patch=4, channels=("a",))
    embedding, tokens = tokenizer.embedding(8), tokenizer(batch(tokenizer))
    box = tokens.values.unflatten(-1, (4, 4, 4))
    for axis in (3, 4, 5):
        flipped = replace(tokens, values=box.flip(axis).flatten(3))
        assert (embedding(flipped) - embedding(tokens)).abs().min(dim=1).values.max() > 1e-3


def test_twice_the_resolution_of_a_smooth_field_changes_pooled_embeddings_little():
    # Means and waves of the length of the box, 32 and 64 cells; of the spread over samples the change is .0014 where
    # cells are averaged and .06 where they become tokens of their own.
    rng = np.random.default_rng(0)
    mean, height, phase = rng.normal(size=(3, 64, 1, 1, 1, 1))
    torch.manual_seed(0)
    trained = make(32, 32, channels=("p",), window=1, context=1)
    embedding, pooled = trained.embedding(96).requires_grad_(False), []
    fine = make(64, 64, channels=("p",), window=1, context=1)
    averaged = SimulationTokenizer(fine.config, fine.spec.in_cells_of(trained.spec))
    for tokenizer in (trained, averaged, fine):
        centres = (trained if tokenizer is trained else fine).spec.coordinates
        x, y = np.meshgrid(*centres, indexing="ij")
        field = torch.from_numpy(mean + height * np.cos(2 * np.pi * (x + y + phase))).float()
        tokens = tokenizer(Batch(field, None, torch.zeros(64, 1, 4), torch.arange(64)))
        pooled.append(embedding(tokens).mean(dim=1))
    spread = pooled[0].var(dim=0).mean().sqrt()
    changes = [float((pooled[0] - other).square().mean().sqrt() / spread) for other in pooled[1:]]
    assert changes[0] < 0.01 and changes[1] < 0.1, changes


def test_a_box_of_one_cell_and_one_channel_passes_through():
    tokenizer = make(1, patch=1, channels=("u",), sides=(OPEN,))
    tokens = tokenizer(batch(tokenizer))
    assert tokens.features.isfinite().all() and tokenizer.embedding(8)(tokens).shape == (2, 6, 8)


def test_gradients_reach_every_weight():
    tokenizer = make(8, 8, patch=8)
    embedding, tokens = tokenizer.embedding(16), tokenizer(batch(tokenizer, missing=0.2))
    embedding(tokens).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in embedding.parameters())
