"""G2, G3, G9, G11, G12, G18, G20: what a mailbox does in the steps that other tests can hardly bring about.

Those that mend what a signal handler has broken off by raising, those of a forked child, and the small print of which
mailboxes may do without a step. The test makes these steps itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from kit import BOUND, LONG, Gate, soon

from eventbus import EventBus, Receipt, Status
from eventbus._engine import hot, primitives
from eventbus._engine.delivery import LINED, PENDING, SETTLED, Delivery
from eventbus._engine.mailbox import DRAINING, ENDED, NO_COUNTS, KeyedMailbox, Mailbox
from eventbus_async import AsyncEventBus

KEYED: dict[str, Any] = {"key": lambda event: event.payload[0], "concurrency": 2}


def emit_all(bus: EventBus, *payloads: Any) -> list[Receipt]:
    """On a loop, where what finds no room lines up and nobody waits."""

    async def main() -> list[Receipt]:
        return [bus.emit("a", each) for each in payloads]

    return asyncio.run(main())


def own(*receipts: Receipt) -> list[Delivery]:
    """The one delivery of each."""
    return [receipt._deliveries[0] for receipt in receipts]


def picture(box: Mailbox) -> dict[str, Any]:
    """All that a mailbox holds, as something that can be compared."""
    slots = {*Mailbox.__slots__, *getattr(type(box), "__slots__", ())}
    shown = {name: getattr(box, name) for name in slots}
    shown["pending"] = list(box.pending)
    shown["line"] = list(box.line or ())
    shown["counts"] = tuple(box.counts)
    for name in ("order", "ready", "by_key", "busy"):
        if name in shown:
            shown[name] = list(shown[name].items() if hasattr(shown[name], "items") else shown[name])
    return shown


def payloads(deliveries: Iterable[Delivery]) -> list[Any]:
    return [each.receipt._payload for each in deliveries]


class Full:
    """A mailbox in which one runs (two of a keyed one), four are pending and two are in line."""

    def __init__(self, bus: EventBus, gate: Gate, options: dict[str, Any]) -> None:
        self.bus = bus
        self.gate = gate
        self.box = bus.on("a", gate, max_pending=4, **options)._box
        self.keyed = options is KEYED
        self.running = emit_all(bus, ("x", 0), ("y", 0)) if self.keyed else emit_all(bus, ("x", 0))
        gate.entered(len(self.running))
        self.pending = emit_all(bus, ("x", 1), ("z", 2), ("z", 3), ("v", 4))
        self.line = emit_all(bus, ("x", 5), ("w", 6))

    def step(self, call: Any, *args: Any) -> Any:
        return self.bus._engine.monitor.run(call, *args)


@pytest.fixture(params=[{}, {"lane": "lane"}, KEYED], ids=["plain", "lane", "keyed"])
def full(request: pytest.FixtureRequest, bus: EventBus) -> Iterator[Full]:
    with Gate() as gate:
        yield Full(bus, gate, request.param)


class TestMending:
    """After a step that a signal handler has broken off by raising (G12)."""

    def test_g12_what_is_whole_stays_as_it_is(self, full: Full) -> None:
        before = picture(full.box)
        full.step(full.box.purge)
        assert picture(full.box) == before
        assert payloads(full.box.queue()) == [("x", 1), ("z", 2), ("z", 3), ("v", 4)]
        assert payloads(full.box.line or ()) == [("x", 5), ("w", 6)]

    def test_g12_what_was_settled_and_not_yet_taken_out_is_taken_out(self, full: Full) -> None:
        broken = own(*full.pending[:2], full.line[0])

        def settle() -> None:
            for each in broken:
                full.bus._engine.settle(each, Status.CANCELLED)

        full.step(settle)
        full.step(full.box.purge)
        assert payloads(full.box.queue()) == [("z", 3), ("v", 4)]
        assert payloads(full.box.line or ()) == [("w", 6)]
        assert full.box.size() == 2
        if isinstance(full.box, KeyedMailbox):
            assert {key: payloads(waiting) for key, waiting in full.box.by_key.items()} == {
                "z": [("z", 3)],
                "v": [("v", 4)],
            }
            assert list(full.box.ready) == ["z", "v"]
        full.gate.open()
        full.bus.drain(BOUND)
        assert [each.status for each in own(*full.pending, *full.line)] == [
            *[Status.CANCELLED] * 2,
            *[Status.DELIVERED] * 2,
            Status.CANCELLED,
            Status.DELIVERED,
        ]

    def test_g12_what_was_settled_and_not_yet_taken_out_is_not_claimed_either(self, full: Full) -> None:
        """Its turn comes before the mend; nothing is left of it."""
        broken = own(*full.pending[:2])

        def settle() -> None:
            for each in broken:
                full.bus._engine.settle(each, Status.CANCELLED)

        full.step(settle)
        full.gate.open()
        full.bus.drain(BOUND)
        assert sorted(full.gate.received[len(full.running) :]) == [("v", 4), ("w", 6), ("x", 5), ("z", 3)]
        assert full.box.idle()

    @pytest.mark.parametrize("options", [{}, KEYED], ids=["plain", "keyed"])
    def test_g12_where_there_is_none_to_drop_for_it_what_comes_is_dropped_itself(
        self, bus: EventBus, options: dict[str, Any]
    ) -> None:
        """The broken step has settled what took up the space, and the mend is still to come."""
        with Gate() as gate:
            box = bus.on("a", gate, overflow="drop_oldest", max_pending=1, **options)._box
            for payload in ("x", "y")[: box.concurrency]:
                bus.emit("a", (payload, 0))
            gate.entered(box.concurrency)
            receipt = bus.emit("a", ("z", 1))
            (pending,) = own(receipt)

            def broken() -> None:
                bus._engine.settle(pending, Status.CANCELLED)
                if not options:
                    box.pending.remove(pending)

            bus._engine.monitor.run(broken)
            assert [each.status for each in bus.emit("a", ("z", 2)).wait(BOUND).outcomes] == [Status.DROPPED]
            bus._engine.monitor.run(box.purge)
            receipt = bus.emit("a", ("z", 3))
        assert [each.status for each in receipt.wait(BOUND).outcomes] == [Status.DELIVERED]

    def test_g12_what_is_in_is_known_and_what_is_not(self, full: Full) -> None:
        before = picture(full.box)
        lane = list(full.box.lane.line) if full.box.lane else []
        for each in own(*full.running, *full.pending, *full.line):
            assert full.step(full.box.mend, each) is True
        assert picture(full.box) == before
        assert (list(full.box.lane.line) if full.box.lane else []) == lane
        other = full.bus.on("b", Gate())._box
        for box in (full.box, other):
            for state in (PENDING, LINED):
                absent = Delivery(full.pending[0], box, None)
                absent.state = state
                absent.key = None
                assert full.step(box.mend, absent) is False

    def test_g12_one_that_has_not_come_to_its_lane_yet_comes(self, bus: EventBus) -> None:
        with Gate() as gate:
            full = Full(bus, gate, {"lane": "lane"})
            (last,) = own(full.pending[-1])
            lane = full.box.lane
            assert lane is not None
            lane.line.remove(last)
            assert full.step(full.box.mend, last) is True
            assert list(lane.line)[-1] is last

    def test_g12_one_that_no_loop_runs_yet_has_no_place_in_its_lane(self, bus: EventBus) -> None:
        async def never(_: Any) -> None: ...

        with AsyncEventBus(bus).on("a", never, lane="lane") as subscription:
            box = subscription._box
            (pending,) = own(bus.emit("a"))
            assert bus._engine.monitor.run(box.mend, pending) is True
            assert box.lane is not None
            assert not box.lane.line


@pytest.mark.parametrize("options", [{}, {"lane": "lane"}, {"inline": True}, KEYED], ids=str)
def test_g11_in_a_forked_child_a_mailbox_is_as_new(bus: EventBus, options: dict[str, Any]) -> None:
    used, new = (bus.on(topic, lambda payload: payload, **options)._box for topic in "ab")
    for number in range(3):
        bus.emit("a", ("x", number)).wait(BOUND)
    bus.drain(BOUND)
    soon(lambda: bus.stats().pool.computing == 0)
    changed = {name for name, value in picture(used).items() if value != picture(new)[name]}
    assert {"deliveries", "counts", "latencies", "bound"} - changed <= ({"bound"} if "inline" in options else set())

    def fork() -> None:
        used.queued = used.slow = True
        used.waiters = []
        used.line = deque()
        used.renew()

    bus._engine.monitor.run(fork)
    assert used.lane is None
    assert used.counts is NO_COUNTS
    assert (used.line, used.waiters, used.running) == (None, None, ())
    for name in ("queued", "slow", "pending", "bound", "held", "deliveries", "latencies", "plain", "admits", "flows"):
        assert getattr(used, name) == getattr(new, name), name
        assert type(getattr(used, name)) is type(getattr(new, name)), name
    if isinstance(used, KeyedMailbox):
        assert not any((used.by_key, used.busy, used.ready, used.order))
    bus.emit("a", ("x", 9)).wait(BOUND)


class TestSections:
    """Who may do without a step (G3): emits may append, whoever runs it may settle and claim."""

    @pytest.mark.parametrize(
        ("changes", "admits", "flows"),
        [
            ({}, True, True),
            ({"state": DRAINING}, False, False),
            ({"state": ENDED}, False, False),
            ({"plain": False}, False, False),
            ({"line": deque([None])}, False, False),
            ({"concurrency": 2}, True, False),
            ({"timeout": 1.0}, True, False),
            ({"slow": True}, True, False),
            ({"raw": True}, True, False),
        ],
        ids=str,
    )
    def test_g3_of_handlers_that_somebody_runs(
        self, bus: EventBus, changes: dict[str, Any], admits: bool, flows: bool
    ) -> None:
        assert self.reviewed(bus, changes) == (admits, flows)

    @pytest.mark.parametrize(
        ("changes", "flows"),
        [
            ({}, True),
            ({"running": (None,)}, True),
            ({"running": (None, None)}, False),
            ({"state": DRAINING}, False),
            ({"state": ENDED}, False),
            ({"raw": True}, False),
        ],
        ids=str,
    )
    def test_g3_of_inline_ones(self, bus: EventBus, changes: dict[str, Any], flows: bool) -> None:
        assert self.reviewed(bus, changes, inline=True) == (False, flows)

    @pytest.mark.parametrize("inline", [False, True])
    def test_g3_on_builds_without_a_gil_nobody(
        self, bus: EventBus, inline: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(primitives, "SECTIONS", False)
        assert self.reviewed(bus, {}, inline) == (False, False)

    def reviewed(self, bus: EventBus, changes: dict[str, Any], inline: bool = False) -> tuple[bool, bool]:
        """What such a mailbox allows, as on a build with a GIL."""
        box = bus.on("a", lambda payload: None, inline=inline)._box
        before = {name: getattr(box, name) for name in changes}

        def look() -> tuple[bool, bool]:
            for name, value in changes.items():
                setattr(box, name, value)
            box.review()
            found = bool(box.admits), bool(box.flows)
            for name, value in before.items():
                setattr(box, name, value)
            box.review()
            return found

        return bus._engine.monitor.run(look)


def test_g18_what_is_pending_is_shown_to_the_collector_once_its_mailbox_moves(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hot path in C hides it as long as somebody is sure to hold it."""
    with Gate() as gate:
        full = Full(bus, gate, {})
        executor = full.box.executor
        shown: list[tuple[Any, ...]] = []
        with monkeypatch.context() as patch:
            patch.setattr(hot, "track", lambda *given: shown.append(given))
            full.step(full.box.attach, executor)
            assert shown == []
            for place in (None, executor, None, executor):
                full.step(full.box.attach, place)
                assert shown == [(each, each.receipt) for each in own(*full.pending)]


