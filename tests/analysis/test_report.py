"""The page says what the numbers say; tables and figures can be used as they are."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.figures import ONE_COLUMN, TWO_COLUMN, chosen, plots, spread, style
from analysis.load import load, study
from analysis.report import findings, write_report
from analysis.statistics import Pairing, compare, t_interval
from analysis.tables import Table, differences, fixed, number, rank, tables, with_interval
from tests.analysis.synthetic import record, write_run, write_study

STUDIES = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    reducers = ("Identity", "Random", "ELIP", "ToMe", "DivPrune", "PuMer")
    write_study(folder / "runs", reducers, (0.7, 0.5), seeds=2)
    write_report([folder / "runs"], folder / "out", "Hello <b>", ["ELIP"], ["ToMe"])
    return folder


@pytest.fixture(scope="module")
def page(place: Path) -> str:
    return (place / "out" / "report.html").read_text()


def test_the_page_needs_nothing_beside_it(page: str) -> None:
    assert "Hello &lt;b&gt;" in page
    assert not re.search(r'<(script|link|img[^>]+src="http)', page)
    assert re.findall(r'href="(?!#|figures/|tables/)([^"]*)"', page) == []
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_every_file_that_the_page_names_is_there(place: Path, page: str) -> None:
    for name in set(re.findall(r'href="((?:figures|tables)/[^"]+)"', page)):
        assert (place / "out" / name).is_file(), name


def test_the_page_names_things_in_words(page: str) -> None:
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    for name in ("VQA score", "recall@1", "off the shelf", "No reduction", "44 runs"):
        assert name in text, name
    for name in ("vqa_score", "Identity", "nan", "-0.000", "None"):
        assert name not in text, name


def test_findings_follow_the_truth(place: Path) -> None:
    found = study(load([place / "runs"]))
    (group,) = found.groups
    said = dict(findings(found, rank(found, group)))
    said_of_random = said["Compared with Random, mean over the keep ratios"]
    assert "Better by example (what other test examples would show): all 3" in said_of_random
    assert "2 seeds per method" in said["What was compared"]
    assert "PuMer at the keep ratios of the others" in said["What these runs do not show"]


def test_without_baselines_all_methods_are_compared_with_each_other(tmp_path: Path) -> None:
    write_study(tmp_path, ("ELIP", "ToMe"), (0.7,), 2, ("VQA",), 40)
    found = study(load([tmp_path]))
    said = dict(findings(found, rank(found, *found.groups)))
    assert "ToMe" in said["Compared with ELIP, mean over the keep ratios"]
    assert said["What these runs do not show"] == (
        "Any comparison with No reduction and Random, which was not run."
    )


def test_a_report_clears_the_files_of_an_earlier_one_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "figures").mkdir(parents=True)
    (out / "figures" / "mine.pdf").write_text("mine")
    write_study(tmp_path / "runs", ("ELIP",), (0.7,), 1, ("VQA",), 20)
    page = write_report([tmp_path / "runs"], out).read_text()
    assert "No two methods share a setting, so there is nothing to compare" in page
    assert (out / "figures" / "mine.pdf").is_file()
    (out / "figures" / "old.pdf").write_text("old")
    write_report([tmp_path / "runs"], out)
    assert not (out / "figures" / "old.pdf").exists()


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study_file = str(STUDIES / "short_tuning.parquet")
    out = ["--out", str(tmp_path / "out")]
    assert main([study_file, *out, "--against", "ELIP", "--highlight", "TopK"]) == 2
    assert "No scored run of 'TopK'. There are: DivPrune" in capsys.readouterr().err
    assert main([str(tmp_path / "none"), *out]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_figures_have_the_width_of_a_column_and_fit_a_page(place: Path) -> None:
    found = study(load([place / "runs"]))
    with style():
        for plot in plots(found):
            for width in (ONE_COLUMN, TWO_COLUMN):
                drawn = plot.draw(width)
                assert drawn.get_figwidth() == pytest.approx(width)
                assert drawn.get_figheight() <= 8
                foot = drawn.get_supxlabel()
                assert "Keep ratio" in foot
                assert "shapes" in foot
                assert "2 seeds" in foot


def test_one_column_names_the_baselines_the_front_and_what_is_asked_for() -> None:
    cells = pd.DataFrame(
        {"label": ["No reduction", "Random", "A", "B", "C"], "gflops_total": [9.0, 1, 2, 3, 4],
         "score": [0.9, 0.1, 0.8, 0.7, 0.6]}
    )  # fmt: skip
    assert chosen(cells, "gflops_total", ["C"]) == {"No reduction", "Random", "A", "C"}


def test_no_figure_puts_both_keep_ratios_on_one_axis(place: Path) -> None:
    found = study(load([place / "runs"]))
    with style():
        drawn = next(p for p in plots(found) if p.name.startswith("keep-ratio")).draw()
    said = {text.get_text() for axes in drawn.axes for text in axes.texts}
    assert "ELIP" in said
    assert not any("PuMer" in text for text in said)
    for table in tables(found, []):
        if table.name.startswith(("scores-", "shares-")) and "fusion" not in table.name:
            assert "PuMer" not in set(table.shown["method"])


def test_labels_keep_their_order_and_do_not_overlap() -> None:
    places = spread([0.5, 0.52, 0.1, 0.51], 0.1, 0.0, 1.0)
    assert sorted(range(4), key=lambda i: places[i]) == [2, 0, 3, 1]
    ordered = sorted(places)
    assert min(b - a for a, b in itertools.pairwise(ordered)) >= 0.1 - 1e-9
    assert max(spread([1.0] * 30, 0.1, 0.0, 1.0)) <= 1 + 1e-9


def test_numbers_never_leave_their_range_silently() -> None:
    assert with_interval(0.95, 0.85, 1.05) == "0.950 [0.850, 1.000*]"
    assert with_interval(-0.0001, -0.01, 0.02, bounded=False, sign=True) == "0.000 [-0.010, +0.020]"
    assert with_interval(0.5, np.nan, np.nan) == "0.500"
    assert fixed(-0.0004) == "0.000"
    assert [number(each) for each in (0.018, 36.0, 1234.5)] == ["0.0180", "36.0", "1,234"]


def test_a_claimed_difference_never_reads_as_if_its_interval_had_zero() -> None:
    draw = np.random.default_rng(0)
    for sign, said in ((1, "[above 0, "), (-1, ", below 0] ")):
        gaps = sign * (0.0041 + 0.01 * draw.permutation(np.linspace(-1, 1, 20)))
        interval = t_interval(gaps)
        gaps += sign * 0.0002 - (interval.low if sign > 0 else interval.high)
        pairing = Pairing("A", "B", "here", (0.5,), gaps, 20)
        assert said in differences(compare([pairing]))[0]


def test_a_model_that_learned_nothing_is_said_to_show_little(tmp_path: Path) -> None:
    for name in ("Identity", "Random", "ELIP"):
        write_run(tmp_path, record(name, score=0.25))
    found = study(load([tmp_path]))
    said = dict(findings(found, rank(found, *found.groups)))
    assert (
        "a model that has learned VQA: this one scores 0.250 without reduction and 0.200"
        in (said["What these runs do not show"])
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no LaTeX")
def test_latex_tables_compile_with_the_best_in_bold(place: Path) -> None:
    found = sorted((place / "out" / "tables").glob("*.tex"))
    assert any(r"\textbf{" in path.read_text() for path in found)
    body = "\n".join(path.read_text() for path in found)
    head = r"\documentclass{article}\usepackage{booktabs}\extrafloats{200}\begin{document}"
    (place / "all.tex").write_text(f"{head}\n{body}\n\\end{{document}}\n")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]


def test_text_in_tables_is_escaped() -> None:
    shown = pd.DataFrame({"a_b": ["x|y <i>", "50% & 3_4"]})
    table = Table("t", "T", "50%", shown, shown, bold={(0, 0)})
    assert r"x\|y &lt;i&gt;" in table.markdown()
    assert r"50\% \& 3\_4" in table.latex()
    assert r"a\_b" in table.latex()


@pytest.mark.slow
def test_a_thousand_runs_take_seconds(tmp_path: Path) -> None:
    count = write_study(tmp_path / "runs", seeds=15, examples=1000)
    assert count >= 1000
    start = time.process_time()
    write_report([tmp_path / "runs"], tmp_path / "out")
    assert time.process_time() - start < 10
