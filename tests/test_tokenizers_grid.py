import dataclasses

import numpy as np
import pytest
import torch

from sciJEPA.archive import open_archive
from sciJEPA.errors import UserError
from sciJEPA.synthetic import travelling_waves
from sciJEPA.tokenizers.base import Batch, PatchEmbedding, TokenGeometry, Tokenizer, Tokens, parameter_name
from sciJEPA.tokenizers.grid import GridSpec, GridTokenizer, GridTokenizerConfig


def make(
    height: int = 8,
    width: int = 12,
    *,
    channels: tuple[str, ...] = ("z", "t@0.5"),
    window: int = 6,
    context: int = 4,
    longitude: np.ndarray | None = None,
    periodic: bool = True,
    **config,
) -> GridTokenizer:
    latitude = np.linspace(80, -80, height)
    longitude = np.arange(width) * 360 / width if longitude is None else longitude
    spec = GridSpec(
        channels=channels,
        latitude=tuple(latitude.tolist()),
        longitude=tuple(longitude.tolist()),
        cadence=6.0,
        periodic=periodic,
        window=window,
        context=context,
    )
    return GridTokenizer(GridTokenizerConfig(**config), spec)


def batch(tokenizer: GridTokenizer, size: int = 3, *, missing: float = 0.0, steps: int | None = None) -> Batch:
    spec = tokenizer.spec
    steps = steps or spec.window
    torch.manual_seed(0)
    values = torch.randn(size, len(spec.channels), steps, len(spec.latitude), len(spec.longitude))
    observed = torch.rand(values.shape) >= missing if missing else None
    if observed is not None:
        values = values * observed
    return Batch(values, observed, torch.rand(size, steps, 4), torch.arange(size))


def degrees(geometry: TokenGeometry, name: str) -> np.ndarray:
    """Centres of the tokens."""
    return geometry.coordinates[name][0]


SHAPES = [
    (8, 12, {"patch_latitude": 4, "patch_longitude": 4}),
    (8, 12, {"patch_latitude": 2, "patch_longitude": 3, "patch_time": 2}),
    (8, 12, {"patch_latitude": 8, "patch_longitude": 12}),
    (7, 10, {"patch_latitude": 3, "patch_longitude": 4, "patch_time": 2, "pad": True}),
    (7, 10, {"patch_latitude": 7, "patch_longitude": 3, "pad": True}),
    (1, 10, {"patch_latitude": 1, "patch_longitude": 1}),
]


@pytest.mark.parametrize("height, width, config", SHAPES)
def test_unpatchify_is_the_exact_inverse_of_patchify(height, width, config):
    tokenizer = make(height, width, **config)
    values = batch(tokenizer).values
    patches = tokenizer.patchify(values)
    assert patches.shape == (3, tokenizer.grid.count, 2, tokenizer.patch_size)
    assert torch.equal(tokenizer.unpatchify(patches), values)


def test_a_grid_tokenizer_keeps_the_contract():
    assert isinstance(make(), Tokenizer)


def test_tokens_are_numbered_by_time_then_latitude_then_longitude():
    # 8 x 12 in patches of 4 x 4 and tubelets of 2: 2 rows, 3 columns. Token 11 is time 1, row 1, column 2.
    tokenizer = make(patch_time=2)
    values = batch(tokenizer).values
    patch = values[:, :, 2:4, 4:8, 8:12].flatten(2)
    assert torch.equal(tokenizer.patchify(values)[:, 11], patch)


def test_a_patch_that_does_not_divide_names_sizes_that_do():
    with pytest.raises(UserError, match=r"patch_latitude of 3 .* 8 latitudes; use one of \[1, 2, 4, 8\], or set .*pad"):
        make(patch_latitude=3)
    with pytest.raises(UserError, match=r"patch_longitude of 5 .* use one of \[1, 2, 3, 4, 6, 12\]"):
        make(patch_longitude=5)
    with pytest.raises(UserError, match="larger than the grid's 8 latitudes"):
        make(patch_latitude=9, pad=True)
    with pytest.raises(UserError, match="at least 1, got 0"):
        make(patch_time=0)


