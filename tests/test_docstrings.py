import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["normalize", "target", "tokenizers.base"])
def test_examples_in_docstrings_hold(name):
    result = doctest.testmod(importlib.import_module(f"sciJEPA.{name}"))
    assert result.attempted > 0 and result.failed == 0
