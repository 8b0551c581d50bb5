import importlib
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from test_report_page import Reader
from tiny import joint_config, tiny_config

pytest.importorskip("matplotlib")

from sciJEPA.cli import main
from sciJEPA.errors import UserError
from sciJEPA.hub import load
from sciJEPA.panel import probe
from sciJEPA.pretrain import pretrain
from sciJEPA.report import report
from sciJEPA.synthetic import travelling_waves

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def probed(run_folder: Path, waves: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with a probe."""
    folder = tmp_path_factory.mktemp("report") / "tiny"
    shutil.copytree(run_folder, folder)
    probe(load(folder), waves, lead=["1D", "3D"], controls=["eof_ridge"], out=folder / "probe", progress=False)
    return folder


@pytest.fixture(scope="module")
def html(probed: Path) -> str:
    return report(probed).read_text(encoding="utf-8")


def test_a_run_without_a_probe_says_which_command_adds_it(run_folder: Path, waves: Path, tmp_path: Path) -> None:
    path = report(run_folder, out=tmp_path / "page.html")
    page = path.read_text(encoding="utf-8")
    assert page.count(f"<code>scijepa probe {run_folder} {waves}</code>") == 2  # skill, and forecasts
    assert len(Reader(page).all("img")) == 3  # training, mask, component
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_every_section_is_there_and_every_image_inside(html: str) -> None:
    reader = Reader(html)
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert headings == ["Data", "Model", "Training", "Skill", "Maps", "Card", "Versions"]
    images = reader.all("img")
    assert len(images) == 5  # training, skill, mask, component, cases
    for image in images:
        assert (image["src"] or "").startswith("data:image/png;base64,")
        assert len(image["alt"] or "") > 60
    assert "missing" not in {tag.get("class") for tag in reader.all("p")}


def test_the_splits_are_those_of_the_archive(html: str) -> None:
    # 200 days, 70 : 10 : 20 as the configuration has it
    assert re.search(r"2001-01-01</td><td[^>]*>2001-05-20</td><td[^>]*>140</td>", html)
    assert re.search(r"2001-07-19</td><td[^>]*>40</td>", html)  # the 200th day


def test_numbers_are_those_of_the_scores(html: str, probed: Path) -> None:
    rows = pd.read_csv(probed / "probe" / "scores.csv")
    chosen = rows[(rows["metric"] == "rmse_over_climatology") & (rows["variable"] == "z")]
    assert len(chosen) >= 8
    for row in chosen.itertuples():
        assert f'data-sort="{row.value}"' in html
        assert f"{row.value:.3f}" in html


def test_the_best_method_of_each_lead_is_bold(html: str) -> None:
    for lead in ("1D", "3D"):
        part = html[html.index(f"<caption>z, lead {lead}</caption>") :]
        body = part[: part.index("</table>")]
        rows = re.findall(r'<tr( class="best")?><td[^>]*>(.*?)</td><td data-sort="(.*?)"', body)
        errors = {name: float(value) for _, name, value in rows}
        assert [name for mark, name, _ in rows if mark] == [min(errors, key=lambda name: errors[name])]


def test_an_archive_that_has_gone_is_said_and_can_be_named(
    run_folder: Path, waves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = importlib.import_module("sciJEPA.report")

    def refuse(*_: object) -> None:
        raise UserError("there is nothing at gone.zarr.")

    with monkeypatch.context() as patch:
        patch.setattr(home.Model, "open", refuse)
        page = report(run_folder, out=tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.count("there is nothing at gone.zarr") == 2  # data and maps
    assert page.count(f"scijepa report {run_folder} --archive PATH") == 2
    page = report(run_folder, out=tmp_path / "a.html", archive=waves).read_text(encoding="utf-8")  # replaces its own
    assert "gone.zarr" not in page


def test_files_that_are_no_reports_are_left_alone(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.html").write_text("mine")
    with pytest.raises(UserError, match="is no report of ours"):
        report(run_folder, out=tmp_path / "notes.html")
    assert (tmp_path / "notes.html").read_text() == "mine"
    with pytest.raises(UserError, match="is no folder"):
        report(run_folder, out=tmp_path / "absent" / "page.html")


def test_the_command_prints_the_path(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(run_folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert main(["report", str(tmp_path / "nothing")]) == 2


def test_trajectories_are_counted_and_stations_have_no_map(tmp_path: Path) -> None:
    waves = travelling_waves(60)["z"].values
    time = np.arange(60.0)
    box = xr.DataArray(np.stack([waves] * 4), {"time": time}, ("trajectory", "time", "y", "x"), name="z")
    stations = xr.DataArray(waves[:, 3, :6], {"time": time, "station": list("abcdef")}, ("time", "station"), name="z")
    pages = {}
    for name, ds, kind in (("box", box, "simulation"), ("stations", stations, "sensors")):
        ds.to_dataset().to_zarr(tmp_path / f"{name}.zarr", consolidated=False)
        tokenizer = {"kind": kind, "patch_time": 1}
        config = tiny_config(tmp_path / f"{name}.zarr", tokenizer=tokenizer, training__steps=2)
        pretrain(config, tmp_path / name, progress=False)
        pages[name] = report(tmp_path / name).read_text(encoding="utf-8")
    # 4 trajectories of 60 steps, whole ones in each split: 2, 1 and 1
    assert re.findall(r">([0-9]+)</td><td[^>]*>([124])</td></tr>", pages["box"]) == [
        ("120", "2"),
        ("60", "1"),
        ("60", "1"),
    ]
    assert len(Reader(pages["box"]).all("img")) == 3
    assert pages["stations"].count("no map here") == 1
    assert len(Reader(pages["stations"]).all("img")) == 1  # training


def section(html: str, heading: str) -> str:
    """What stands under a heading of the second rank."""
    return html.split(f"<h2>{heading}</h2>")[1].split("<h2>")[0]


@pytest.fixture(scope="module")
def two(waves: Path, two_archives: dict[str, Path]) -> dict[str, Path]:
    """Archives of a joint run: `a` is long enough for a probe."""
    return {"a": waves, "b": two_archives["b"]}


@pytest.fixture(scope="module")
def probed_joint(two: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint run with a probe of one of its two archives."""
    folder = tmp_path_factory.mktemp("report") / "joint"
    pretrain(joint_config(two), folder, progress=False)
    probe(folder, two["a"], lead="1D", controls=["eof_ridge"], out=folder / "probe-a", progress=False)
    return folder


def test_a_joint_run_has_every_domain_in_every_section(probed_joint: Path, two: dict[str, Path]) -> None:
    page = report(probed_joint).read_text(encoding="utf-8")
    reader = Reader(page)
    headings = re.findall(r"<h([23])>(.*?)</h[23]>", page)
    assert headings[:3] == [("2", "Data"), ("3", "a"), ("3", "b")]
    assert [name for rank, name in headings if rank == "3"] == ["a", "b"] * 4  # data, training, skill, maps
    model = section(page, "Model")
    assert "tokens of a" in model and "tokens of b" in model
    # curves of both, the skill of a, masks and components of both, and the cases of a
    assert len(reader.all("img")) == 2 + 1 + 4 + 1
    assert page.count(f"<code>scijepa probe {probed_joint} {two['b']} --out {probed_joint}/probe-b</code>") == 2
    rows = pd.read_csv(probed_joint / "probe-a" / "scores.csv")
    for value in rows[rows["metric"] == "rmse"]["value"]:
        assert f'data-sort="{value}"' in page


def test_the_curves_of_a_domain_are_its_own(probed_joint: Path) -> None:
    metrics = pd.read_csv(probed_joint / "metrics.csv")
    parts = section(report(probed_joint).read_text(encoding="utf-8"), "Training").split("<h3>b</h3>")
    for number, name in enumerate(("a", "b")):
        found = f'data-sort="{metrics[f"{name}.loss"].dropna().iloc[-1]}"'
        assert found in parts[number]
        assert found not in parts[1 - number]


def test_one_domain_of_a_joint_run_and_an_archive_that_moved(
    probed_joint: Path, two: dict[str, Path], tmp_path: Path
) -> None:
    moved = xr.open_zarr(two["a"], consolidated=False)
    page = report(probed_joint, out=tmp_path / "a.html", domain="a", archive=moved).read_text(encoding="utf-8")
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["a"] * 4
    both = report(probed_joint, out=tmp_path / "b.html", archive=moved).read_text(encoding="utf-8")
    assert re.findall(r"<h3>(.*?)</h3>", both) == ["a", "b"] * 4
    with pytest.raises(UserError, match="no domain 'c'"):
        report(probed_joint, domain="c")


def test_a_probe_in_the_usual_place_goes_to_the_domain_of_its_archive(probed_joint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "joint"
    shutil.copytree(probed_joint, folder)
    (folder / "probe-a").rename(folder / "probe")
    first, second = section(report(folder).read_text(encoding="utf-8"), "Skill").split("<h3>b</h3>")
    assert "RMSE / climatology" in first and "no probe yet" not in first
    assert "no probe yet" in second


def browsed(html: str, script: str, folder: Path) -> dict[str, Any]:
    """What a script of ours finds in the page when a browser has loaded it: the value of `found`."""
    watch = f"""<script>{script}
    const box = document.createElement("output"); box.id = "seen"; box.textContent = JSON.stringify(found);
    document.body.appendChild(box);
    </script>"""
    path = folder / "page.html"
    path.write_text(html.replace("</body>", watch + "</body>"), encoding="utf-8")
    command = [BROWSER or "", "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr  # neither errors nor what the policy refuses
    answer: dict[str, Any] = json.loads(unescape(re.findall(r'<output id="seen">(.*?)</output>', done.stdout)[0]))
    return answer


IMAGES = "Array.from(document.images).map(i => i.complete && i.naturalWidth > 0 && i.alt.length > 0)"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_a_browser_loads_it_without_errors_and_sorts_its_tables(html: str, tmp_path: Path) -> None:
    # Clicks the heading RMSE of the last table of skill, twice.
    script = f"""
    const table = Array.from(document.querySelectorAll("table")).filter(t => t.caption.textContent == "z, lead 3D")[0];
    const numbers = () => Array.from(table.tBodies[0].rows).map(row => row.children[1].dataset.sort).join(" ");
    const button = table.querySelectorAll("thead button")[1];
    const seen = [numbers()];
    button.click(); seen.push(numbers()); button.click(); seen.push(numbers());
    const found = {{seen, images: {IMAGES}, aria: button.closest("th").getAttribute("aria-sort")}};"""
    found = browsed(html, script, tmp_path)
    _, up, down = ([float(number) for number in text.split()] for text in found["seen"])
    assert up == sorted(up) and down == sorted(down, reverse=True) and len(up) >= 4
    assert found["aria"] == "descending"
    assert found["images"] == [True] * 5


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_a_browser_loads_the_page_of_a_joint_run_and_unfolds_it(probed_joint: Path, tmp_path: Path) -> None:
    script = f"""
    const parts = Array.from(document.querySelectorAll("details"));
    const heights = () => parts.map(part => part.getBoundingClientRect().height);
    const folded = heights(); parts.forEach(part => part.querySelector("summary").click());
    const grown = heights().map((height, number) => height > folded[number] + 40);
    const wide = document.documentElement.scrollWidth > window.innerWidth;
    const found = {{grown, wide, images: {IMAGES}}};"""
    found = browsed(report(probed_joint).read_text(encoding="utf-8"), script, tmp_path)
    assert found["images"] == [True] * 8
    assert found["grown"] == [True] * 4  # the configuration, what was logged of a and of b, further scores of a
    assert not found["wide"]  # nothing sticks out to the right
