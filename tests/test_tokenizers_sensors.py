"""Series at stations: tokens and back, what permutes, what may never be seen."""

import dataclasses
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from sciJEPA.archive import open_archive
from sciJEPA.encoder import Encoder, EncoderConfig
from sciJEPA.errors import UserError
from sciJEPA.tokenizers import config_class
from sciJEPA.tokenizers.base import Batch, Tokenizer, Tokens
from sciJEPA.tokenizers.sensors import (
    NAME_WIDTH,
    SensorSpec,
    SensorTokenizer,
    SensorTokenizerConfig,
    name_features,
)

STATIONS, CHANNELS = ("EWR", "JFK", "LGA"), ("temp", "wind@10", "p")
DEGREES = {"latitude": (40.7, 40.6, 40.8), "longitude": (-74.2, -73.8, -73.9)}


def make(
    stations: tuple[str, ...] = STATIONS,
    channels: tuple[str, ...] = CHANNELS,
    *,
    degrees: dict[str, tuple[float | None, ...]] | None = None,
    window: int = 12,
    context: int = 8,
    **config: Any,
) -> SensorTokenizer:
    degrees = {"latitude": (), "longitude": ()} if degrees is None else degrees
    spec = SensorSpec(channels=channels, stations=stations, cadence=1.0, window=window, context=context, **degrees)
    return SensorTokenizerConfig(**{"patch_time": 4, **config}).build(spec)


def batch(tokenizer: SensorTokenizer, size: int = 2, *, missing: float = 0.0, level: float = 3.0) -> Batch:
    spec = tokenizer.spec
    generator = torch.Generator().manual_seed(0)
    shape = (size, len(spec.channels), spec.window, *spec.shape)
    levels = level * torch.randn(shape[:2] + (1,) * (len(shape) - 2), generator=generator)
    values = torch.randn(shape, generator=generator) + levels
    observed = torch.rand(shape, generator=generator) >= missing if missing else None
    calendar = torch.rand(size, spec.window, 4, generator=generator)
    return Batch(values if observed is None else values * observed, observed, calendar, torch.arange(size))


def parts(tokens: Tokens) -> dict[str, torch.Tensor]:
    named = {name: getattr(tokens, name) for name in ("values", "observed", "features", "instance")}
    return {name: part for name, part in named.items() if part is not None}


def same(first: Tokens, second: Tokens) -> None:
    """Equal up to the rounding of sums in another order."""
    assert parts(first).keys() == parts(second).keys()
    for name, part in parts(first).items():
        torch.testing.assert_close(part, parts(second)[name], rtol=1e-4, atol=1e-5)


PLACES = [STATIONS, ("only",), ()]
MODES = ["channel", "station"]


@pytest.mark.parametrize("tokens", MODES)
@pytest.mark.parametrize("stations", PLACES)
def test_unpatchify_is_the_exact_inverse_of_patchify(stations, tokens):
    # 12 steps in patches of 4 are 3 times; each has a token for every station, and every channel where it has its own.
    tokenizer = make(stations, tokens=tokens)
    values = batch(tokenizer).values
    patches = tokenizer.patchify(values)
    each = max(1, len(stations))
    assert patches.shape == ((2, 3 * each * 3, 1, 4) if tokens == "channel" else (2, 3 * each, 3, 4))
    assert patches.shape[1] == tokenizer.grid.count
    assert torch.equal(tokenizer.unpatchify(patches), values)


@pytest.mark.parametrize("tokens", MODES)
@pytest.mark.parametrize("stations", PLACES)
def test_a_sensor_tokenizer_keeps_the_contract(stations, tokens):
    tokenizer = make(stations, tokens=tokens)
    assert isinstance(tokenizer, Tokenizer)
    found = tokenizer(batch(tokenizer, missing=0.2))
    assert found.values.shape[2:] == (tokenizer.channels_per_token, tokenizer.patch_size)
    assert len(found.channels) == tokenizer.channels_per_token
    assert found.features.shape == (2, tokenizer.grid.count, tokenizer.feature_width)
    assert tokenizer.embedding(16)(found).shape == (2, tokenizer.grid.count, 16)
    for values, _ in tokenizer.geometry.coordinates.values():
        assert values.shape == (tokenizer.grid.count,)


