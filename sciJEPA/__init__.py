"""Self-supervised representations of scientific archives, judged by forecasts.

    archive -> samples -> tokens -> mask -> encoder / target encoder / predictor -> loss
            -> latents -> probes -> forecasts -> scores             (xarray in, xarray out)

Names are imported on first use, so that `import sciJEPA` stays fast and loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from sciJEPA import accessor as accessor  # registers ds.jepa

if TYPE_CHECKING:
    from sciJEPA.archive import Archive, open_archive
    from sciJEPA.config import list_configs, load_config
    from sciJEPA.doctor import doctor
    from sciJEPA.errors import UserError
    from sciJEPA.forecast import ForecastProbe, skill
    from sciJEPA.hub import Model, load
    from sciJEPA.inspection import inspect
    from sciJEPA.latents import embed
    from sciJEPA.panel import probe
    from sciJEPA.prepare import prepare
    from sciJEPA.pretrain import pretrain

_HOME = {
    "Archive": "archive",
    "ForecastProbe": "forecast",
    "Model": "hub",
    "UserError": "errors",
    "doctor": "doctor",
    "embed": "latents",
    "inspect": "inspection",
    "list_configs": "config",
    "load": "hub",
    "load_config": "config",
    "open_archive": "archive",
    "prepare": "prepare",
    "pretrain": "pretrain",
    "probe": "panel",
    "skill": "forecast",
}

__all__ = [
    "Archive",
    "ForecastProbe",
    "Model",
    "UserError",
    "doctor",
    "embed",
    "inspect",
    "list_configs",
    "load",
    "load_config",
    "open_archive",
    "prepare",
    "pretrain",
    "probe",
    "skill",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("sciJEPA")
    if name not in _HOME:
        raise AttributeError(f"module 'sciJEPA' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"sciJEPA.{_HOME[name]}"), name)
    globals()[name] = value  # also where a module has the name of its function, as `pretrain` has
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
