"""Fixtures of all tests."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator

import pytest
from kit import BOUND, at_rest, settled, soon
from kit_leaves import leaves_nothing

from eventbus import EventBus
from eventbus._engine import hot

__all__ = ["bus", "leaves_nothing", "untraced"]

pytest_plugins = ["pytester"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--harsh",
        action="store_true",
        help="collect garbage after each allocation and switch threads every microsecond",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("--harsh"):
        gc.set_threshold(1)
        sys.setswitchinterval(1e-6)


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No coverage tool or debugger meanwhile, in child processes neither: a signal handler that comes, or raises,
    within coverage's own Python code leaves its lock held for ever."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
    mine, others = sys.gettrace(), threading.gettrace()
    threading.settrace(None)  # type: ignore[arg-type]
    sys.settrace(None)
    yield
    threading.settrace(others)  # type: ignore[arg-type]
    sys.settrace(mine)


@pytest.fixture
def bus() -> Iterator[EventBus]:
    """A bus with the defaults. At the end it must close within the bound, nobody be stuck, and the sums must hold."""
    with EventBus("test") as made:
        yield made
        made.drain(BOUND)
        # A handler past its time-out is settled before it has ended.
        soon(lambda: not any(at_rest(made)), "a pool at rest")
        assert made.close(BOUND).stuck == ()
        settled(made)


@pytest.fixture
def in_python() -> Iterator[None]:
    """The hot path in C calls nothing that a test could replace."""
    before = hot.use(False)
    yield
    hot.use(before)