def test_tokens_are_numbered_by_time_then_station_then_channel():
    # 3 stations and 3 channels: token 9 + 2 * 3 + 1 is time 1, station 2, channel 1.
    tokenizer = make()
    values = batch(tokenizer).values
    assert torch.equal(tokenizer.patchify(values)[:, 16, 0], values[:, 1, 4:8, 2])
    labels = {name: part[0][16] for name, part in tokenizer.geometry.coordinates.items()}
    assert labels == {"station": "LGA", "channel": "wind@10"}
    assert tokenizer.grid.space == (3, 3) and not tokenizer.grid.ordered
    mixed = make(tokens="station", degrees=DEGREES)
    assert torch.equal(mixed.patchify(values)[:, 5], values[:, :, 4:8, 2])
    labels = {name: part[0][5] for name, part in mixed.geometry.coordinates.items()}
    assert labels == {"station": "LGA", "latitude": 40.8, "longitude": -73.9}


def test_a_single_place_has_no_station_and_no_degrees():
    assert set(make(()).geometry.coordinates) == {"channel"}
    assert make(()).grid.space == (3,)
    assert make((), tokens="station").grid.space == (1,)


@pytest.mark.parametrize("tokens", MODES)
def test_times_and_areas(tokens):
    # Patches of 4 hours in a context of 8 and a window of 12 end 4 hours before, at, and 4 hours after the issue time.
    geometry, grid = make(tokens=tokens).geometry, make(tokens=tokens).grid
    np.testing.assert_array_equal(geometry.offset, np.repeat([-4.0, 0.0, 4.0], grid.per_time))
    np.testing.assert_allclose(geometry.area.reshape(3, -1).sum(axis=1), 1)
    assert grid.context_times == 2


# --- what permutes ----------------------------------------------------------------------------------------------------

ORDER = [2, 0, 1]


@pytest.mark.parametrize("config", [{}, {"tokens": "station"}, {"location": "mean"}])
def test_permuting_the_stations_permutes_the_tokens(config):
    plain = make(degrees=DEGREES, **config)
    degrees = {name: tuple(values[i] for i in ORDER) for name, values in DEGREES.items()}
    other = make(tuple(STATIONS[i] for i in ORDER), degrees=degrees, **config)
    data = batch(plain, missing=0.3)
    assert data.observed is not None
    moved = dataclasses.replace(data, values=data.values[..., ORDER], observed=data.observed[..., ORDER])
    numbers = torch.arange(plain.grid.count).reshape(3, 3, -1)[:, ORDER].flatten()
    same(plain(data).take(numbers.expand(2, -1)), other(moved))
    for name, (values, _) in plain.geometry.coordinates.items():
        np.testing.assert_array_equal(values[numbers], other.geometry.coordinates[name][0])


def test_permuting_the_channels_permutes_the_tokens_and_their_embeddings():
    plain, other = make(), make(channels=tuple(CHANNELS[i] for i in ORDER))
    data = batch(plain, missing=0.3)
    assert data.observed is not None
    moved = dataclasses.replace(data, values=data.values[:, ORDER], observed=data.observed[:, ORDER])
    numbers = torch.arange(plain.grid.count).reshape(3, 3, 3)[:, :, ORDER].flatten().expand(2, -1)
    same(plain(data).take(numbers), other(moved))
    embedding = plain.embedding(8)  # its weights serve the other archive as they are
    torch.testing.assert_close(embedding(plain(data).take(numbers)), embedding(other(moved)), rtol=1e-4, atol=1e-5)


def test_permuting_the_channels_of_a_station_leaves_its_embedding():
    plain, other = (make(channels=names, tokens="station") for names in (CHANNELS, tuple(CHANNELS[i] for i in ORDER)))
    data = batch(plain)
    moved = dataclasses.replace(data, values=data.values[:, ORDER])
    embedding = plain.embedding(8)
    torch.testing.assert_close(embedding(plain(data)), embedding(other(moved)))


def test_a_part_of_the_channels_gives_its_own_tokens_alone():
    whole, part = make(), make(channels=CHANNELS[1:2])
    data = batch(whole)
    numbers = torch.arange(whole.grid.count).reshape(3, 3, 3)[:, :, 1].flatten().expand(2, -1)
    same(whole(data).take(numbers), part(dataclasses.replace(data, values=data.values[:, 1:2])))