def test_a_tubelet_that_does_not_divide_names_sizes_that_suit_context_and_window():
    # 4 and 6 steps have the common divisors 1 and 2; 4 divides the context alone.
    for patch_time in (3, 4):
        with pytest.raises(UserError, match=r"use one of \[1, 2\]"):
            make(patch_time=patch_time)


def test_centres_and_times():
    # Latitudes 80, 57.1, 34.3, 11.4 have the mean 45.7. Longitudes 0, 30, 60, 90 have 45. The issue window has 4 of 6
    # steps of 6 hours, so tubelets of 2 end 12 hours before, at and 12 hours after the issue time.
    geometry = make(patch_time=2).geometry
    np.testing.assert_allclose(degrees(geometry, "latitude")[:6], np.repeat([80 - 240 / 7, -80 + 240 / 7], 3))
    np.testing.assert_allclose(degrees(geometry, "longitude")[:6], [45, 165, 285] * 2)
    np.testing.assert_array_equal(geometry.offset, np.repeat([-12.0, 0.0, 12.0], 6))
    assert list(geometry.coordinates) == ["latitude", "longitude"]
    for part in (*(values for values, _ in geometry.coordinates.values()), geometry.area, geometry.offset):
        assert part.shape == (18,)
    assert [attributes["units"] for _, attributes in geometry.coordinates.values()] == ["degrees_north", "degrees_east"]


@pytest.mark.parametrize("height, width, config", SHAPES)
def test_the_last_token_of_the_issue_window_has_offset_zero(height, width, config):
    tokenizer = make(height, width, **config)
    past = tokenizer.grid.context_times * tokenizer.grid.per_time
    assert (tokenizer.geometry.offset[past - tokenizer.grid.per_time : past] == 0).all()
    assert (tokenizer.geometry.offset[past:] > 0).all()
    assert (tokenizer.geometry.offset[: past - tokenizer.grid.per_time] < 0).all()


@pytest.mark.parametrize("height, width, config", SHAPES[:-1])
def test_areas_sum_to_one_at_every_time(height, width, config):
    tokenizer = make(height, width, **config)
    areas = tokenizer.geometry.area.reshape(tokenizer.grid.times, -1)
    np.testing.assert_allclose(areas.sum(axis=1), 1)
    assert (areas > 0).all()


def test_area_is_the_share_of_the_sphere():
    # Cells of 60 degrees from pole to pole: sin(90) - sin(30) = 1/2, 1, 1/2 of a total of 2, over 4 columns.
    spec = GridSpec(("z",), (60.0, 0.0, -60.0), (0.0, 90.0, 180.0, 270.0), 24.0, True, 1, 1)
    tokenizer = GridTokenizer(GridTokenizerConfig(patch_latitude=1, patch_longitude=1), spec)
    np.testing.assert_allclose(tokenizer.geometry.area.reshape(3, 4)[:, 0], [1 / 16, 1 / 8, 1 / 16])


def test_a_patch_across_the_seam_has_its_centre_there():
    longitude = np.array([350.0, 355.0, 0.0, 5.0, 10.0, 15.0, 20.0, 25.0])
    centres = degrees(make(width=8, longitude=longitude, periodic=False).geometry, "longitude")[:2]
    np.testing.assert_allclose(centres % 360, [357.5, 17.5])
    longitude = np.array([165.0, 170.0, 175.0, 180.0, -175.0, -170.0, -165.0, -160.0])
    tokenizer = make(width=8, longitude=longitude, periodic=False, patch_longitude=8)
    centres = degrees(tokenizer.geometry, "longitude")[:1]
    np.testing.assert_allclose(centres % 360, [182.5])


def test_patches_of_one_column_keep_the_longitudes_exactly():
    longitude = np.arange(10) * 36 + 0.1
    centres = degrees(make(width=10, longitude=longitude, patch_longitude=1).geometry, "longitude")[:10]
    np.testing.assert_array_equal(centres, longitude)


