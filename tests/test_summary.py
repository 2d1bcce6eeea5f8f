"""The summary at the end of a run, as it looks in an 80-column terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from elip.record import Record
from elip.summary import print_summary
from tests.test_record import BARE, FULL


def printed(record: Record) -> str:
    output = StringIO()
    console = Console(width=80, file=output)
    print_summary(record, "runs/elip/run.json", "python run_experiment.py test", console)
    return output.getvalue()


def test_scores_come_with_chance_and_cost_with_no_reduction() -> None:
    lines = [" ".join(line.split()) for line in printed(FULL).splitlines()]
    assert "fit completed: ELIP on shapes, Pretrain" in lines
    assert "Weights: started from weights trained with ELIP 0.7." in lines
    assert "val 100 accuracy 0.8000 0.5000" in lines
    assert "ELIP 1.00 0.500 0.250 2.00 3.00 0.125 6.88 20.0" in lines
    assert "No reduction 2.00 0 0 2.00 4.00 0.125 8.12 24.0" in lines
    assert "share 85% 83%" in lines
    whole = " ".join(lines)
    assert "entering each block: 64 40.5; leaving: 20 of 64." in whole
    assert "Keep ratio: 0.697 (asked 0.7)." in whole
    assert "48.0 images a second in training; 100 steps in 4 min 10 s" in whole
    assert lines[-2:] == [
        "Record: runs/elip/run.json",
        "Next: python run_experiment.py test",
    ]


def test_no_reduction_is_not_compared_with_itself() -> None:
    same = {"reducer": "Identity", "gflops": FULL.gflops_unreduced}
    text = printed(FULL.model_copy(update=same))
    assert text.count("No reduction") == 2
    assert "share" not in text


def test_a_failed_run_says_why_and_invents_nothing() -> None:
    text = printed(BARE)
    assert "out of memory" in text
    assert "GFLOPs" not in text
    assert "chance" not in text


def test_nothing_is_wider_than_the_terminal() -> None:
    assert max(map(len, printed(FULL).splitlines())) <= 80
