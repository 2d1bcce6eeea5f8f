"""Choose the reducers under test: all of ours and a foreign one, or those given by --reducer."""

from __future__ import annotations

import pytest

from tests.contract.subjects import METHODS, by_import_path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reducer",
        action="append",
        help="import path of a reducer to test instead of all of ours",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "make" in metafunc.fixturenames:
        paths = metafunc.config.getoption("--reducer", default=None) or ()
        named = [pytest.param(lambda path=path: by_import_path(path), id=path) for path in paths]
        metafunc.parametrize("make", named or METHODS)
