"""Bugs that are planted in the bus are found by the random programs, sequential and concurrent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from kit_schedule.plants import PLANTS

from eventbus._engine.buffer import StreamMailbox
from eventbus._engine.engine import Engine
from eventbus._engine.mailbox import KeyedMailbox, Mailbox

from . import concurrent

pytestmark = [
    pytest.mark.leaves("threads", "tasks", reason="a planted bug may abandon handlers, which then never end"),
    pytest.mark.timeout(180),
    pytest.mark.usefixtures("untraced"),  # there is nothing in a bus with a bug that is to be measured
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # of handlers that a bug abandons
]

Plant = Callable[[], AbstractContextManager[Any]]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted bugs are loud, and may hang."""
    caplog.set_level(logging.CRITICAL + 1, "eventbus")
    monkeypatch.setattr(concurrent, "LIMIT", 5.0)


def of_the_schedules(name: str) -> Plant:
    """One that the explorer of schedules finds, too."""
    return PLANTS[name].stand


def drop_oldest_drops_the_newest() -> Any:
    return patch.object(Mailbox, "oldest", lambda self: self.pending[-1] if self.pending else None)


def the_waiting_line_is_a_stack() -> Any:
    honest = Mailbox.refill

    def refill(self: Any) -> None:
        if self.line:
            self.line.reverse()
        honest(self)

    return patch.object(Mailbox, "refill", refill)


def two_of_a_key_at_once() -> Any:
    """A key is free as soon as its call has begun."""
    honest = KeyedMailbox.pop

    def pop(self: Any) -> Any:
        delivery = honest(self)
        self.busy.pop(delivery.key)
        if delivery.key in self.by_key:
            self.ready[delivery.key] = None
        return delivery

    return patch.object(KeyedMailbox, "pop", pop)


def latest_forgets_the_key() -> Any:
    """The oldest of all makes room, whatever its key."""
    return patch.object(KeyedMailbox, "replace", Mailbox.replace)


def an_emit_forgets_its_cause() -> Any:
    return patch.object(Engine, "_descend", lambda self, receipt, cause, follow: None)


@contextmanager
def cancelled_ones_are_counted_as_dropped() -> Iterator[None]:
    from eventbus._engine.mailbox import COUNTER
    from eventbus._values.stats import Status

    with patch.dict(COUNTER, {Status.CANCELLED: COUNTER[Status.DROPPED]}):
        yield


def one_read_admits_the_whole_line() -> Any:
    """A bug that the model found: what is claimed and not yet in the buffer takes no room."""
    return patch.object(StreamMailbox, "room", lambda self, delivery: len(self.events) < (self.limit or 1 << 30))


SLOW: list[Plant] = [drop_oldest_drops_the_newest, two_of_a_key_at_once]  # 20 s: a step of the program hangs in them
SEQUENTIAL: list[Any] = [
    *(pytest.param(plant, marks=pytest.mark.soak) for plant in SLOW),
    the_waiting_line_is_a_stack,
    latest_forgets_the_key,
    cancelled_ones_are_counted_as_dropped,
    one_read_admits_the_whole_line,
    of_the_schedules("a_lane_lets_two_in"),
]
CONCURRENT: list[Plant] = [
    an_emit_forgets_its_cause,
    two_of_a_key_at_once,
    of_the_schedules("a_lane_lets_two_in"),
    of_the_schedules("a_mailbox_runs_two_at_once"),
    of_the_schedules("a_waiting_cancel_does_not_wait"),
    of_the_schedules("a_drain_forgets_older_epochs"),
    cancelled_ones_are_counted_as_dropped,
]


@pytest.mark.parametrize("plant", SEQUENTIAL, ids=lambda plant: plant.__name__)
def test_a_sequential_program_finds(plant: Plant) -> None:
    pytest.importorskip("hypothesis", reason="of the extra dev")
    from hypothesis import HealthCheck, Phase, settings
    from hypothesis.errors import FlakyFailure
    from hypothesis.stateful import run_state_machine_as_test

    from .sequential import BusMachine

    class Hasty(BusMachine):
        patience = 0.5

    found = settings(
        max_examples=300,
        stateful_step_count=30,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    for patience in (0.5, 5.0):
        Hasty.patience = patience
        try:
            with plant():
                run_state_machine_as_test(Hasty, settings=found)
        except FlakyFailure:
            continue  # on a machine that is busy the first was mere impatience
        except AssertionError:
            return
    pytest.fail("no program has found it")


@pytest.mark.parametrize("plant", CONCURRENT, ids=lambda plant: plant.__name__)
def test_a_concurrent_program_finds(plant: Plant) -> None:
    with plant():
        for seed in range(60):
            try:
                concurrent.run(seed)
            except AssertionError:
                return
    pytest.fail("not found in 60 programs")
