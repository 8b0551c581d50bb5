"""Where the presets and the dataset cards lie.

Both are data, not code. A wheel carries them inside the package (``sciJEPA/_data``); a source checkout or an editable
install has them at the top of the repository. Nothing is copied, so an edit in a checkout counts at once.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def configs_folder() -> Path:
    """Return the folder of the YAML presets that ship with sciJEPA.

    Examples
    --------
    >>> configs_folder().name
    'configs'
    """
    return _data_folder("configs")


def datasets_folder() -> Path:
    """Return the folder of the dataset cards: one folder per dataset, with ``card.md`` and ``dataset.yaml``.

    Examples
    --------
    >>> (datasets_folder() / "qg-channel" / "dataset.yaml").is_file()
    True
    """
    return _data_folder("datasets")


def _data_folder(name: str) -> Path:
    installed = _PACKAGE / "_data" / name
    checkout = _PACKAGE.parent / name
    if installed.is_dir():
        return installed
    # Beside an installed package lies site-packages, where a folder called `datasets` is another library: only a
    # checkout has pyproject.toml there.
    if checkout.is_dir() and (_PACKAGE.parent / "pyproject.toml").is_file():
        return checkout
    raise FileNotFoundError(
        f"sciJEPA's {name} are missing: looked in {installed} and {checkout}. "
        f"The installation is incomplete; install sciJEPA again."
    )
