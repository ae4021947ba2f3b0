"""Faults that others have shipped around registration and removal: none of them is here."""

from __future__ import annotations

import functools
import gc
import operator
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
from kit import BOUND, Gate, Log, Team, settled, soon
from pydantic import BaseModel, field_validator

from eventbus import EventBus, NotRegisteredError, Status, Subscription


def test_g2_a_handler_at_the_address_of_a_dead_one_is_not_taken_for_it(bus: EventBus) -> None:
    """A registration keyed by id() is hit by whatever object gets that address next (F5)."""

    class Handler:
        def __call__(self, payload: Any) -> None:
            raise AssertionError("it was never registered")

    for _ in range(50):
        handler = Handler()
        address = id(handler)
        assert bus.off(bus.on("a", handler)) == 1
        del handler
        others = [Handler() for _ in range(20)]
        twins = [each for each in others if id(each) == address]
        for each in (*twins, others[0]):
            with pytest.raises(NotRegisteredError):
                bus.off("a", each)
            bus.on("b", each, unique=True).cancel()
        if twins:
            break
    else:
        pytest.skip("the allocator gave no address twice")
    assert bus.emit("a").deliveries == 0


@pytest.mark.usefixtures("untraced")
def test_g3_receivers_that_change_while_an_event_goes_round(bus: EventBus) -> None:
    """A list of receivers that is iterated while handlers and finalizers change it skips some, or raises (F2)."""
    victims: deque[Subscription] = deque(bus.on("a", lambda _: None) for _ in range(1000))
    kept = Log()
    bus.on("a", kept)

    class Falls:
        def __del__(self) -> None:
            victims.popleft().cancel()

    def changes(payload: Any) -> None:
        victims.popleft().cancel()
        victims.append(bus.on("a", lambda _: None))
        weakref.finalize(Falls(), bus.topics)

    def churn() -> None:
        for _ in range(20):
            bus.on("a", changes).cancel(wait=True)
            bus.emit("a", "churn")

    bus.on("a", changes, inline=True)
    bus.on("a", changes)
    receipts = [bus.emit("a", "main") for _ in range(5)]
    Team(churn, churn, churn, churn).run()
    bus.drain(BOUND)
    assert sorted(kept.items) == ["churn"] * 80 + ["main"] * 5
    for receipt in receipts:
        assert {outcome.status for outcome in receipt.outcomes} <= {Status.DELIVERED, Status.CANCELLED}
        assert not [outcome for outcome in receipt.outcomes if outcome.error is not None]
    settled(bus)


def test_g2_a_handler_for_one_event_that_is_cancelled_from_both_sides(bus: EventBus) -> None:
    """A handler that removes itself at its first call meets a removal from outside: a KeyError elsewhere (F3)."""
    for number in range(200):
        ended: list[bool] = []

        def once(payload: Any, ended: list[bool] = ended) -> str:
            ended.append(subscription.cancel())
            return "called"

        subscription = bus.on("a", once)

        def elsewhere(subscription: Subscription = subscription, ended: list[bool] = ended) -> None:
            ended.append(subscription.cancel(wait=True, timeout=BOUND))

        team = Team(elsewhere)
        team.add(bus.emit, "a", number)
        receipt = team.run()[1].wait(BOUND)
        assert ended.count(True) == 1
        assert [outcome.status for outcome in receipt.outcomes] in ([], [Status.CANCELLED], [Status.DELIVERED])
        assert len(ended) == 1 + receipt.results().count("called")


