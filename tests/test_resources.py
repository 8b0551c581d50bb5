from pathlib import Path

import pytest

from sciJEPA import resources


def test_a_checkout_uses_its_own_folders(repository: Path) -> None:
    assert resources.configs_folder() == repository / "configs"
    assert resources.datasets_folder() == repository / "datasets"


def test_an_installed_package_uses_the_folders_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "sciJEPA" / "_data" / "datasets"
    inside.mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "sciJEPA")
    assert resources.datasets_folder() == inside


def test_another_library_called_datasets_is_not_taken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets").mkdir()  # beside the package, as in site-packages
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "sciJEPA")
    with pytest.raises(FileNotFoundError, match="datasets are missing"):
        resources.datasets_folder()