# --- what is missing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [{}, {"instance": False}, {"location": "mean"}, {"tokens": "station"}, {"gaps": "zero"}]
)
@pytest.mark.parametrize("filler", [0.0, 1e6, float("nan")])
def test_what_stands_where_nothing_was_observed_moves_nothing(config, filler):
    tokenizer = make(**config)
    data = batch(tokenizer, missing=0.5)
    assert data.observed is not None
    filled = dataclasses.replace(data, values=data.values.masked_fill(~data.observed, filler))
    expected, found = tokenizer(data), tokenizer(filled)
    for name, part in parts(expected).items():
        assert torch.equal(part, parts(found)[name])
    assert found.observed is not None
    assert (found.values[~found.observed] == 0).all() == (tokenizer.config.gaps == "zero")


def test_gaps_are_bridged_within_the_issue_window_and_flagged():
    # Steps 0 to 7 are the issue window, 8 to 11 follow it. Observed are 2 at step 1, 8 at step 4, 5 at step 9: between
    # steps 1 and 4 the line rises by 2 a step; the ends are carried on, and no line leads from step 4 to step 9.
    tokenizer = make((), ("x",), instance=False)
    values, observed = torch.zeros(1, 1, 12), torch.zeros(1, 1, 12, dtype=torch.bool)
    for step, value in ((1, 2.0), (4, 8.0), (9, 5.0)):
        values[..., step], observed[..., step] = value, True
    tokens = tokenizer(Batch(values, observed, torch.zeros(1, 12, 4), torch.zeros(1, dtype=torch.long)))
    assert tokens.values.flatten().tolist() == [2, 2, 4, 6, 8, 8, 8, 8, 5, 5, 5, 5]
    assert tokens.observed is not None and tokens.observed.flatten().nonzero().ravel().tolist() == [1, 4, 9]


def test_bridges_follow_the_daily_course_of_the_issue_window():
    # Two steps a day, 0 and 10 in turn for four days, step 3 missing. The mean of the seven others is 30/7, and counts
    # as one more: the course is 30/7 / 5 = 6/7 and (30 + 30/7) / 4 = 60/7. Steps 2 and 4 deviate by -6/7, and so does
    # the line between them: 60/7 - 6/7 = 54/7 at step 3, where a line between values would have 0. After the issue time
    # nothing but step 9 was observed, which deviates by 10 - 60/7 = 10/7: step 8 is 6/7 + 10/7 = 16/7.
    spec = dataclasses.replace(make((), ("x",)).spec, cadence=12.0)
    tokenizer = SensorTokenizerConfig(patch_time=4, instance=False).build(spec)
    values = torch.tensor([0.0, 10.0]).repeat(6).reshape(1, 1, 12)
    observed = torch.ones_like(values, dtype=torch.bool)
    observed[..., 3] = observed[..., 8] = observed[..., 10:] = False
    data = Batch(values * observed, observed, torch.zeros(1, 12, 4), torch.zeros(1, dtype=torch.long))
    expected = [0, 10, 0, 54 / 7, 0, 10, 0, 10, 16 / 7, 10, 16 / 7, 10]
    torch.testing.assert_close(tokenizer(data).values.flatten(), torch.tensor(expected))


def test_a_day_is_counted_where_the_issue_window_holds_two():
    # Issue windows of 8 steps: two days of 4 steps of 6 hours do, of 24 steps, of 1 step and of 3.4 steps do not.
    spec = make((), ("x",)).spec
    config = SensorTokenizerConfig(patch_time=4)
    days = {cadence: config.build(dataclasses.replace(spec, cadence=cadence)).day for cadence in (6.0, 1.0, 24.0, 7.0)}
    assert days == {6.0: 4, 1.0: 1, 24.0: 1, 7.0: 1}