def test_rolling_the_longitude_by_whole_patches_permutes_the_tokens():
    longitude = np.arange(12) * 30.0
    plain, rolled = make(longitude=longitude), make(longitude=np.roll(longitude, -4))
    first = batch(plain, missing=0.2)
    assert first.observed is not None
    second = Batch(first.values.roll(-4, -1), first.observed.roll(-4, -1), first.calendar, first.samples)
    numbers = torch.arange(plain.grid.count).reshape(-1, *plain.grid.space).roll(-1, -1).flatten()
    expected, got = plain(first).take(numbers.expand(3, -1)), rolled(second)
    assert torch.equal(expected.values, got.values)
    assert expected.observed is not None and got.observed is not None
    assert torch.equal(expected.observed, got.observed)
    torch.testing.assert_close(expected.features, got.features, atol=1e-5, rtol=0)
    np.testing.assert_allclose(plain.geometry.area[numbers], rolled.geometry.area)


def test_padded_cells_count_as_missing():
    # 7 x 10 in patches of 4 x 4: rows of 4 and 3, columns of 4, 4 and 2 of which are seen.
    tokenizer = make(7, 10, pad=True)
    tokens = tokenizer(batch(tokenizer))
    assert tokens.weight is not None
    expected = torch.outer(torch.tensor([4.0, 3.0]), torch.tensor([4.0, 4.0, 2.0])).flatten() / 16
    torch.testing.assert_close(tokens.weight, expected.repeat(6).expand(3, -1))
    assert (tokens.values[~tokens.observed] == 0).all()


def test_a_padded_circle_counts_as_a_wall():
    assert make(8, 12).grid.periodic
    assert not make(8, 10, pad=True).grid.periodic
    assert not make(8, 12, periodic=False).grid.periodic


def test_nothing_missing_needs_no_mask():
    tokenizer = make()
    tokens = tokenizer(batch(tokenizer))
    assert tokens.observed is None and tokens.weight is None


def test_features_carry_the_calendar_of_the_last_step_of_a_tubelet():
    tokenizer = make(patch_time=2)
    data = batch(tokenizer)
    season = tokenizer(data).features[..., -4:].reshape(3, 3, 6, 4)
    assert torch.equal(season[:, :, 0], data.calendar[:, 1::2])
    assert torch.equal(season, season[:, :, :1].expand_as(season))


def test_an_issue_window_without_its_future_gives_the_first_tokens():
    tokenizer = make(patch_time=2)
    whole = batch(tokenizer, missing=0.1)
    assert whole.observed is not None
    issue = Batch(whole.values[:, :, :4], whole.observed[:, :, :4], whole.calendar[:, :4], whole.samples)
    long, short = tokenizer(whole), tokenizer(issue)
    past = tokenizer.grid.context_times * tokenizer.grid.per_time
    assert torch.equal(long.features[:, :past], short.features)
    assert torch.equal(long.values[:, :past], short.values)


def test_take_gives_tokens_in_the_order_asked_for():
    tokens = make()(batch(make(), missing=0.3))
    index = torch.tensor([[4, 0], [1, 1], [2, 9]])
    taken = tokens.take(index)
    assert torch.equal(taken.values[2, 1], tokens.values[2, 9])
    assert torch.equal(taken.features[0, 0], tokens.features[0, 4])
    assert taken.weight is not None and tokens.weight is not None
    assert torch.equal(taken.weight[1], tokens.weight[1, [1, 1]])


# --- the embedding ----------------------------------------------------------------------------------------------------


def test_weights_belong_to_the_channel_of_their_name():
    # e = b + sum_v x_v W_v / sqrt(V): a value in channel "a" alone meets the weights of "a", wherever it comes in the
    # alphabet. With one value of 1 in the second of two channels the embedding is W_a / sqrt(2).
    embedding = PatchEmbedding(("z", "a"), patch_size=1, width=3)
    values = torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1)
    out = embedding(Tokens(values, None, torch.zeros(1, 1, 1), ("z", "a")))
    torch.testing.assert_close(out[0, 0], embedding.value[parameter_name("a")][0] / 2**0.5)