def test_g2_off_knows_decorated_and_assigned_methods(bus: EventBus) -> None:
    """A method that is looked up again by its name is another one where it was decorated or assigned (F55)."""

    def loud(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(self: Any, payload: Any) -> Any:
            return f"loud {function(self, payload)}"

        return wrapper

    class Shop:
        def plain(self, payload: Any) -> str:
            return "plain"

        decorated = loud(plain)
        other = plain

    shop, twin = Shop(), Shop()
    shop.assigned = shop.decorated  # type: ignore[attr-defined]
    bus.on("a", shop.plain)
    bus.on("a", shop.decorated)
    assert bus.emit("a").wait(BOUND).results() == ["plain", "loud plain"]
    with pytest.raises(NotRegisteredError):
        bus.off("a", twin.decorated)
    assert bus.off("a", shop.assigned) == 1  # type: ignore[attr-defined]
    assert bus.emit("a").wait(BOUND).results() == ["plain"]
    assert bus.off("a", shop.other) == 1  # the very function, of the very object
    assert bus.emit("a").deliveries == 0


def test_g17_handlers_whose_signature_cannot_be_read(bus: EventBus, capsys: pytest.CaptureFixture[str]) -> None:
    """inspect.signature raises ValueError for builtins, and tells of mocks what is not so (F54)."""
    store: dict[str, int] = {}
    mock = Mock(return_value="mocked")
    handlers: list[Any] = [
        print,
        store.update,
        functools.partial(print, "partial"),
        mock,
        operator.itemgetter("n"),
        operator.methodcaller("items"),
        type,
        "{}".format,
        dict,
    ]
    subscriptions = [bus.on("a", handler) for handler in handlers]
    receipt = bus.emit("a", {"n": 7}).wait(BOUND)
    assert [outcome.status for outcome in receipt.outcomes] == [Status.DELIVERED] * len(handlers)
    results = receipt.results()
    assert results[:5] == [None, None, None, "mocked", 7]
    assert results[6:] == [dict, "{'n': 7}", {"n": 7}]
    assert store == {"n": 7}
    mock.assert_called_once_with({"n": 7})
    assert sorted(capsys.readouterr().out.splitlines()) == ["partial {'n': 7}", "{'n': 7}"]
    assert bus.handlers("a") == tuple(handlers)
    assert [bus.off(each) for each in subscriptions] == [1] * len(handlers)


ran: list[str] = []  # which validators


class Inner(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def note(cls, value: int) -> int:
        ran.append("inner")
        return value


class Outer(BaseModel):
    inner: Inner

    @field_validator("inner")
    @classmethod
    def note(cls, value: Inner) -> Inner:
        ran.append("outer")
        return value


def test_g15_validators_do_not_run_again_for_what_is_a_model_already(bus: EventBus) -> None:
    """A model that is validated again in place runs its validators again, with their side effects (F52)."""

    def take(payload: Outer) -> Outer:
        return payload

    ran.clear()
    bus.on("a", take)
    bus.on("a", lambda payload: payload, payload=Outer)
    emitted = Outer(inner=Inner(n=1))
    assert ran == ["inner", "outer"]
    first, second = bus.emit("a", emitted).wait(BOUND).results()
    assert first is second is emitted
    assert ran == ["inner", "outer"]
    bus.emit("a", {"inner": emitted.inner}).wait(BOUND).raise_for_errors()
    assert ran == ["inner", "outer", "outer", "outer"]  # each handler makes its own of what is none


def test_g18_nothing_is_kept_by_a_removal_that_finds_a_full_mailbox(bus: EventBus) -> None:
    """Who removes waits for the dispatcher, which waits for him (F6); and what was pending must go with it."""

    class Payload:
        pass

    with Gate() as gate:
        subscription = bus.on("a", gate, max_pending=1)
        bus.emit("a")
        gate.entered()
        payload = Payload()
        dead = weakref.ref(payload)
        bus.emit("a", payload)
        with Team() as team:
            team.add(bus.emit, "a")
            team.go()
            soon(lambda: bus.stats().totals.pending == 2)
            assert subscription.cancel()  # at once, though an emitter waits for space in it
        assert team.results[0].outcomes[0].status is Status.CANCELLED
        del payload
        gc.collect()
        assert dead() is None