@pytest.mark.parametrize("stations", PLACES)
def test_bridges_are_those_of_every_series_on_its_own(stations):
    tokenizer = make(stations, instance=False)
    data = batch(tokenizer, missing=0.5)
    assert data.observed is not None
    found = tokenizer.unpatchify(tokenizer(data).values)[:, :, :8].movedim(2, -1).reshape(-1, 8)
    values, observed = (part[:, :, :8].movedim(2, -1).reshape(-1, 8) for part in (data.values, data.observed))
    for series, truth, there in zip(found.numpy(), values.numpy(), observed.numpy(), strict=True):
        steps = np.flatnonzero(there)
        expected = np.interp(np.arange(8), steps, truth[steps]) if len(steps) else np.zeros(8)
        np.testing.assert_allclose(series, expected, rtol=1e-5, atol=1e-5)


def test_a_token_without_any_observation_moves_no_other():
    # The embeddings of the other tokens are the same with it and without it.
    tokenizer = make()
    data = batch(tokenizer)
    observed = torch.ones_like(data.values, dtype=torch.bool)
    observed[:, 1, 4:8, 2] = False
    tokens = tokenizer(dataclasses.replace(data, observed=observed))
    assert tokens.seen is not None
    (absent,) = (~tokens.seen[0]).nonzero().ravel().tolist()
    assert absent == 16  # time 1, station 2, channel 1 of 3 x 3 x 3
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(width=16, depth=2, heads=2), {"sensors": tokenizer})
    others = torch.tensor([[number for number in range(27) if number != absent]] * 2)
    torch.testing.assert_close(encoder(tokens)[:, others[0]], encoder(tokens.take(others)))


def test_a_token_weighs_what_it_has_observed():
    # One of the four values of station EWR's first patch of "temp" is missing; the feature says the same.
    tokenizer = make()
    data = batch(tokenizer)
    observed = torch.ones_like(data.values, dtype=torch.bool)
    observed[:, 0, 1, 0] = False
    tokens = tokenizer(dataclasses.replace(data, observed=observed))
    assert tokens.weight is not None
    assert tokens.weight[0].tolist() == [0.75] + [1.0] * 26
    assert tokens.features[0, :, -3].tolist() == [0.75] + [1.0] * 26


def test_nothing_missing_needs_no_mask():
    assert make()(batch(make())).observed is None


# --- location and scale -----------------------------------------------------------------------------------------------


def test_location_and_scale_by_hand():
    # Issue window of 4 steps: 1, 3 observed, then 7 missing, then 5. Mean 3, squares 4, 0, 4, so the scale is
    # sqrt(8 / 3); the last value is 5. The first patch of 2 steps is (1 - 5) / scale and (3 - 5) / scale.
    values = torch.tensor([1.0, 3.0, 7.0, 5.0, 9.0, 9.0]).reshape(1, 1, 6)
    observed = torch.tensor([1, 1, 0, 1, 1, 1], dtype=torch.bool).reshape(1, 1, 6)
    data = Batch(values, observed, torch.zeros(1, 6, 4), torch.zeros(1, dtype=torch.long))
    scale = (8 / 3) ** 0.5
    for location, expected in (("last", 5.0), ("mean", 3.0)):
        tokens = make((), ("x",), window=6, context=4, patch_time=2, location=location)(data)
        assert tokens.instance is not None
        torch.testing.assert_close(tokens.instance[0], torch.tensor([[expected, scale]] * 3))
        torch.testing.assert_close(tokens.values[0, 0, 0], (torch.tensor([1.0, 3.0]) - expected) / scale)
        torch.testing.assert_close(tokens.features[0, 0, -2:], torch.tensor([expected, np.log(scale)]).float())


@pytest.mark.parametrize("tokens", MODES)
@pytest.mark.parametrize("location", ["last", "mean"])
def test_the_future_changes_no_token_of_the_issue_window(tokens, location):
    tokenizer = make(tokens=tokens, location=location)
    data = batch(tokenizer, missing=0.3)
    assert data.observed is not None
    values, observed = data.values.clone(), data.observed.clone()
    values[:, :, 8:], observed[:, :, 8:] = 100, True
    issue = Batch(data.values[:, :, :8], data.observed[:, :, :8], data.calendar[:, :8], data.samples)
    past = tokenizer.grid.context_times * tokenizer.grid.per_time
    first, second = tokenizer(data), tokenizer(dataclasses.replace(data, values=values, observed=observed))
    for other in (second, tokenizer(issue)):
        for name, part in parts(first.span(0, past)).items():
            assert torch.equal(part, parts(other.span(0, past))[name])
    assert torch.equal(first.features, second.features)  # nor what is known of the later tokens
    if tokens == "channel":
        assert first.instance is not None and second.instance is not None
        assert torch.equal(first.instance, second.instance)


