import doctest
import importlib
from html.parser import HTMLParser

import pytest

from sciJEPA.report.page import Cell, folded, missing, page, table, text


class Reader(HTMLParser):
    """Checks that tags are closed in order, and collects what is of interest."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.found if name == tag]


def test_a_page_is_well_formed_and_names_its_sections() -> None:
    html = page("A run", "of a model", [("Data", text("words")), ("Skill", missing("no probe yet", "scijepa probe"))])
    reader = Reader(html)
    assert html.startswith("<!DOCTYPE html>")
    assert [link["href"] for link in reader.all("a")] == ["#section-0", "#section-1"]
    assert [section["id"] for section in reader.all("section")] == ["section-0", "section-1"]
    assert reader.all("html")[0]["lang"] == "en"


def test_what_comes_from_outside_cannot_become_markup() -> None:
    evil = "<script>alert(1)</script>\"'&"
    html = page(
        evil, evil, [(evil, text(evil) + folded(evil, evil) + missing(evil, evil) + table(evil, [evil], [[evil]]))]
    )
    assert len(Reader(html).all("script")) == 1  # ours


def test_a_page_forbids_itself_the_network() -> None:
    html = page("a", "b", [])
    (policy,) = [m["content"] for m in Reader(html).all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'")
    assert "http://" not in html and "https://" not in html


def test_numbers_stand_right_and_sort_by_value() -> None:
    html = table("t", ["name", "n"], [["a", Cell("2 K", 2.0)], ["b", Cell(".", float("nan"))]], best=[0])
    cells = Reader(html).all("td")
    assert [cell["data-sort"] for cell in cells] == ["a", "2.0", "b", ""]
    assert [cell.get("class") for cell in cells] == [None, "number", None, "number"]
    assert [row.get("class") for row in Reader(html).all("tr")] == [None, "best", None]


def test_the_examples_in_the_docstrings_run() -> None:
    result = doctest.testmod(importlib.import_module("sciJEPA.report.page"))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("rows", [[], [["only", "text"]]])
def test_tables_without_numbers(rows: list[list[str]]) -> None:
    assert not any(head.get("class") for head in Reader(table("t", ["a", "b"], rows)).all("th"))
