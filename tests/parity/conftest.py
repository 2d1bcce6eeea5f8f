"""Ends a parity run with a table: reducers by cases passed."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

_CASES = "test_reducers_parity.py::test_case["


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if _CASES in report.nodeid:
                method = report.nodeid.split(_CASES)[1].split("/")[0]
                counts[method][outcome] += 1
    if not counts:
        return
    terminalreporter.section("reducers and their official code")
    terminalreporter.write_line(f"{'method':12}{'passed':>8}{'failed':>8}{'not asked':>11}")
    total = Counter[str]()
    for method in sorted(counts):
        total += counts[method]
        terminalreporter.write_line(_row(method, counts[method]))
    terminalreporter.write_line(_row("all", total))


def _row(name: str, count: Counter[str]) -> str:
    return f"{name:12}{count['passed']:8}{count['failed']:8}{count['skipped']:11}"