@pytest.mark.parametrize("location", ["last", "mean"])
def test_other_units_of_a_channel_change_location_and_scale_alone(location):
    tokenizer = make(location=location)
    data = batch(tokenizer, missing=0.2)
    assert data.observed is not None
    factor, shift = torch.tensor([2.0, 0.5, 5.0])[:, None, None], torch.tensor([1.0, -3.0, 0.0])[:, None, None]
    first, second = tokenizer(data), tokenizer(dataclasses.replace(data, values=factor * data.values + shift))
    torch.testing.assert_close(first.values, second.values, rtol=1e-3, atol=1e-4)
    assert first.instance is not None and second.instance is not None
    factors, shifts = (part.flatten().repeat(9) for part in (factor, shift))  # tokens have the channels last
    torch.testing.assert_close(second.instance[..., 1], first.instance[..., 1] * factors)
    torch.testing.assert_close(second.instance[..., 0], first.instance[..., 0] * factors + shifts)


def test_location_and_scale_lead_back_to_the_values():
    tokenizer = make()
    data = batch(tokenizer)
    tokens = tokenizer(data)
    assert tokens.instance is not None
    location, scale = (part[..., None, None] for part in tokens.instance.unbind(-1))
    torch.testing.assert_close(tokenizer.unpatchify(tokens.values * scale + location), data.values)


def test_a_series_without_any_observation_has_location_zero_and_scale_one():
    tokenizer = make((), ("a", "b", "c"))
    data = batch(tokenizer)
    observed = torch.ones_like(data.values, dtype=torch.bool)
    observed[:, 0, :8] = False  # nothing
    observed[:, 1, :7] = False  # one value, which has no spread
    tokens = tokenizer(dataclasses.replace(data, observed=observed))
    assert tokens.instance is not None
    assert tokens.instance[0, 0].tolist() == [0, 1]
    assert tokens.instance[0, 1].tolist() == [data.values[0, 1, 7], 1]
    torch.testing.assert_close(tokens.values[:, 6, 0], data.values[:, 0, 8:])


def test_a_stuck_sensor_is_not_amplified_beyond_the_floor():
    # Constant at 2 with a step of 0.5 after the issue time: 0.5 / 0.1 = 5, where its own spread is zero.
    tokenizer = make((), ("x",))
    values = torch.full((1, 1, 12), 2.0)
    values[..., 8:] = 2.5
    tokens = tokenizer(Batch(values, None, torch.zeros(1, 12, 4), torch.zeros(1, dtype=torch.long)))
    torch.testing.assert_close(tokens.values[0, :, 0, 0], torch.tensor([0.0, 0.0, 5.0]))


# --- features ---------------------------------------------------------------------------------------------------------


def test_features_have_the_same_width_for_every_archive():
    known, half = make(degrees=DEGREES), make(("a", "b"), degrees={"latitude": (1.0, None), "longitude": (2.0, 3.0)})
    widths = {tokenizer.feature_width for tokenizer in (known, half, make(), make(()), make((), ("x",)))}
    assert len(widths) == 1
    flag = half(batch(half)).features[0, :6, 27]
    assert flag.tolist() == [1, 1, 1, 0, 0, 0]
    assert (half(batch(half)).features[0, 3:6, :27] == 0).all()
    assert (make()(batch(make())).features[..., :28] == 0).all()


def test_features_tell_stations_and_channels_apart_by_name():
    tokenizer = make()
    features = tokenizer(batch(tokenizer)).features[0, :9, 28 : 28 + 2 * NAME_WIDTH]
    expected = [
        np.concatenate([name_features([station])[0], name_features([channel])[0]])
        for station in STATIONS
        for channel in CHANNELS
    ]
    torch.testing.assert_close(features, torch.from_numpy(np.stack(expected)).float())


