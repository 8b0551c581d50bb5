"""Samples -> tokens: the only folder that is split by domain. One file a domain; see `base` for the contract.

A domain is known by the `kind` of its tokenizer's configuration. Those of the package are listed here; one of your own
joins them with `register`.
"""

import importlib
from typing import Any

from sciJEPA.errors import UserError

KINDS = {
    "grid": "sciJEPA.tokenizers.grid:GridTokenizerConfig",
    "simulation": "sciJEPA.tokenizers.simulation:SimulationTokenizerConfig",
    "sensors": "sciJEPA.tokenizers.sensors:SensorTokenizerConfig",
}
_registered: dict[str, Any] = {}


def register(config: Any) -> Any:
    """Make a domain known under its configuration's `kind`; may be used as a decorator of the class.

    Raises
    ------
    UserError
        If the class has no `kind`, or that of another domain.
    """
    kind = getattr(config, "kind", None)
    if not isinstance(kind, str) or not kind:
        raise UserError(f"{config.__name__} needs a default for its field kind, the name of its domain.")
    if kind in KINDS or _registered.get(kind, config) is not config:
        raise UserError(f"there is a domain '{kind}' already; give {config.__name__} another kind.")
    _registered[kind] = config
    return config


def config_class(kind: str) -> Any:
    """The configuration class of a domain."""
    if kind in _registered:
        return _registered[kind]
    if kind not in KINDS:
        known = ", ".join([*KINDS, *_registered])
        raise UserError(f"there is no tokenizer.kind '{kind}'; the kinds are {known}.")
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(module), name)
