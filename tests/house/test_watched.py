"""G3 under a debugger, a profiler or a coverage tool in Python: their code runs between the lines of ours, and so do
other threads; then nobody relies on sections, see ``primitives.watched``."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from eventbus import EventBus
from eventbus._engine import hot, primitives
from eventbus._engine.engine import Engine
from eventbus._engine.turn import turn
from eventbus_async import AsyncEventBus

SECTIONS = {Engine._emit_in_sections.__code__, turn.__code__}


@contextmanager
def traced(inside: list[str]) -> Iterator[None]:
    """Trace all threads; ``inside`` gets the names of functions with sections that were entered."""

    def trace(frame: FrameType, event: str, arg: object) -> None:
        if frame.f_code in SECTIONS:
            inside.append(frame.f_code.co_name)

    before, others = sys.gettrace(), threading.gettrace()
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        threading.settrace(others)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{}, {"headers": {"a": 1}}], ids=["", "headers"])
@pytest.mark.parametrize("mixed", [False, True])
def test_g3_inline_handlers_make_steps(arguments: dict[str, Any], mixed: bool) -> None:
    """Also where one of them is what starts the watching."""
    began, inside = 0, list[str]()

    def trace(frame: FrameType, event: str, arg: object) -> None:
        if frame.f_code in SECTIONS:
            inside.append(frame.f_code.co_name)

    def begins(payload: Any) -> None:
        nonlocal began
        if payload == "begin":
            began += 1
            sys.settrace(trace)

    with EventBus() as bus:
        bus.on("t", begins, inline=True)
        bus.on("t", lambda _: None, inline=True)
        if mixed:
            bus.on("t", lambda _: None)
        for _ in range(3):
            bus.emit("t", **arguments)
        with traced(inside):
            receipt = bus.emit("t", **arguments)
        receipt.wait(10)
        before = sys.gettrace()
        was = hot.use(False)
        try:
            receipt = bus.emit("t", "begin", **arguments)
        finally:
            sys.settrace(before)
            hot.use(was)
        receipt.wait(10)
        row = bus.stats().totals
        assert row.deliveries == row.delivered
    assert began == 1
    assert inside == []


def test_an_emit_is_not_torn_by_a_cancel_between_two_of_its_lines() -> None:
    """G3, G2: the trace function lets another thread cancel just before the delivery is appended."""
    with EventBus() as bus:
        subscription = bus.on("t", print, max_pending=None)
        box = subscription._box
        bus.emit("t", "").wait(10)  # so that the topic has a route

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            if frame.f_code is Engine._emit_in_sections.__code__:
                if event == "line" and box.held and not box.pending and subscription.active:
                    thread = threading.Thread(target=subscription.cancel)
                    thread.start()
                    thread.join(10)
                return trace
            return None

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            receipt = bus.emit("t", "")
        finally:
            sys.settrace(before)
        subscription.cancel()
        assert receipt.wait(10).done
        totals = bus.stats().totals
        assert totals.pending == totals.running == 0


def test_threads_use_no_sections_while_they_are_traced() -> None:
    """G3: neither emitters nor workers."""
    inside: list[str] = []
    got: list[int] = []
    with traced(inside), EventBus() as bus:
        bus.on("t", got.append)
        for number in range(50):
            bus.emit("t", number)
        bus.drain(10)
    assert got == list(range(50))
    assert not inside


def test_loops_use_no_sections_while_they_are_traced() -> None:
    """G3: emits on a loop and the tasks that run coroutine handlers."""
    inside: list[str] = []
    got: list[int] = []

    async def main() -> None:
        async with AsyncEventBus() as bus:

            @bus.on("t")
            async def handle(number: int) -> None:
                got.append(number)

            for number in range(50):
                bus.emit("t", number)
            await bus.drain(10)

    with traced(inside):
        asyncio.run(main())
    assert got == list(range(50))
    assert not inside


def test_a_python_profile_function_counts_as_well() -> None:
    """G3: it is called between the counting of a delivery and its append."""
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, arg: None)
    try:
        assert primitives.tools()
        assert primitives.watched()
    finally:
        sys.setprofile(before)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring came with Python 3.12")
def test_a_tool_that_monitors_counts_as_well() -> None:
    """G3: of ``sys.monitoring``, as coverage tools and debuggers use it."""
    if sys.version_info >= (3, 12):
        tool = 3
        sys.monitoring.use_tool_id(tool, "watcher")
        try:
            sys.monitoring.set_events(tool, sys.monitoring.events.PY_START)
            assert primitives.tools()
            assert primitives.watched()
        finally:
            sys.monitoring.set_events(tool, 0)
            sys.monitoring.free_tool_id(tool)


def test_sections_are_used_where_nobody_watches() -> None:
    """G3: the tests above can fail; a tracer in C, which runs nothing between two lines, is none of these tools."""
    if not primitives.SECTIONS:
        pytest.skip("sections need the GIL")

    class CTracer:
        """Stands for that of coverage.py."""

        def __call__(self, *_: object) -> None: ...

    before = sys.gettrace()
    sys.settrace(CTracer())
    try:
        assert not primitives.watched()
    finally:
        sys.settrace(before)
