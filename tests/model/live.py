"""Random programs of real threads and loops on one bus, and the proof from the history of what each did.

The judge is that of ``kit_schedule.world``, which knows the contract and not the engine. Here nothing decides who runs
but the machine, so a history has a begin and an end of everything from one counter, and a seed stands for a program and
not for a schedule: ``python -m model SEED --times 200`` (in ``tests/``) runs the same program again and again.

Added to that judge: patterns, causation and context (G14, G19), statuses that need a reason, ``follow``, loops that
close with deliveries on their hands, and streams that give all that was delivered to them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from itertools import count
from typing import Any

from kit import BOUND, soon
from kit_schedule.world import ENDLESS, Call, Emit, Sub, World

from eventbus import BusClosedError, Event
from eventbus_async import AsyncEventBus

from .reference import reaches

__all__ = ["LiveWorld"]

LOOP = "loop"
origin: ContextVar[int | None] = ContextVar("origin", default=None)  # the number of the event that is being handled


class _Machine:
    """Stands for the scheduler: the real one, that cannot be asked and tells no lies."""

    lies: frozenset[str] = frozenset()

    def point(self, ready: Callable[[], object] | None = None) -> None:
        """Nothing to decide here."""


class LiveWorld(World):
    """A bus in the real world, and its history."""

    def __init__(self, **options: Any) -> None:
        self.ticks = count(1)
        self.lock = threading.Lock()
        self.opened = threading.Event()
        self.wrong: list[str] = []
        self.lineage: dict[int, set[tuple[Any, ...]]] = {}
        self.raised: set[tuple[str, int]] = set()
        self.kept: list[Any] = []  # facades, and whatever else has to live
        super().__init__(_Machine(), options)  # type: ignore[arg-type]

    def now(self) -> int:
        self.clock = tick = next(self.ticks)
        return tick

    def reaches(self, sub: Sub, topic: str) -> bool:
        return any(reaches(pattern, topic) for pattern in sub.topics)

    def refused(self) -> None:
        assert self.closing != ENDLESS, "refused though nobody closes"

    # Operations

    def on(  # type: ignore[override]
        self, name: str, *topics: str, act: Any = None, facade: AsyncEventBus | None = None, **options: Any
    ) -> Sub | None:
        """Register a handler that notes its calls, then acts; with a facade it is a coroutine function of this loop."""
        sub = Sub(name, topics, {**options, "facade": facade}, self.now())
        with self.lock:
            self.subs[name] = sub

        def plain(event: Event) -> Any:
            call, token = self._begin(sub, event)
            try:
                if act is not None:
                    act(self, sub, call.number)
                return (name, call.number)
            except BaseException:
                self.raised.add((name, call.number))
                raise
            finally:
                origin.reset(token)
                call.end = self.now()

        async def coroutine(event: Event) -> Any:
            call, token = self._begin(sub, event)
            try:
                await asyncio.sleep(0)
                if act is not None:
                    act(self, sub, call.number)
                return (name, call.number)
            except BaseException:
                self.raised.add((name, call.number))
                raise
            finally:
                call.end = min(call.end, self.now())
                if not sub.gone:  # else the collector may be closing it, in another context
                    origin.reset(token)

        if "key" in options:
            options = {**options, "key": lambda event: event.payload[1]}
        try:
            if facade is None:
                sub.handle = self.bus.on(list(topics), plain, name=name, **options)
            else:
                sub.handle = facade.on(list(topics), coroutine, name=name, **options)
        except BusClosedError:
            self.refused()
            with self.lock:
                del self.subs[name]
            return None
        sub.end = self.now()
        return sub

    def _begin(self, sub: Sub, event: Event) -> tuple[Call, Any]:
        number = event.payload[0]
        call = Call(sub, number, self.now(), None)
        with self.lock:
            self.calls.append(call)
            told = event.id, event.parent_id, event.root_id, event.depth, event.seq
            self.lineage.setdefault(number, set()).add(told)
        if origin.get() != self.emits[number].parent:
            self.wrong.append(f"{sub.name} has another context than the emitter of {number} (G14)")
        return call, origin.set(number)

    def emit(self, topic: str = "a/b", key: object = "a", via: Any = None, **arguments: Any) -> Emit | None:
        parent = origin.get()
        with self.lock:
            record = Emit(len(self.emits), topic, LOOP if _on_a_loop() else "thread", parent, key, 0)
            self.emits.append(record)
        record.begin = self.now()
        try:
            receipt = (via or self.bus).emit(topic, (record.number, key), **arguments)
        except BusClosedError:
            self.refused()
            return None
        record.end = self.now()
        record.receipt = receipt
        return record

    def emit_follow(self) -> None:
        """What it caused must be settled, too, when its receipt is."""
        record = self.emit(follow=True)
        self.wait(record)
        if record is not None:
            self._family_is_settled({record.number}, "follow=True")

    def cancel(self, name: str, wait: bool = False, drain: bool = False) -> None:
        sub = self.subs.get(name)
        if sub is not None and sub.handle is not None:
            begin = self.now()
            with self.lock:
                sub.cancels(begin, drain)
            self._cancelled(sub, bool(sub.handle.cancel(wait, drain=drain)), wait or drain)

    async def cancel_here(self, sub: Sub, wait: bool) -> None:
        """The same, in a loop."""
        sub.cancels(self.now())
        self._cancelled(sub, await sub.handle.cancel(wait), wait)

    def _cancelled(self, sub: Sub, mine: bool, waited: bool) -> None:
        end = self.now()
        with self.lock:
            sub.first += mine
            sub.cancel_end = min(sub.cancel_end, end)
            if waited and origin.get() is None:
                sub.quiet = min(sub.quiet, end)
        assert not sub.handle.active

    def drain(self) -> None:
        before = self.accepted()
        self.bus.drain()
        if origin.get() is None:
            self._family_is_settled(before, "drain()")

    def accepted(self) -> set[int]:
        """The emits that have returned by now."""
        return {each.number for each in list(self.emits) if each.receipt is not None}

    def _family_is_settled(self, family: set[int], what: str) -> None:
        if self.closing != ENDLESS:
            return  # close() may cut handlers off, and what they emit afterwards is refused
        for each in list(self.emits):
            if each.number in family or each.parent in family:
                family.add(each.number)
                if each.receipt is not None:
                    assert each.receipt.done, f"{what} returned before emit {each.number} was settled (G10, G19)"

    def close(self) -> None:
        inside = origin.get() is not None
        begin = self.now()
        with self.lock:
            self.closing = min(self.closing, begin)
            self.closed_inside |= inside
        self._close(inside)
        end = self.now()
        with self.lock:
            self.closed = min(self.closed, end)
        if not self.closed_inside:
            for each in list(self.emits):
                assert each.receipt is None or each.receipt.done, f"closed before emit {each.number} was settled (G10)"
        assert self.emit() is None, "an emit was accepted after close() had returned (G10)"

    def _close(self, inside: bool = False) -> Any:
        report = self.bus.close()
        self.impatient |= inside or self.closed_inside or bool(report.cancelled)
        return report

    def stream(self, name: str, topic: str, **options: Any) -> int | None:  # type: ignore[override]
        """Open a stream, and tell its place."""
        sub = Sub(name, (topic,), {**options, "stream": True}, self.now())
        with self.lock:
            self.subs[name] = sub
        try:
            stream = self.bus.stream(topic, name=name, **options)
        except BusClosedError:
            self.refused()
            with self.lock:
                del self.subs[name]
            return None
        sub.handle = stream.subscription
        sub.end = self.now()
        with self.lock:
            self.streams.append((sub, stream, []))
            return len(self.streams) - 1

    def read_all(self, place: int) -> None:
        """Read until the stream ends."""
        _, stream, got = self.streams[place]
        got.extend(event.payload[0] for event in stream)

    # Loops

    def loop(self, main: Callable[[LiveWorld, AsyncEventBus], Awaitable[None]], alone: bool) -> None:
        """A loop that comes and goes: its handlers end with it, or are cancelled before if ``alone``."""
        facade = AsyncEventBus(self.bus)
        self.kept.append(facade)

        async def whole() -> None:
            await main(self, facade)
            mine = [sub for sub in list(self.subs.values()) if sub.options.get("facade") is facade]
            for sub in mine:
                if alone:
                    await self.cancel_here(sub, True)
                else:
                    sub.cancels(self.now())
                    sub.gone = True

        asyncio.run(whole())
        # Nobody resumes them any more: that was the end of what the loop has left suspended.
        for call in list(self.calls):
            if call.sub.gone and call.sub.options["facade"] is facade:
                call.end = min(call.end, self.now())

    # The end

    def _come_to_rest(self) -> None:
        soon(lambda: all(call.end != ENDLESS for call in list(self.calls)), "every call having ended", 2 * BOUND)
        pool = self.bus.stats
        soon(lambda: pool().pool.threads == pool().pool.idle, "every worker being idle")
        soon(lambda: pool().totals.pending == pool().totals.running == 0, "everything being settled")

    def judge(self) -> None:
        assert not self.wrong, self.wrong[:5]
        for _, stream, got in self.streams:
            while stream._box.events:
                got.append(stream.get(0).payload[0])
        super().judge()
        for each in self.emits:
            if each.receipt is not None:
                self._judge_lineage(each)
        for sub, _, got in self.streams:
            given = {each.number for each in self.emits if _status(each, sub) == "delivered"}
            assert set(got) <= given, f"{sub.name}: unexpected (G3)"
            if sub.options.get("overflow", "block") == "block":
                assert set(got) == given, f"{sub.name}: {given - set(got)} lost (G3)"

    def _judge_order(self, calls: list[Call], what: str) -> None:
        # A lane's order is that of admission (G20). On a loop an emit returns before a full mailbox has admitted it.
        if what.startswith("lane"):
            calls = [call for call in calls if not (self.emits[call.number].emitter == LOOP and _may_line_up(call.sub))]
        super()._judge_order(calls, what)

    def _judge_lineage(self, each: Emit) -> None:
        told = self.lineage.get(each.number, set())
        assert len(told) < 2, f"handlers were told different things of emit {each.number}: {told}"
        chain = [each]
        while chain[-1].parent is not None:
            chain.append(self.emits[chain[-1].parent])
        ids = [one.receipt.event_id for one in chain if one.receipt is not None]
        parent = ids[1] if len(ids) > 1 else None
        for ident, its_parent, root, depth, _ in told:
            assert (ident, its_parent, root, depth) == (ids[0], parent, ids[-1], len(chain) - 1), "causation (G19)"

    def _judge_outcome(self, each: Emit, sub: Sub, outcome: Any, calls: Any) -> None:
        super()._judge_outcome(each, sub, outcome, calls)
        status, options = str(outcome.status), sub.options
        policy = options.get("overflow", "block")
        what = f"{sub.name}, emit {each.number}, {status}: {outcome.error!r}"
        if status == "delivered" and not options.get("stream"):
            assert (sub.name, each.number) not in self.raised, what
        elif status == "failed":
            assert (sub.name, each.number) in self.raised, what
        elif status == "timed_out":
            assert "timeout" in options, what
        elif status == "dropped":
            assert policy not in ("block", "error"), what
        elif status == "rejected":
            bounded = "block_timeout" in options or "max_waiting" in options
            cycle = each.parent is not None and "end" in str(outcome.error)
            assert policy == "error" or (policy == "latest" and "key" in options) or bounded or cycle, what


def _status(each: Emit, sub: Sub) -> str | None:
    outcomes = () if each.receipt is None else each.receipt.outcomes
    return next((str(one.status) for one in outcomes if one.subscription_id == sub.handle.id), None)


def _may_line_up(sub: Sub) -> bool:
    return "max_pending" in sub.options and sub.options.get("overflow", "block") == "block"


def _on_a_loop() -> bool:
    return asyncio._get_running_loop() is not None
