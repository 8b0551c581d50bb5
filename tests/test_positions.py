import math
from itertools import pairwise

import pytest
import torch
from jaxtyping import TypeCheckError

from sciJEPA.positions import SPHERE_WIDTH, axis_features, lead_features, lead_periods, sphere_features


def degrees(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_point_at_zero_degrees_is_the_x_axis():
    # The unit vector (1, 0, 0); then sin and cos of pi 2**k (1, 0, 0), which are (0, 0, 0) and (-1, 1, 1) for k = 0,
    # (0, 0, 0) and (1, 1, 1) for the octaves above.
    expected = [1, 0, 0] + [0, 0, 0, -1, 1, 1] + 3 * [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(sphere_features(degrees(0), degrees(0))[0], torch.tensor(expected).float())


def test_longitude_has_no_seam():
    latitude = degrees(10, 10, 10)
    features = sphere_features(latitude, degrees(-0.001, 0, 359.999))
    torch.testing.assert_close(features[0], features[2], atol=1e-6, rtol=0)
    assert (features[0] - features[1]).abs().max() < 1e-3  # 8 pi times 0.001 degrees is 4e-4


def test_a_pole_is_one_point():
    features = sphere_features(degrees(90, 90, 90), degrees(0, 77, 200))
    torch.testing.assert_close(features, features[:1].expand(3, -1), atol=1e-6, rtol=0)


def test_neighbours_five_degrees_apart_differ():
    latitude = torch.arange(-85, 90, 5).double()
    features = sphere_features(latitude, torch.zeros_like(latitude))
    assert features.shape == (35, SPHERE_WIDTH)
    assert torch.pdist(features).min() > 0.5


def test_places_along_a_circle_and_between_ends():
    # u = 1/4 on a circle: angles pi/2, pi, 2 pi, ... ; between ends: pi/4, pi/2, pi, ...
    u = torch.tensor([0.25], dtype=torch.float64)
    r = 0.5**0.5
    expected = torch.tensor([[1.0, 0, 0, 0, 0, 0, -1, 1, 1, 1], [r, 1, 0, 0, 0, r, 0, -1, 1, 1]])
    got = torch.cat([axis_features(u, True), axis_features(u, False)])
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_a_circle_has_no_seam_and_ends_differ():
    u = torch.tensor([0.0, 1.0], dtype=torch.float64)
    first, last = axis_features(u, True)
    torch.testing.assert_close(first, last, atol=1e-6, rtol=0)
    first, last = axis_features(u, False)
    assert (first - last).abs().max() > 1


def test_shapes_are_enforced_in_tests():
    with pytest.raises(TypeCheckError):
        sphere_features(degrees(1, 2), degrees(1))


def test_lead_features_are_a_quarter_turn_a_step():
    # The shortest period is four steps of 6 hours: after 0, 1, 2 steps sin is 0, 1, 0 and cos 1, 0, -1.
    periods = lead_periods(6.0, 8)
    features = lead_features(degrees(0, 6, 12), periods)
    torch.testing.assert_close(features[:, 0], torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(features[:, len(periods)], torch.tensor([1.0, 0.0, -1.0]))


@pytest.mark.parametrize("steps, longest", [(1, 8), (2, 8), (8, 32), (9, 64), (12, 64)])
def test_lead_periods_reach_four_windows(steps, longest):
    # In steps: octaves from 4 up to the first that is at least 4 times the window (of two steps at least).
    periods = lead_periods(24.0, steps)
    assert periods[0] == 4 * 24 and periods[-1] == longest * 24
    assert all(after == 2 * before for before, after in pairwise(periods))


@pytest.mark.parametrize("cadence", [0.25, 6.0, 24.0, 730.5])
@pytest.mark.parametrize("steps", [2, 8, 30])
def test_no_two_times_of_a_window_share_a_code(cadence, steps):
    offset = (torch.arange(steps, dtype=torch.float64) - steps // 2) * cadence
    features = lead_features(offset, lead_periods(cadence, steps))
    # Neighbours differ by a quarter turn of the shortest period, a chord of sqrt(2); others at least by the sine of
    # some octave, one of which turns between 1/8 and 7/8 of the circle: a chord of 2 sin(pi / 8) = 0.77.
    assert torch.pdist(features.double()).min() > 2 * math.sin(math.pi / 8) - 1e-6
