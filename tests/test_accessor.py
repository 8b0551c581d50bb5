import subprocess
import sys
from typing import Any

import pytest

import sciJEPA.accessor  # noqa: F401  (registers ds.jepa)
from sciJEPA.synthetic import travelling_waves


def test_inspect_is_the_function() -> None:
    report = travelling_waves(20).jepa.inspect(window=4)
    assert report["axes"]["time"]["size"] == 20
    assert report["window"] == 4


def test_embed_hands_over_model_dataset_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    import sciJEPA.latents

    ds = travelling_waves(5)
    calls: list[Any] = []
    monkeypatch.setattr(sciJEPA.latents, "embed", lambda *args, **options: calls.append((args, options)))
    ds.jepa.embed("model", encoder="online")
    ((model, given), options) = calls[0]
    assert model == "model"
    assert given is ds
    assert options == {"encoder": "online"}


def test_registering_imports_no_torch() -> None:
    code = "import sys, sciJEPA.accessor; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("door", "module", "arguments"),
    [
        ("energy", "sciJEPA.latents", ("model",)),
        ("tokens", "sciJEPA.explore.views", ("model",)),
        ("mask", "sciJEPA.explore.views", ("model", "2001-01-03")),
    ],
)
def test_every_door_opens_one_function(
    door: str, module: str, arguments: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    ds = travelling_waves(5)
    calls: list[Any] = []
    monkeypatch.setattr(importlib.import_module(module), door, lambda *args, **options: calls.append((args, options)))
    getattr(ds.jepa, door)(*arguments, domain="grid")
    ((given, options),) = calls
    assert any(argument is ds for argument in given)
    assert [argument for argument in given if argument is not ds] == list(arguments)
    assert options == {"domain": "grid"}


def test_a_forecast_is_what_the_probe_predicts_from_the_latents(model: Any, waves: Any) -> None:
    import xarray as xr

    from sciJEPA.forecast import ForecastProbe
    from sciJEPA.latents import embed

    latents = embed(model, waves, progress=False)
    probe = ForecastProbe(lead="2D").fit(latents.isel(time=slice(120)), waves)
    later = travelling_waves(200).isel(time=slice(150, 180))
    found = later.jepa.forecast(probe, model, progress=False)
    xr.testing.assert_identical(found, probe.predict(embed(model, later, progress=False)))


def test_reprs_say_what_is_behind_the_door() -> None:
    ds = travelling_waves(5, variables=("z", "<b>"))
    assert repr(ds[["z"]].jepa) == (
        "<ds.jepa of z (time 5, latitude 8, longitude 16): inspect, tokens, mask, embed, energy, forecast>"
    )
    page = ds.jepa._repr_html_()
    assert page.startswith("<details><summary>&lt;ds.jepa of")
    assert "<b>" not in page
    assert page.count("<dt>") == 6
