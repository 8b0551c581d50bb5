"""Self-supervised representations of scientific archives, judged by forecasts.

    archive -> samples -> tokens -> mask -> encoder / target encoder / predictor -> loss
            -> latents -> probes -> forecasts -> scores             (xarray in, xarray out)

Names are imported on first use, so that `import sciJEPA` stays fast and loads no torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sciJEPA import accessor as accessor  # registers ds.jepa

if TYPE_CHECKING:
    from sciJEPA.archive import Archive, open_archive
    from sciJEPA.config import config_from_dict, list_configs, load_config
    from sciJEPA.doctor import doctor
    from sciJEPA.errors import UserError
    from sciJEPA.forecast import ForecastProbe, forecast, skill
    from sciJEPA.forecasting.verification import score
    from sciJEPA.hub import Model, load
    from sciJEPA.inspection import inspect
    from sciJEPA.judging.protocols import protocol
    from sciJEPA.latents import embed
    from sciJEPA.panel import probe
    from sciJEPA.prepare import prepare
    from sciJEPA.pretrain import pretrain
    from sciJEPA.report import report

_HOME = {
    "Archive": "archive",
    "ForecastProbe": "forecast",
    "Model": "hub",
    "UserError": "errors",
    "config_from_dict": "config",
    "doctor": "doctor",
    "embed": "latents",
    "forecast": "forecast",
    "inspect": "inspection",
    "list_configs": "config",
    "load": "hub",
    "load_config": "config",
    "open_archive": "archive",
    "prepare": "prepare",
    "pretrain": "pretrain",
    "probe": "panel",
    "protocol": "judging.protocols",
    "report": "report",
    "score": "forecasting.verification",
    "skill": "forecast",
}

_MODULES = ("explore", "plots")  # to be used as sciJEPA.explore.regimes(...)

__all__ = [
    "Archive",
    "ForecastProbe",
    "Model",
    "UserError",
    "config_from_dict",
    "doctor",
    "embed",
    "forecast",
    "inspect",
    "list_configs",
    "load",
    "load_config",
    "open_archive",
    "prepare",
    "pretrain",
    "probe",
    "protocol",
    "report",
    "score",
    "skill",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("sciJEPA")
    if name in _MODULES:
        return importlib.import_module(f"sciJEPA.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'sciJEPA' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"sciJEPA.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Package(ModuleType):
    """A module that has the name of its function, as `pretrain` has, does not hide it, whoever imports it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
