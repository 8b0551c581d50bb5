"""Statistics that lie beside an archive."""

import json
from pathlib import Path

import numpy as np
import pytest

from sciJEPA.archive import open_archive
from sciJEPA.errors import UserError
from sciJEPA.normalize import fit_normalizer
from sciJEPA.prepare import prepare
from sciJEPA.saved_statistics import DESCRIPTION, STATISTICS, read_statistics
from sciJEPA.synthetic import travelling_waves

TRAIN = ((0, 70),)  # 0.7 of 100 steps


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    travelling_waves(100, variables=("z", "t")).to_netcdf(tmp_path / "waves.nc")
    prepare(tmp_path / "waves.nc", tmp_path / "waves.zarr", progress=False)
    return tmp_path / "waves.zarr"


def test_they_are_what_would_be_computed(prepared: Path) -> None:
    archive = open_archive(prepared)
    saved, computed = read_statistics(archive, TRAIN, {}), fit_normalizer(archive, TRAIN)
    assert saved is not None
    for name in ("coefficients", "spread", "missing_share", "unit", "tendency"):
        np.testing.assert_array_equal(getattr(saved, name), getattr(computed, name))
    plain = ("annual", "daily", "trained_on", "modes", "seasonal")
    assert [getattr(saved, name) for name in plain] == [getattr(computed, name) for name in plain]


def test_others_are_not_taken(prepared: Path, tmp_path: Path) -> None:
    archive = open_archive(prepared)
    assert read_statistics(archive, ((0, 60),), {}) is None  # another split
    assert read_statistics(archive, TRAIN, {"z": "zscore"}) is None  # another mode
    part = read_statistics(open_archive(prepared, variables=["z"]), TRAIN, {})
    assert part is not None and part.coefficients.shape[1] == 1  # some of the channels
    described = json.loads((prepared / DESCRIPTION).read_text())
    described["channels"][0]["units"] = "km"
    (prepared / DESCRIPTION).write_text(json.dumps(described))
    assert read_statistics(archive, TRAIN, {}) is None  # other units
    assert read_statistics(open_archive(tmp_path / "waves.nc"), TRAIN, {}) is None  # none beside it


def test_a_changed_file_is_refused(prepared: Path) -> None:
    content = bytearray((prepared / STATISTICS).read_bytes())
    content[-1] ^= 1
    (prepared / STATISTICS).write_bytes(content)
    with pytest.raises(UserError, match=r"SHA-256 differs from that in dataset\.json"):
        read_statistics(open_archive(prepared), TRAIN, {})
