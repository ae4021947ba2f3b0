"""Random programs in one thread, each step of which the bus and the reference model take side by side.

After every step the bus comes to rest where the model says that it does, and then everything that can be asked of it is
compared: counts, receipts, what handlers and streams heard and in which order, look-ups.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kit import BOUND, Gate, soon

from eventbus import (
    BusClosedError,
    EventBus,
    EventBusError,
    EventTimeoutError,
    NoHandlerError,
    NotRegisteredError,
    SubscriptionError,
)

from .reference import Delivery, Model, Sub

__all__ = ["BusMachine"]

TOPICS = ("a/b", "a/c", "a", "a/b/c")
PATTERNS = ("a/b", "a/c", "a/*", "a/**", "**", "a", "*/b", "*", "a/b/c", "a/*/c", "a/b/**")
POLICIES = ("block", "drop_oldest", "drop_newest", "latest", "error")
MOST = 9  # subscriptions, so that every one of them can have its threads
OUTCOMES = ("delivered", "failed", "timed_out", "cancelled", "dropped", "rejected")

topics = st.sampled_from(TOPICS)
patterns = st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3, unique=True)
policies = st.sampled_from(POLICIES)
rooms = st.sampled_from((1, 1, 2, 3, None))
which = st.integers(0, 1000)
bursts = st.lists(st.tuples(topics, st.integers(0, 2)), min_size=1, max_size=6)
options = st.fixed_dictionaries(
    {
        "gated": st.sampled_from((True, True, False)),
        "fails": st.sampled_from((False, False, True)),
        "observer": st.sampled_from((False, False, False, True)),
        "concurrency": st.sampled_from((1, 1, 2)),
        "keyed": st.booleans(),
        "lane": st.sampled_from((None, None, "one", "two")),
        "policy": policies,
        "room": rooms,
        "patient": st.sampled_from((True, True, False)),  # under "block": whether an emit may wait for space
    }
)


class Handler:
    """Keeps what it hears, stops at its gate if it has one, then raises or returns."""

    def __init__(self, gated: bool, fails: bool) -> None:
        self.gate = Gate() if gated else None
        self.fails = fails
        self.heard: list[int] = []

    def __call__(self, payload: Any) -> Any:
        self.heard.append(payload[0])
        if self.gate is not None:
            self.gate(payload)
        if self.fails:
            raise ValueError(payload)
        return payload


class BusMachine(RuleBasedStateMachine):
    """The rules: what a program may do next."""

    patience = BOUND / 2  # seconds within which the bus must have come to rest

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Any] = []
        self.bus = EventBus("model", workers=32, on_error=self.errors.append)
        self.model = Model()
        self.handles: dict[Sub, Any] = {}
        self.streams: dict[Sub, Any] = {}
        self.receipts: dict[int, Any] = {}
        self.blocked: dict[int, threading.Thread] = {}
        self.closed = False

    # Registering

    @initialize(several=st.lists(st.tuples(patterns, options), min_size=2, max_size=4))
    def begin(self, several: list[tuple[list[str], dict[str, Any]]]) -> None:
        for names, given in several:
            self.on(names, given)

    @rule(names=patterns, given=options)
    def on(self, names: list[str], given: dict[str, Any]) -> None:
        if len(self.model.subs) >= MOST:
            return
        handler = Handler(given["gated"], given["fails"])
        sub = Sub(tuple(names), handler, **given)
        asked: dict[str, Any] = {
            "observer": sub.observer,
            "concurrency": sub.concurrency,
            "key": (lambda event: event.payload[1]) if sub.keyed else None,
            "lane": sub.lane,
            "overflow": sub.policy,
            "max_pending": sub.room,
        }
        if sub.policy == "block" and not sub.patient:
            asked["max_waiting"] = 0
        self._register(sub, **asked)

    @rule(names=patterns, fails=st.booleans())
    def on_inline(self, names: list[str], fails: bool) -> None:
        if len(self.model.subs) < MOST:
            self._register(Sub(tuple(names), Handler(False, fails), inline=True, fails=fails), inline=True)

    @rule(number=which)
    def on_again(self, number: int) -> None:
        """The same handler once more, with ``unique=True``."""
        old = self._pick(number, lambda sub: not sub.stream and not sub.gated)
        if old is None or len(self.model.subs) >= MOST:
            return
        taken = [sub for sub in self.model.subs if sub.active and sub.handler is old.handler]
        if taken and not self.closed and any(set(sub.patterns) & set(old.patterns) for sub in taken):
            try:
                self.bus.on(list(old.patterns), old.handler, unique=True)
            except SubscriptionError:
                return
            raise AssertionError("unique=True took a second one (G22)")
        self._register(Sub(old.patterns, old.handler, fails=old.fails), unique=True)

    def _register(self, sub: Sub, **options: Any) -> None:
        try:
            self.handles[sub] = self.bus.on(list(sub.patterns), sub.handler, **options)
        except BusClosedError:
            assert self.closed
            return
        assert not self.closed, "a closed bus took a handler"
        self.model.subs.append(sub)

    @rule(names=patterns, policy=policies, room=rooms)
    def stream(self, names: list[str], policy: str, room: int | None) -> None:
        if len(self.model.subs) < MOST and not self.closed:
            sub = Sub(tuple(names), stream=True, policy=policy, room=room)
            self.streams[sub] = self.bus.stream(names, overflow=policy, max_pending=room)  # type: ignore[arg-type]
            self.handles[sub] = self.streams[sub].subscription
            self.model.subs.append(sub)

    # Emitting, and what goes on with it

    @rule(burst=bursts, then=st.sampled_from(("rest", "let go", "read")), number=which)
    def emit(self, burst: list[tuple[str, int]], then: str, number: int) -> None:
        for topic, key in burst:
            self._emit(topic, key)
            self._rest()
        if then == "let go":
            self.let_go(number)
        elif then == "read":
            for _ in burst:
                self.read(number)
                self._rest()

    @rule(topic=topics, require=st.integers(1, 3))
    def require(self, topic: str, require: int) -> None:
        self._emit(topic, 0, require)

    def _emit(self, topic: str, key: int, require: int = 0) -> None:
        number = len(self.model.emits)
        listeners = sum(not sub.observer for sub in self.model.matching(topic))
        expected = BusClosedError if self.closed else NoHandlerError if listeners < require else None
        if expected is not None:
            try:
                self.bus.emit(topic, (number, key), require=require)
            except expected:
                return
            raise AssertionError(f"the emit of {topic} was accepted; {expected.__name__} was due (G10, G21)")
        self.model.emit(topic, key)

        def emitting() -> None:
            self.receipts[number] = self.bus.emit(topic, (number, key), require=require)

        thread = threading.Thread(target=emitting, daemon=True)
        thread.start()
        if any(each in each.sub.line for each in self.model.emits[number]):
            self.blocked[number] = thread
        else:
            thread.join(self.patience)
            assert number in self.receipts, "an emit that has room everywhere did not return, or raised (G9)"

    @rule(number=which)
    def let_go(self, number: int) -> None:
        sub = self._pick(number, lambda sub: sub.gated and bool(sub.running))
        if sub is not None:
            self.model.let_go(sub)
            sub.handler.gate.open()
            self._rest()
            sub.handler.gate.shut()

    @rule(number=which)
    def read(self, number: int) -> None:
        sub = self._pick(number, lambda sub: sub.stream)
        if sub is None:
            return
        try:
            got = self.streams[sub].get(0).payload[0]
        except EventTimeoutError:
            assert not sub.heard, "a stream has lost an event"
            assert sub.active, "a stream that has ended says that it waits"
        except StopIteration:
            assert not sub.heard, "a stream has lost an event"
            assert not sub.active, "a stream that is active has ended"
        else:
            assert sub.heard, f"a stream gave event {got} out of nothing"
            assert got == sub.heard.pop(0), "a stream lost or reordered an event (G3, G4)"
            self.model.refill(sub)

    # Removing

    @rule(number=which, wait=st.booleans(), drain=st.booleans())
    def cancel(self, number: int, wait: bool, drain: bool) -> None:
        sub = self._pick(number, lambda sub: True)
        if sub is None:
            return
        if sub.stream or sub.running or sub.pending:
            wait = drain = False  # these would wait for a gate
        was = sub.active
        self.model.cancel([sub] if was else [])
        assert self.handles[sub].cancel(wait, **({} if sub.stream else {"drain": drain})) is was

    @rule(pattern=st.sampled_from(PATTERNS), number=which, all_handlers=st.booleans())
    def off(self, pattern: str, number: int, all_handlers: bool) -> None:
        given = [sub for sub in self.model.subs if sub.active and pattern in sub.patterns]
        one = self._pick(number, lambda sub: not sub.stream)
        if all_handlers:
            self._off(given, pattern)
        elif one is not None:
            self._off([sub for sub in given if sub.handler is one.handler], pattern, one.handler)

    def _off(self, expected: list[Sub], *arguments: Any) -> None:
        self.model.cancel(expected)
        try:
            assert self.bus.off(*arguments) == len(expected)
        except NotRegisteredError:
            assert not expected, "off() did not find what is registered"
        else:
            assert expected, "off() found what is not registered"

    @precondition(lambda self: len(self.model.subs) > 4)
    @rule(pattern=st.sampled_from(("a", "a/**", "**")))
    def remove_all(self, pattern: str) -> None:
        expected = [sub for sub in self.model.subs if sub.active and pattern in sub.patterns]
        self.model.cancel(expected)
        assert self.bus.remove_all_listeners(pattern) == len(expected)

    # Ending

    @rule()
    def drain(self) -> None:
        try:
            self.bus.drain(0)
        except EventTimeoutError:
            assert self._unsettled(), "drain() has run out of time with nothing unsettled (G10)"
        else:
            assert not self._unsettled(), "drain() returned too early (G10)"

    @precondition(lambda self: len(self.model.emits) > 12)
    @rule()
    def close(self) -> None:
        left = self._unsettled()
        report = self.bus.close(0 if left else BOUND)
        if not self.closed:
            assert report.cancelled == len(left)
            assert len(report.stuck) == sum(bool(each in each.sub.running) for each in left)
        self.closed = True
        for each in left:
            self.model.settle(each, "cancelled")
        for sub in self.model.subs:
            sub.active = False

    @rule(wrong=st.sampled_from(("a/*", "", "a//b", "bus/error", "a/**/b", None)))
    def mistake(self, wrong: Any) -> None:
        """A call that cannot be raises at once, and changes nothing (G17)."""
        for call in (lambda: self.bus.emit(wrong), lambda: self.bus.on("a", wrong)):
            try:
                call()
            except EventBusError:
                continue
            raise AssertionError(f"{wrong!r} was taken (G17)")

    # Comparing

    def _pick(self, number: int, condition: Any) -> Sub | None:
        fitting = [sub for sub in self.model.subs if condition(sub)]
        return fitting[number % len(fitting)] if fitting else None

    def _handlers(self) -> set[Handler]:
        return {sub.handler for sub in self.model.subs if not sub.stream}

    def _unsettled(self) -> list[Delivery]:
        return [each for made in self.model.emits for each in made if each.status == "unsettled"]

    def _row(self, sub: Sub) -> tuple[int, ...]:
        waiting = len(sub.pending) + len(sub.line)
        return (sub.counts["deliveries"], waiting, len(sub.running), *(sub.counts[name] for name in OUTCOMES))

    def _rest(self) -> None:
        """Wait until the bus is where the model says that it comes to rest."""

        def differ() -> list[str]:
            found = []
            for sub in self.model.subs:
                row = self.handles[sub].stats()
                told = (row.deliveries, row.pending, row.running, *(getattr(row, name) for name in OUTCOMES))
                if told != self._row(sub):
                    found.append(f"{sub.patterns}: the bus {told}, the model {self._row(sub)}")
            # A call that is claimed counts as running a moment before the handler's first line.
            heard = sum(len(handler.heard) for handler in self._handlers())
            expected = sum(len(sub.heard) for sub in self.model.subs if not sub.stream)
            return found if heard == expected else [*found, f"{heard} calls, the model {expected}"]

        try:
            soon(lambda: not differ(), within=self.patience)
        except AssertionError:
            raise AssertionError(f"deliveries, pending, running, {', '.join(OUTCOMES)}: {differ()}") from None
        for number, thread in list(self.blocked.items()):
            if any(each in each.sub.line for each in self.model.emits[number]):
                assert thread.is_alive(), "an emit returned though a delivery has no room (G9)"
            else:
                thread.join(self.patience)
                assert number in self.receipts, "an emit did not return though its deliveries are admitted (G9)"
                del self.blocked[number]

    @invariant()
    def compare(self) -> None:
        self._rest()
        for number, receipt in self.receipts.items():
            listed = [each for each in self.model.emits[number] if not each.sub.observer]
            assert receipt.deliveries == len(listed)
            settled = [(self.handles[each.sub].id, each.status) for each in listed if each.status != "unsettled"]
            assert [(each.subscription_id, each.status) for each in receipt.outcomes] == settled
            assert receipt.done is (len(settled) == len(listed))
            for outcome in receipt.outcomes:
                assert outcome.status != "delivered" or outcome.value is None or outcome.value[0] == number
        self._compare_heard()
        self._compare_lookups()
        stats = self.bus.stats()
        assert stats.events == len(self.model.emits) == sum(stats.topics.values())
        rows = [self._row(sub) for sub in self.model.subs]
        total = stats.totals
        told = [total.deliveries, total.pending, total.running, *(getattr(total, name) for name in OUTCOMES)]
        assert told == [sum(column) for column in zip(*rows, strict=True)] or not rows
        wrong = sum(sub.counts["failed"] + sub.counts["rejected"] for sub in self.model.subs)
        soon(lambda: len(self.errors) >= wrong, "on_error hearing of every error (G5)")
        assert len(self.errors) == wrong

    def _compare_heard(self) -> None:
        for handler in self._handlers():
            subs = [sub for sub in self.model.subs if sub.handler is handler]
            wanted = [number for sub in subs for number in sub.heard]
            assert Counter(handler.heard) == Counter(wanted), "lost, doubled or unexpected (G3)"
            for sub in subs if len(subs) == 1 else ():
                if sub.concurrency == 1 and not sub.keyed:
                    assert handler.heard == sub.heard, "out of order (G4)"
        for sub, stream in self.streams.items():
            assert stream.active is sub.active

    def _compare_lookups(self) -> None:
        active = [sub for sub in self.model.subs if sub.active]
        assert self.bus.subscriptions() == tuple(self.handles[sub] for sub in active)
        assert self.bus.topics() == tuple(sorted({pattern for sub in active for pattern in sub.patterns}))
        for topic in TOPICS:
            reached = self.model.matching(topic)
            assert self.bus.subscriptions(topic) == tuple(self.handles[sub] for sub in reached)
            listed = [(sub.stream, sub.handler) for sub in reached if not sub.observer]
            found = self.bus.handlers(topic)
            assert len(found) == len(listed)
            assert all(stream or one is two for one, (stream, two) in zip(found, listed, strict=True))

    def teardown(self) -> None:
        for sub in self.model.subs:
            if sub.gated:
                sub.handler.gate.open()
        for sub in self.streams:
            self.handles[sub].cancel()
        self.bus.close(2 * self.patience)
        for thread in self.blocked.values():
            thread.join(2 * self.patience)
        assert all(receipt.done for receipt in self.receipts.values()), "not settled though the bus is closed (G6)"
        total = self.bus.stats().totals
        assert total.pending == total.running == 0
        assert total.deliveries == sum(getattr(total, name) for name in OUTCOMES)
        super().teardown()
