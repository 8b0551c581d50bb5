"""Sphinx: pages in Markdown, the reference from docstrings, and the notebooks of `analysis/` as they are committed."""

import re
import shutil
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

project = "sciJEPA"
author = "The sciJEPA developers"
copyright = "the sciJEPA developers, Apache-2.0"
version = release = installed("sciJEPA")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"sciJEPA {version}"

# Pages link to each other and to their sections; -W makes a broken link an error.
nb_execution_mode = "off"  # tests/test_notebooks.py runs them
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # the signature has them
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_google_docstring = False
add_module_names = False
suppress_warnings = ["ref.python"]  # fields of the same name in several dataclasses


def show_equations(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Indented lines before the first section are equations: shown as they stand, not read as markup."""
    sections = [number for number, line in enumerate(lines) if re.fullmatch(r"-{3,}", line)]
    shown: list[str] = []
    for number, line in enumerate(lines):
        opens = line.startswith("    ") and (not lines[number - 1]) and "".join(shown)[-2:] != "::"
        if opens and number < min(sections, default=len(lines)) and not _inside(shown):
            shown += ["::", ""]
        literal = line.startswith("    ") or "`" in line
        shown.append(line if literal else re.sub(r"(?<!\*)\*(?=space)|[|]", lambda found: "\\" + found.group(), line))
    lines[:] = shown


def _inside(shown: list[str]) -> bool:
    """Whether the last line that is not empty belongs to an equation already."""
    last = next((line for line in reversed(shown) if line), "")
    return last.startswith("    ")


def copy_notebooks(app: object) -> None:
    """Sphinx reads below this folder only; the copies are not committed."""
    folder = HERE / "notebooks"
    folder.mkdir(exist_ok=True)
    for path in sorted((HERE.parent / "analysis").glob("*.ipynb")):
        shutil.copy(path, folder / path.name)


def setup(app: Any) -> None:
    """Copy before Sphinx looks for pages."""
    copy_notebooks(app)
    app.connect("autodoc-process-docstring", show_equations, priority=400)  # before napoleon
