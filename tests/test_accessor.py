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