def test_g12_whoever_waits_for_the_end_of_a_call_hears_of_it_though_its_step_is_broken(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Alarm(BaseException):
        pass

    told: list[Delivery] = []
    finished = Mailbox.finished

    def alarmed(box: Mailbox, delivery: Delivery) -> None:
        told.append(delivery)
        if len(told) == 1:
            raise Alarm
        finished(box, delivery)

    box = bus.on("a", lambda _: None)._box
    receipt = bus.emit("b")
    ended = Delivery(receipt, box, None)
    ended.state = SETTLED

    def ends() -> None:
        box.running = (ended,)
        box.finish(ended)

    monkeypatch.setattr(Mailbox, "finished", alarmed)
    with pytest.raises(Alarm):
        bus._engine.monitor.run(ends)
    assert told == [ended, ended]
    assert box.running == ()
    assert ended.receipt is None


def test_g9_an_emit_is_accepted_once_all_that_were_full_have_taken_it(bus: EventBus) -> None:
    gates = [Gate(), Gate()]
    for gate in gates:
        bus.on("a", gate, max_pending=1)
    *_, last = emit_all(bus, 0, 1, 2)
    with gates[0], gates[1]:
        assert last._accepting == 2
        gates[0].open()
        soon(lambda: last._accepting == 1)
        assert not last._is_accepted()
    last.wait(BOUND)
    assert last._is_accepted()


def test_g18_no_deadline_is_kept_of_what_has_got_its_space(bus: EventBus) -> None:
    """Nor of calls that have ended in time."""
    with Gate() as gate:
        bus.on("a", gate, max_pending=1, block_timeout=LONG, timeout=LONG)
        receipts = emit_all(bus, 0)
        gate.entered()
        receipts += emit_all(bus, 1, 2)
        assert bus._engine.look(deadlines, bus) == 2
    for receipt in receipts:
        receipt.wait(BOUND)
    assert bus._engine.look(deadlines, bus) == 0


def deadlines(bus: EventBus) -> int:
    return sum(callback is not None for _, _, callback in bus._engine.timer._heap)


def test_g3_a_mailbox_is_ready_once() -> None:
    with EventBus(workers=1, max_workers=1) as bus, Gate() as gate:
        bus.on("a", gate)
        bus.on("b", lambda _: None)
        bus.emit("a")
        gate.entered()
        for _ in range(4):
            bus.emit("b")
        assert bus.stats().pool.ready == 1


class TestKeys:
    def test_g18_what_newer_ones_have_replaced_does_not_pile_up(self, bus: EventBus) -> None:
        """It is passed over where it stands, and swept out now and then."""
        with Gate() as gate:
            box = bus.on("a", gate, overflow="latest", max_pending=8, **KEYED)._box
            assert isinstance(box, KeyedMailbox)
            bus.emit("a", ("x", 0))
            bus.emit("a", ("y", 0))
            gate.entered(2)
            lengths: list[int] = []
            for number in range(140):
                bus.emit("a", ("xy"[number % 2], number))
                lengths.append(len(box.order))
            assert lengths[:68] == list(range(3, 71))
            assert lengths[68:71] == [3, 4, 5]
            assert payloads(box.queue()) == [("x", 138), ("y", 139)]
        bus.drain(BOUND)
        assert sorted(gate.received[-2:]) == [("x", 138), ("y", 139)]

    def test_g18_of_the_last_that_was_pending_nothing_is_left(self, bus: EventBus) -> None:
        """Though others run, of its key or not."""
        with Gate() as gate:
            box = bus.on("a", gate, **KEYED)._box
            assert isinstance(box, KeyedMailbox)
            bus.emit("a", ("x", 0))
            gate.entered()
            for payload in (("x", 1), ("y", 1)):
                if payload[0] == "y":
                    bus._engine.monitor.run(setattr, box, "concurrency", 1)
                (pending,) = own(bus.emit("a", payload))
                bus._engine.monitor.run(box.retire, pending, Status.CANCELLED)
                assert not any((box.order, box.by_key, box.ready, box.size()))
            assert not box.claimable()
