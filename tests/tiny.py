"""Models and runs so small that a test can train one: width 16, depth 1."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from sciJEPA.config import RunConfig, config_from_dict, config_to_dict

two_devices = pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes take two GPUs, or none")


def tiny_config(archive: object = "", **changes: Any) -> RunConfig:
    """A run of 20 steps with windows of 2 + 2 steps; changes by dotted key, with "__" for the dot."""
    tree: dict[str, Any] = {
        "data": {"archive": str(archive), "window": 4, "context": 2},
        "encoder": {"width": 16, "depth": 1, "heads": 2},
        "predictor": {"width": 16, "depth": 1, "heads": 2},
        "training": {"steps": 20, "batch_size": 8, "precision": "float32", "log_every": 5, "checkpoint_every": 10},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            tree.setdefault(section, {})[name] = value
        else:
            tree[section] = value
    return config_from_dict(tree)


def joint_config(archives: Mapping[str, object], **changes: Any) -> RunConfig:
    """A joint run of 6 steps on the archives of the fixture `two_archives`; changes as for `tiny_config`."""
    windows = {"window": 4, "context": 2}
    domains = {
        "a": {"data": {"archive": str(archives["a"]), **windows}, "masking": {"forecast": 1, "blocks": 1}},
        "b": {
            "data": {"archive": str(archives["b"]), **windows},
            "tokenizer": {"patch_latitude": 3, "patch_longitude": 6},
            "weight": 2.0,
            "batch_size": 4,
        },
    }
    training = {"steps": 6, "batch_size": 8, "precision": "float32", "log_every": 2, "checkpoint_every": 3}
    return tiny_config(data={}, domains=domains, **{"training": training, **changes})


def changed(config: RunConfig, **changes: Any) -> RunConfig:
    """The configuration with changes by dotted key, with "__" for the dot."""
    tree = config_to_dict(config)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            tree[section][name] = value
        else:
            tree[section] = value
    return config_from_dict(tree)