def test_codes_of_names_are_standardised_and_independent():
    codes = name_features([f"sensor {number}" for number in range(400)])
    assert abs(codes.mean()) < 0.05 and abs(codes.var() - 1) < 0.05
    assert np.linalg.matrix_rank(codes[:NAME_WIDTH]) == NAME_WIDTH
    # The product of two codes of 32 numbers of variance 1, over 32, has a root mean square of 1 / sqrt(32) = 0.177.
    products = (codes @ codes.T / NAME_WIDTH)[np.triu_indices(400, 1)]
    assert abs(np.sqrt((products**2).mean()) - 32**-0.5) < 0.01


def test_features_carry_the_calendar_of_the_last_step_of_a_patch():
    tokenizer = make(instance=False)
    data = batch(tokenizer)
    season = tokenizer(data).features[..., -5:-1].reshape(2, 3, 9, 4)
    assert torch.equal(season[:, :, 0], data.calendar[:, 3::4])
    assert torch.equal(season, season[:, :, :1].expand_as(season))


# --- archives ---------------------------------------------------------------------------------------------------------


def network(*, degrees: bool = True, stations: int = 2) -> xr.Dataset:
    times = pd.date_range("2000-01-01", periods=20, freq="h")
    coords: dict[str, Any] = {"time": times, "station": [f"s{number}" for number in range(stations)]}
    if degrees:
        coords |= {"latitude": ("station", np.linspace(50, 51, stations))}
        coords |= {"longitude": ("station", np.linspace(8, 9, stations))}
    values = np.random.default_rng(0).normal(size=(20, stations))
    return xr.Dataset({name: (("time", "station"), values) for name in ("temp", "p")}, coords)


@pytest.mark.parametrize("degrees", [True, False])
def test_a_specification_travels_as_plain_values(degrees):
    config = SensorTokenizerConfig(patch_time=4)
    spec = config.describe(open_archive(network(degrees=degrees)), 12, 8)
    assert spec.stations == ("s0", "s1") and spec.channels == ("temp", "p")
    assert spec.latitude == ((50.0, 51.0) if degrees else ())
    assert config.restore(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec


def test_a_single_place_is_described_without_stations():
    spec = SensorTokenizerConfig(patch_time=4).describe(open_archive(network(degrees=False).isel(station=0)), 12, 8)
    assert spec.stations == () and spec.shape == ()


def test_what_are_no_stations_is_refused():
    times = pd.date_range("2000-01-01", periods=4, freq="h")
    field = xr.DataArray(np.zeros((4, 3, 5)), dims=("time", "y", "x"), coords={"time": times})
    with pytest.raises(UserError, match=r"3 x 5 box, but .* stations; set tokenizer.kind to simulation"):
        SensorTokenizerConfig().describe(open_archive(field.to_dataset(name="u")), 2, 1)
    grid = field.rename(y="latitude", x="longitude").assign_coords(latitude=[-10, 0, 10], longitude=np.arange(5) * 10)
    with pytest.raises(UserError, match=r"3 x 5 grid, but .* stations; set tokenizer.kind to grid"):
        SensorTokenizerConfig().describe(open_archive(grid.to_dataset(name="u")), 2, 1)


def test_the_domain_is_known_by_its_kind():
    assert config_class("sensors") is SensorTokenizerConfig


@pytest.mark.parametrize(
    "config, message",
    [
        ({"patch_time": 0}, "patch_time must be at least 1, got 0"),
        ({"tokens": "both"}, "tokens must be channel or station, got 'both'"),
        ({"location": "median"}, "location must be last or mean, got 'median'"),
        ({"scale_floor": 0.0}, "scale_floor must be above 0"),
        ({"tokens": "station", "instance": True}, "several channels; set tokenizer.tokens to channel"),
        ({"patch_time": 3}, r"patch_time of 3 does not divide data.context of 8 steps; use one of \[1, 2, 4\]"),
        ({"patch_time": 8}, r"patch_time of 8 does not divide data.window of 12 steps; use one of \[1, 2, 4\]"),
    ],
)
def test_a_configuration_that_cannot_be_says_what_can(config, message):
    with pytest.raises(UserError, match=message):
        make(**config)


def test_five_hundred_channels_of_many_steps():
    # 64 windows of 512 steps are 16 million values.
    tokenizer = make((), tuple(f"c{number}" for number in range(500)), window=512, context=384, patch_time=32)
    tokens = tokenizer(batch(tokenizer, 64, missing=0.1))
    assert tokens.values.shape == (64, 16 * 500, 1, 32)