def test_channels_in_another_order_with_their_weights_embed_the_same():
    names, order = ("t@850", "u", "a.b"), [2, 0, 1]
    first = PatchEmbedding(names, 4, 8)
    second = PatchEmbedding([names[i] for i in order], 4, 8)
    torch.nn.init.normal_(first.missing[parameter_name("u")])
    second.load_state_dict(first.state_dict())
    observed = torch.rand(2, 5, 3, 4) > 0.3
    tokens = Tokens(torch.randn(2, 5, 3, 4) * observed, observed, torch.zeros(2, 5, 1), names)
    other = tokens.only(order)
    torch.testing.assert_close(first(tokens), second(other))


@pytest.mark.parametrize("names", [("values", "keys", "type", "half"), ("t@0.5", "t@0_5"), ("a.b", "a_b", "a")])
def test_any_variable_name_has_its_own_weights(names):
    embedding = PatchEmbedding(names, 2, 4)
    assert len(embedding.value) == len(embedding.missing) == len(names)
    tokens = Tokens(torch.zeros(1, 1, len(names), 2), None, torch.zeros(1, 1, 1), names)
    assert embedding(tokens).shape == (1, 1, 4)


def test_a_missing_value_contributes_through_its_flag_alone():
    # One value, missing: e = b + M, whatever W is.
    embedding = PatchEmbedding(("z",), 1, 3)
    torch.nn.init.normal_(embedding.missing[parameter_name("z")])
    tokens = Tokens(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 1), ("z",))
    torch.testing.assert_close(embedding(tokens)[0, 0], embedding.missing[parameter_name("z")][0])


@pytest.mark.parametrize("kept", [(0,), (2, 0), (1, 2, 3), (3, 2, 1, 0)])
def test_a_part_of_the_channels_embeds_as_the_whole_without_the_others(kept):
    # e = b + sum_v (x_v W_v + (1 - o_v) M_v) / sqrt(V). Where the other channels are observed and zero, the sum has the
    # kept terms alone; so (e - b) of the kept is that of the whole, times sqrt(V / kept).
    torch.manual_seed(0)
    names = ("z@500", "t", "u", "v")
    embedding = PatchEmbedding(names, 6, 8)
    for weight in embedding.parameters():
        torch.nn.init.normal_(weight)
    observed = torch.rand(2, 5, 4, 6) > 0.3
    tokens = Tokens(torch.randn(2, 5, 4, 6) * observed, observed, torch.zeros(2, 5, 1), names)
    others = [number for number in range(4) if number not in kept]
    values, flags = tokens.values.clone(), observed.clone()
    values[:, :, others], flags[:, :, others] = 0, True
    whole = embedding(dataclasses.replace(tokens, values=values, observed=flags))
    part = embedding(tokens.only(kept))
    scale = (4 / len(kept)) ** 0.5
    torch.testing.assert_close(part - embedding.bias, (whole - embedding.bias) * scale, atol=1e-5, rtol=1e-5)
    assert tokens.only(kept).channels == tuple(names[number] for number in kept)


def test_a_span_is_the_tokens_between_two_numbers():
    tokens = make()(batch(make(), missing=0.3))
    part = tokens.span(3, 7)
    taken = tokens.take(torch.arange(3, 7).expand(3, -1))
    for name in ("values", "observed", "features"):
        assert torch.equal(getattr(part, name), getattr(taken, name))
    assert part.channels == tokens.channels
    assert torch.equal(tokens.span(3, None).values, tokens.values[:, 3:])


def test_axes_with_names_that_nobody_knows_are_not_taken_for_a_simulation_without_a_word():
    archive = open_archive(travelling_waves(10).rename(latitude="nav_lat", longitude="nav_lon").drop_attrs())
    with pytest.raises(UserError, match=r"rename nav_lat and nav_lon if they are that, or set tokenizer\.kind"):
        GridTokenizerConfig().describe(archive, window=8, context=4)
