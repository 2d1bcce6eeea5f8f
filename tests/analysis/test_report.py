"""The report and its files, on studies whole, broken, hostile and tiny."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.figures import PLOTS
from analysis.report import write_report
from analysis.style import spread
from analysis.table import Table
from elip.old_record import write_record
from tests.analysis.synthetic import failed, record, write_study
from tests.analysis.test_tokenmaps import write_maps


class _Page(HTMLParser):
    """Checks that tags close in order; collects text, ids, and what the page loads."""

    void = frozenset({"meta", "img", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.void:
            self.open.append(tag)
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag in ("script", "link", "iframe"):
            self.loads.append(tag)
        if tag == "img":
            self.loads += [] if str(found.get("src")).startswith("data:") else [str(found)]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with two tasks, a failed method, a damaged record and a hostile name."""
    runs = tmp_path_factory.mktemp("runs")
    write_study(runs, ("Identity", "Random", "ToMe", "ELIP"), (0.7, 0.5), 3, ("VQA", "Retrieval"))
    write_record(failed(record("ATS", 0.5), "ValueError: <b>not & bold</b>"), runs / "ats")
    write_record(replace(record("ELIP", 0.7, 3), reducer="<i>$x_1$|&"), runs / "odd")
    (runs / "torn").mkdir()
    (runs / "torn" / "run.json").write_text("{")
    return write_report([runs], tmp_path_factory.mktemp("report"), "A <title>", literature=True)


def test_the_page_stands_alone_and_is_well_formed(report: Path) -> None:
    page = _read(report)
    assert page.loads == []
    assert len(page.ids) == len(set(page.ids))
    text = report.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert not re.search(r'(src|href)="https?://', text.replace("http://www.w3.org", ""))


def test_the_page_says_what_failed_what_is_missing_and_where_it_comes_from(report: Path) -> None:
    page = _read(report)
    for said in (
        "1 failed", "1 records unreadable", "ValueError: <b>not & bold</b>", "half written",
        "a" * 40, "a cpu", "not run", "METER", "test-dev", "one multiply-add = 1",
    ):  # fmt: skip
        assert said in page.text


