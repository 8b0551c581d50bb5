"""What the documentation shows is run as it stands, page by page, on small archives; the pages build without a warning.

Marks of a block: ```python runs, ```py does not; ```bash runs line by line, ```console does not; a `{code-block}` with
a caption is a file of that name.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sciJEPA.cards import load_card
from sciJEPA.synthetic import travelling_waves

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if not {"_build", "notebooks"} & set(path.parts)]
FENCE = re.compile(r"^```(\{code-block\} )?(\w+)\n(?::caption: (\S+)\n)?(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
RUN = ("python", "bash")
SMALL = "--encoder.width 16 --encoder.depth 1 --encoder.heads 2 --predictor.width 16 --predictor.depth 1"
SMALL += " --predictor.heads 2 --training.steps 4 --training.batch_size 8"


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Language, name of the file (empty if it is none) and content of every block."""
    found = FENCE.findall(page.read_text())
    return [(language, caption, body) for _, language, caption, body in found]


WITH_CODE = [page for page in PAGES if any(language in RUN for language, _, _ in blocks(page))]
OTHERS = [page for page in WITH_CODE if page.name != "own_domain.md"]


def execute(words: list[str], folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{words} failed:\n{done.stderr[-3000:]}"
    return done.stdout


def write_archives(folder: Path) -> None:
    """The archives that pages speak of."""
    years = travelling_waves(1096, nlat=8, nlon=16)
    years.to_netcdf(folder / "my.nc")
    years.to_zarr(folder / "my.zarr", consolidated=False)
    (folder / "folder").mkdir()
    for number in range(2):
        years.isel(time=slice(500 * number, 500 * (number + 1))).to_netcdf(folder / f"folder/{number}.nc")
    field = travelling_waves(40, cadence="1h")["z"].isel(latitude=3, longitude=[0, 4]).rename("level")
    frame = field.rename(longitude="station").drop_vars("latitude").to_dataframe().reset_index()
    frame.assign(station="s" + frame["station"].astype(str)).to_csv(folder / "stations.csv", index=False)
    u = np.random.default_rng(0).normal(size=(10, 16, 8, 8)).astype(np.float32)
    dims = ("trajectory", "time", "x", "y")
    coords = {name: np.arange(size) * 1.0 for name, size in zip(dims, u.shape, strict=True)}
    xr.Dataset({"u": (dims, u, {"units": "m s-1"})}, coords).to_zarr(folder / "flow.zarr", consolidated=False)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    write_archives(folder)
    config = "pretrain --config climate-tiny --archive my.nc --out runs/mine"
    execute([sys.executable, "-m", "sciJEPA.cli", *shlex.split(f"{config} {SMALL}")], folder)
    return folder


def run_page(page: Path, folder: Path) -> None:
    """Files first, then commands and Python in the order of the page; Python blocks share their names."""
    program: list[str] = []
    for language, caption, body in blocks(page):
        if caption:
            (folder / caption).write_text(body)
        elif language == "python":
            program.append(body)
        elif language == "bash":
            for line in body.strip().splitlines():
                _, *words = shlex.split(line)
                short = shlex.split(SMALL) if words[0] == "pretrain" and "--resume" not in words else []
                execute([sys.executable, "-m", "sciJEPA.cli", *words, *short], folder)
    if program:
        execute([sys.executable, "-c", "\n".join(program)], folder)


def test_the_own_domain_works_as_written(tmp_path: Path) -> None:
    run_page(DOCS / "own_domain.md", tmp_path)
    assert (tmp_path / "runs/spectra/model/model.safetensors").is_file()
    card = load_card(tmp_path / "dataset.yaml")
    assert card.variables.keys() == xr.open_zarr(tmp_path / "spectra.zarr", consolidated=False).data_vars.keys()


def test_the_own_domain_keeps_its_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import sciJEPA.tokenizers
    from sciJEPA.tokenizers.base import Batch, Tokenizer

    (source,) = [body for _, caption, body in blocks(DOCS / "own_domain.md") if caption == "spectra.py"]
    monkeypatch.setattr(sciJEPA.tokenizers, "_registered", {})
    module = type(sys)("spectra")
    monkeypatch.setitem(sys.modules, "spectra", module)
    exec(compile(source, "spectra.py", "exec"), module.__dict__, None)
    names = module.__dict__
    spec = names["SpectrumSpec"](("down", "up"), tuple(np.arange(8) * 10.0 + 400), 1.0, 4, 2)
    tokenizer = names["SpectrumTokenizerConfig"]().build(spec)
    assert isinstance(tokenizer, Tokenizer)
    field = torch.randn(3, 2, 4, 8)
    assert torch.equal(tokenizer.unpatchify(tokenizer.patchify(field)), field)
    # 4 times of 2 bands of 4 wavelengths; the second token is the upper band of the first time, all channels.
    assert torch.equal(tokenizer.patchify(field)[:, 1], field[:, :, 0, 4:])
    rows = tokenizer(Batch(field, None, torch.zeros(3, 4, 4), torch.arange(3))).features[0]
    assert len(torch.unique(rows, dim=0)) == tokenizer.grid.count == 8


@pytest.mark.slow
@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.stem)
def test_pages_run_as_written(page: Path, archives: Path, tmp_path: Path) -> None:
    for path in archives.iterdir():
        if path.name != "runs":
            (tmp_path / path.name).symlink_to(path)
    if page.name != "tutorial.md":  # which makes the run itself
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs/mine").symlink_to(archives / "runs/mine")
    run_page(page, tmp_path)


def test_commands_that_are_not_run_exist_all_the_same() -> None:
    from sciJEPA.cli import _parsers

    _, verbs = _parsers()
    text = "\n".join(body for page in PAGES for language, _, body in blocks(page) if language == "console")
    options = {option for verb in verbs.values() for action in verb._actions for option in action.option_strings}
    for line in re.findall(r"^\s*scijepa .*", text.replace("\\\n", " "), flags=re.MULTILINE):
        verb, *words = line.split()[1:]
        assert verb in verbs, line
        assert {word for word in words if word.startswith("--") and "." not in word} <= options, line


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    for name in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(name)
    out, trees = str(tmp_path / "html"), str(tmp_path / "trees")
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", trees, str(DOCS), out]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Ridge" in (tmp_path / "html/reference/forecasts.html").read_text()