def test_everything_from_outside_is_escaped(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert "<i>$x_1$" not in text
    assert "<b>not" not in text
    assert "A <title>" in _read(report).text
    tables = report.parent / "tables"
    assert r"\$x\_1\$|\&" in (tables / "scores_1.tex").read_text() + (
        tables / "scores_2.tex"
    ).read_text(encoding="utf-8")
    assert r"&lt;i&gt;$x_1$\|&amp;" in "".join(
        path.read_text(encoding="utf-8") for path in tables.glob("scores_*.md")
    )


def test_every_figure_is_vector_with_embedded_fonts_in_two_widths(report: Path) -> None:
    folder = report.parent / "figures"
    for plot in PLOTS:
        for size, width in (("one-column", 3.3), ("two-column", 6.9)):
            svg = ElementTree.parse(folder / f"{plot.name}-{size}.svg").getroot()
            assert float(svg.attrib["width"].removesuffix("pt")) == pytest.approx(72 * width)
            assert not svg.findall(".//{*}text")  # letters are outlines: no font is asked for
            pdf = (folder / f"{plot.name}-{size}.pdf").read_bytes()
            assert b"/FontFile2" in pdf
            assert b"/Type3" not in pdf


def test_every_table_is_csv_markdown_and_latex(report: Path) -> None:
    folder = report.parent / "tables"
    names = {path.stem for path in folder.glob("*.md")}
    assert {
        "scores_1", "scores_2", "findings_against_Random", "comparisons_by_seeds",
        "comparisons_by_examples_and_ratio", "areas", "costs", "failures",
    } <= names  # fmt: skip
    for name in names:
        assert len(pd.read_csv(folder / f"{name}.csv"))
        latex = (folder / f"{name}.tex").read_text(encoding="utf-8")
        assert r"\toprule" in latex
        rows = latex.split(r"\toprule")[1].split(r"\bottomrule")[0]
        counts = {len(re.findall(r"(?<!\\)&", row)) for row in rows.split(r"\\")[:-1]}
        assert len(counts) == 1


def test_one_seed_says_so_and_claims_nothing(tmp_path: Path) -> None:
    write_study(tmp_path / "runs", ("Identity", "Random", "ToMe"), (0.5,), 1, ("VQA",))
    page = _read(write_report([tmp_path / "runs"], tmp_path / "out"))
    assert "Every cell has one seed" in page.text
    assert not re.search("(ToMe|Random|Identity) beats", page.text)
    assert "comparisons_by_seeds" not in page.text
    assert "not what training anew would" in page.text


def test_nothing_of_an_earlier_report_stands_beside_a_new_one(tmp_path: Path) -> None:
    write_study(tmp_path / "a", ("Identity", "ToMe", "Random"), (0.7, 0.5), 2, ("VQA",), 20)
    write_record(record(), tmp_path / "b")
    out = tmp_path / "out"
    (out / "tables").mkdir(parents=True)
    (out / "tables" / "mine.csv").touch()  # no report lies there yet
    write_report([tmp_path / "a"], out)
    assert (out / "tables" / "mine.csv").exists()
    assert (out / "tables" / "findings_against_Identity.tex").exists()
    write_report([tmp_path / "b"], out)
    assert not list((out / "tables").glob("findings*"))
    assert (out / "tables" / "runs.csv").exists()


def test_runs_without_any_score_still_make_a_report(tmp_path: Path) -> None:
    write_record(failed(record()), tmp_path / "runs")
    page = _read(write_report([tmp_path / "runs"], tmp_path / "out"))
    assert "No run has a score yet." in page.text
    assert "out of memory" in page.text


def test_only_damaged_records_still_make_a_report(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    page = _read(write_report([tmp_path], tmp_path / "out"))
    assert "1 records unreadable" in page.text


def test_damaged_files_beside_records_still_make_a_report(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_study(runs, ("Identity", "ToMe"), (0.5,), 1, ("VQA",))
    torn = runs / "VQA-ToMe-0.5-0"
    (torn / "metrics.csv").write_text("step,val/main\n9,x\n")
    for reducer in ("ToMe", "TopK"):
        write_maps(runs, reducer, [0, -1, 1, 1])
    (runs / "ToMe" / "tokens" / "test-0-0.png").write_bytes(b"")
    page = _read(write_report([runs], tmp_path / "out"))
    assert "1 records unreadable" in page.text
    assert f"{torn}/metrics.csv is no log of scores" in page.text
    assert f"{runs}/ToMe/tokens/tokens.json holds no token maps: the image" in page.text
    assert (tmp_path / "out" / "figures" / "token_maps_1.png").is_file()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path / "runs", ("Identity", "ToMe"), (0.5,), 1, ("VQA",))
    out = str(tmp_path / "out")
    assert main([str(tmp_path / "none"), "--out", out]) == 2
    assert "There is no folder" in capsys.readouterr().err
    assert main([str(tmp_path / "runs"), "--out", out, "--against", "ToMa"]) == 2
    assert "No scored run of 'ToMa'" in capsys.readouterr().err
    assert main([str(tmp_path / "runs"), "--out", out, "--jobs", "1", "--against", "ToMe"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


def test_labels_are_spread_without_overlap_in_their_order() -> None:
    places = spread([0.5, 0.5, 0.1, 0.52], 0.1, 0.0, 1.0)
    assert places[2] == pytest.approx(0.1)
    ordered = sorted(places)
    assert min(b - a for a, b in pairwise(ordered)) >= 0.1 - 1e-9
    assert places[3] == max(places)
    crowded = spread([0.9] * 30, 0.1, 0.0, 1.0)
    assert min(crowded) == pytest.approx(0.0)
    assert max(crowded) == pytest.approx(1.0)
    assert spread([], 0.1, 0, 1) == []


def test_a_table_in_its_forms() -> None:
    shown = pd.DataFrame({"method": ["a|b", "c_d"], "score": ["0.5", "–"]})
    table = Table("name", "Title", "50%", shown, shown)
    assert table.markdown().splitlines()[2:] == [
        "| method | score |", "| :--- | ---: |", r"| a\|b | 0.5 |", "| c_d | – |",
    ]  # fmt: skip
    assert r"c\_d & -- \\" in table.latex()
    assert r"50\%" in table.latex()
    assert '<td class="n">0.5</td>' in table.html()
