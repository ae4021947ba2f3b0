"""Who plays: emitters, subscriptions that come and go, streams, requests, small buses that are closed under fire; in
threads, and in loops that come, pause, and go.

Owner: a :class:`World` is shared; its sets are changed by atomic calls only.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from eventbus import BusClosedError, EventBus, EventSynchronizer, EventTimeoutError, NoHandlerError
from eventbus_async import AsyncEventBus

from .guests import Guests
from .handlers import (
    ALL_TOPICS,
    ASK,
    EVERYTHING,
    KEYS,
    PATTERNS,
    RESIDENTS,
    TOPICS,
    Fault,
    choose_options,
    choose_patterns,
    coroutine_handler,
    plain_handler,
    responder,
)
from .history import PATIENCE, Emit, History, Sub, settled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Player = Callable[[AsyncEventBus, random.Random], Awaitable[None]]

__all__ = ["World"]

SUBSCRIPTIONS = 30  # of threads, at a time
LOOPS = 2  # at a time
PER_LOOP = 8  # coroutine handlers, at a time
UNDER_WAY = 6  # emits that one emitter does not wait for


class World:
    """The bus in use, and everybody who uses it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.history = History()
        self.bus = EventBus("soak", on_error=self.history.hear)
        self.stop = threading.Event()  # whoever plays comes to an end: a rest, or the end of all
        self.loops: set[asyncio.AbstractEventLoop] = set()
        self.lives = 0  # loops that there were
        self.small = 0  # small buses that there were
        self.asked = 0
        self.streamed = 0
        self.subscribed = 0
        self.guests = Guests(self.history)
        self.judge_thread: threading.Thread | None = None
        self.threads: list[threading.Thread] = []
        self._subscribe_residents(random.Random(seed))
        self._parts = [
            (name, play, random.Random(seed * 1000 + place)) for place, (name, play) in enumerate(self._players())
        ]

    # The course

    def begin(self) -> None:
        """Let everybody begin, or go on after a rest, in threads of their own."""
        self.stop.clear()
        self.threads = [
            self._thread(f"{name}-{place}", partial(self._play, name, play, rng))
            for place, (name, play, rng) in enumerate(self._parts)
        ]
        self.judge_thread = self._thread("judge", self._judge)

    def rest(self) -> None:
        """Let everybody end, and judge all that there was. Left are the bus and its residents, until :meth:`begin`."""
        self.stop.set()
        end = time.monotonic() + 2 * PATIENCE
        for thread in (*self.threads, self.judge_thread):
            if thread is not None:
                thread.join(max(0.0, end - time.monotonic()))
                if thread.is_alive():
                    self.history.flag("stalled", f"{thread.name} does not end")
        self.threads, self.judge_thread = [], None
        for _ in range(2):  # what ended during the first
            self.history.judge(self.bus)
        left = len(self.history.subs) - len(self._residents)
        if self.history.open or left:
            text = f"at rest, {len(self.history.open)} emits have not returned, {left} subscriptions have not ended"
            self.history.flag("unsettled", text)

    def _players(self) -> list[tuple[str, Callable[[random.Random], object]]]:
        return [
            *[("emitter", self.emitter)] * 3,
            ("asker", self.asker),
            ("churner", self.churner),
            ("reader", self.reader),
            ("closer", self.closer),
            *[("loop", self.loop_life)] * LOOPS,
            ("guests", partial(self.guests.serve, stop=self.stop)),
        ]

    @staticmethod
    def _thread(name: str, run: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=run, name=f"soaking-{name}", daemon=True)
        thread.start()
        return thread

    def _play(self, name: str, play: Callable[[random.Random], object], rng: random.Random) -> None:
        while not self.stop.is_set():
            try:
                play(rng)
            except EventTimeoutError as error:
                self.history.flag("stalled", f"{name}: {error}")
            except Exception as error:
                self.history.flag("errors", f"{name}: {error!r}")
                self.stop.wait(0.1)

    def _judge(self) -> None:
        while not self.stop.wait(0.2):
            self.history.judge(self.bus)

    def end(self) -> None:
        """Come to rest, let the residents end, close the buses, and judge what is left."""
        self.rest()
        for sub in tuple(self.history.subs.values()):
            if sub.cancel_end > self.history.now():
                self.history.cancel(sub, wait=True, drain=True)
        self.history.judge_end(self.bus)
        report = self.bus.close(PATIENCE)
        if report.cancelled or report.stuck:
            self.history.flag("unsettled", f"left at the close: {report}", max(1, report.cancelled))
        self.guests.end()

    def tasks(self) -> int:
        """How many tasks there are on all loops."""
        count = 0
        for loop in (*self.loops, self.guests.loop):
            try:
                count += len(asyncio.all_tasks(loop))
            except RuntimeError:  # they changed while they were counted
                pass
        return count

    # Those who stay

    def _subscribe_residents(self, rng: random.Random) -> None:
        """Subscriptions that live as long as the bus."""
        self.subscribe_ask(rng)
        self.observe()
        for options in RESIDENTS:
            sub = self.history.expect(TOPICS, options)
            handler = plain_handler(
                self.history, self.bus, sub, random.Random(rng.random()), {**options, "stays": True}
            )
            self.history.made(sub, self.bus.on(ALL_TOPICS, handler, name=sub.name, **options))
        self._residents = tuple(self.history.subs)

    # In threads

    def emitter(self, rng: random.Random) -> None:
        """Bursts; waits for some, drains now and then."""
        history, bus = self.history, self.bus
        burst = []
        for _ in range(rng.randint(1, UNDER_WAY)):
            chance = rng.random()
            arguments: dict[str, Any] = {}
            if chance < 0.05:
                arguments["follow"] = True
            elif chance < 0.1:
                arguments["require"] = rng.randint(1, 12)
            elif chance < 0.15:
                arguments["headers"] = {"soak": chance}
            burst.append(history.emit(bus, rng.choice(TOPICS), rng.choice(KEYS), **arguments))
        if rng.random() < 0.02:
            bus.drain(PATIENCE)
            for emit in burst:
                if not emit.refused and not emit.receipt.done:
                    history.flag("unsettled", f"drain() returned before emit {emit.number} was settled (G10)")
        for emit in burst:
            if not emit.refused:
                emit.receipt.wait(PATIENCE)

    def asker(self, rng: random.Random) -> None:
        """Requests, to one who always answers or fails and one who comes and goes."""
        passing = self.subscribe_ask(rng)
        for _ in range(rng.randint(1, 20)):
            emit = self.history.begin_emit(ASK, rng.choice(KEYS))
            try:
                answer = self.bus.request(ASK, emit, PATIENCE)
            except BaseExceptionGroup as group:
                if group.split(Fault)[1] is not None:
                    raise
            except NoHandlerError as error:
                self.history.flag("wrong", f"request: {error}")
            else:
                if answer != emit.number:
                    self.history.flag("wrong", f"request {emit.number} was answered with {answer!r} (G6)")
            finally:
                emit.end = self.history.now()
            self.asked += 1
            self.stop.wait(0.002)
        self.history.cancel(passing, wait=rng.random() < 0.5)

    def subscribe_ask(self, rng: random.Random) -> Sub:
        sub = self.history.expect((ASK,), {})
        self.history.made(sub, self.bus.on(ASK, responder(self.history, sub, rng), name=sub.name))
        return sub

    def observe(self) -> None:
        """One who hears of everything and stands on no receipt."""
        options = {"observer": True}
        sub = self.history.expect((*TOPICS, ASK), options)
        handler = plain_handler(self.history, self.bus, sub, random.Random(0), {"inline": True, "stays": True})
        self.history.made(sub, self.bus.on(EVERYTHING, handler, name=sub.name, **options))

    def churner(self, rng: random.Random) -> None:
        """Subscriptions that come and go."""
        history = self.history
        mine: list[Sub] = []
        while not self.stop.wait(rng.random() * 0.01):
            if len(mine) >= SUBSCRIPTIONS or (mine and rng.random() < 0.3):
                sub = mine.pop(rng.randrange(len(mine)))
                history.cancel(sub, wait=rng.random() < 0.5, drain=rng.random() < 0.3)
            else:
                mine.append(self.subscribe(rng))
        for sub in mine:
            history.cancel(sub, wait=rng.random() < 0.5)

    def subscribe(self, rng: random.Random) -> Sub:
        history = self.history
        patterns, topics = choose_patterns(rng)
        options = choose_options(rng)
        if rng.random() < 0.05 and not options:
            options["observer"] = True
        sub = history.expect(topics, options)
        handler = plain_handler(history, self.bus, sub, random.Random(rng.random()), options)
        history.made(sub, self.bus.on(patterns, handler, name=sub.name, **options))
        self.subscribed += 1
        return sub

    def expect_stream(self, rng: random.Random) -> tuple[Sub, str, dict[str, Any]]:
        pattern = rng.choice(sorted(PATTERNS))
        overflow = rng.choice(("block", "block", "drop_oldest", "drop_newest", "latest"))
        options = {"max_pending": rng.randint(1, 40), "overflow": overflow}
        sub = self.history.expect(PATTERNS[pattern], {})
        sub.stream = True
        return sub, pattern, options

    def reader(self, rng: random.Random) -> None:
        """A stream, read for a while and then to its end: nothing lost, doubled or out of order."""
        history = self.history
        sub, pattern, options = self.expect_stream(rng)
        stream = self.bus.stream(pattern, name=sub.name, **options)
        history.made(sub, stream.subscription)
        reading = Reading(history, sub)
        for _ in range(rng.randint(10, 200)):
            if self.stop.is_set():
                break
            try:
                reading.take(stream.get(0.5))
            except EventTimeoutError:
                break
        history.leave(sub)
        stream.cancel()
        history.left(sub, cut=True)
        for event in stream:
            reading.take(event)
        self.streamed += reading.end(stream)

    def closer(self, rng: random.Random) -> None:
        """A small bus, used and closed by two threads while a third emits; now and then one that is forgotten."""
        self.stop.wait(0.05)
        self.small += 1
        count = rng.randint(5, 60)
        bus = EventBus(f"small-{self.small}", close_timeout=PATIENCE)
        got: list[int] = []
        receipts: list[Any] = []
        bus.on("n", got.append, max_pending=rng.choice((None, 4)))
        bus.on("n", lambda n: time.sleep(0.0005) if n % 7 == 0 else None, concurrency=2)

        def emit() -> None:
            try:
                for number in range(count):
                    receipts.append(bus.emit("n", number))
            except BusClosedError:
                pass

        synchronizer = EventSynchronizer(bus, timeout=PATIENCE)
        emitting = self._thread("emits", emit)
        if rng.random() < 0.1:  # forgotten
            emitting.join(PATIENCE)
            synchronizer.wait_for_event("n", count=count)
            synchronizer.cleanup()
            for receipt in receipts:
                receipt.wait(PATIENCE)
            if got != list(range(count)):
                self.history.flag("reordered", f"a small bus gave {got}")
            return
        time.sleep(rng.random() * 0.01)
        closing = [self._thread("closes", partial(bus.close, PATIENCE)) for _ in range(2)]
        for thread in (emitting, *closing):
            thread.join(PATIENCE)
            if thread.is_alive():
                self.history.flag("stalled", f"{thread.name} of a small bus does not end")
                return
        unsettled = sum(not receipt.done for receipt in receipts)
        if unsettled:
            self.history.flag("unsettled", f"{unsettled} receipts after close() had returned (G10)", unsettled)
        if got != list(range(len(receipts))):
            self.history.flag("lost", f"a small bus accepted {len(receipts)} events and delivered {got}")
        totals = bus.stats().totals
        if totals.deliveries != settled(totals):
            self.history.flag("miscounted", f"a small bus: {totals}")
        synchronizer.cleanup()

    # In loops

    def loop_life(self, rng: random.Random) -> None:
        """A loop in this thread: it runs once or several times, with pauses between, and is closed under fire."""
        history = self.history
        facade = AsyncEventBus(self.bus)
        subs: list[Sub] = []
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            self.loops.add(loop)
            self.lives += 1
            try:
                for _ in range(rng.randint(1, 3)):
                    runner.run(self.loop_part(facade, rng, subs, 0.1 + rng.random()))
                    time.sleep(rng.random() * 0.1)
                    if self.stop.is_set():
                        break
            finally:
                for sub in subs:
                    history.leave(sub)  # its handlers end with it; what has suspended may never go on
                    sub.gone = True
                self.loops.discard(loop)
        end = time.monotonic() + 10.0
        while any(sub.handle.active for sub in subs) and time.monotonic() < end:
            history.emit(self.bus, rng.choice(TOPICS), "k1")  # the next touch
            facade.topics()
            time.sleep(0.005)
        for sub in subs:
            if sub.handle.active:
                history.flag("late", f"{sub.name} did not end with its loop (G13)")
                sub.handle.cancel()
            history.left(sub)

    async def loop_part(self, facade: AsyncEventBus, rng: random.Random, subs: list[Sub], seconds: float) -> None:
        """One run of a loop: its tasks go on in the next one, or are cancelled when it is closed."""
        end = time.monotonic() + seconds
        players = (self.loop_emitter, self.loop_emitter, self.loop_reader, self.loop_asker)
        tasks: list[asyncio.Task[None]] = []
        while time.monotonic() < end and not self.stop.is_set():
            tasks = [task for task in tasks if not task.done()]
            while len(tasks) < len(players):
                play = rng.choice(players)
                tasks.append(asyncio.create_task(self._play_on_loop(play, facade, random.Random(rng.random()))))
            active = [sub for sub in subs if sub.cancel_begin > self.history.now()]
            if len(active) < PER_LOOP and rng.random() < 0.5:
                subs.append(self.loop_subscribe(facade, rng))
            elif active and rng.random() < 0.2:
                await self.loop_cancel(rng.choice(active), rng)
            if rng.random() < 0.2:
                rng.choice(tasks).cancel()
            await asyncio.sleep(rng.random() * 0.02)

    async def _play_on_loop(self, play: Player, facade: AsyncEventBus, rng: random.Random) -> None:
        try:
            await play(facade, rng)
        except EventTimeoutError as error:
            self.history.flag("stalled", f"on a loop: {error}")
        except Exception as error:
            self.history.flag("errors", f"on a loop: {error!r}")

    def loop_subscribe(self, facade: AsyncEventBus, rng: random.Random) -> Sub:
        history = self.history
        patterns, topics = choose_patterns(rng)
        options = choose_options(rng, coroutine=True)
        sub = history.expect(topics, options)
        sub.facade = True
        handler = coroutine_handler(history, facade, sub, random.Random(rng.random()), options)
        history.made(sub, facade.on(patterns, handler, name=sub.name, **options))
        self.subscribed += 1
        return sub

    async def loop_cancel(self, sub: Sub, rng: random.Random) -> None:
        wait, drain = rng.random() < 0.5, rng.random() < 0.3
        self.history.leave(sub)
        ending = sub.handle.cancel(wait, PATIENCE, drain=drain)
        if wait or drain:
            await ending
        self.history.left(sub, cut=not drain, quiet=wait or drain)

    async def loop_emitter(self, facade: AsyncEventBus, rng: random.Random) -> None:
        history = self.history
        for _ in range(rng.randint(5, 50)):
            emits: list[Emit] = []
            for _ in range(rng.randint(1, UNDER_WAY)):
                emits.append(history.emit(facade, rng.choice(TOPICS), rng.choice(KEYS)))
            chance = rng.random()
            if chance < 0.1:
                await emits[-1].receipt.accepted(PATIENCE)
            elif chance < 0.2:
                try:
                    await asyncio.wait_for(emits[-1].receipt, 0.001)
                except TimeoutError:
                    pass
            elif chance < 0.22:
                await facade.drain(PATIENCE)
                for emit in emits:
                    if not emit.receipt.done:
                        history.flag("unsettled", f"drain() returned before emit {emit.number} was settled (G10)")
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(emit.receipt for emit in emits))

    async def loop_asker(self, facade: AsyncEventBus, rng: random.Random) -> None:
        history = self.history
        for _ in range(rng.randint(1, 10)):
            emit = history.begin_emit(ASK, rng.choice(KEYS))
            try:
                waiting = facade.request(ASK, emit, PATIENCE)  # acts at the call
            finally:
                emit.end = history.now()
            try:
                answer = await waiting
            except BaseExceptionGroup as group:
                if group.split(Fault)[1] is not None:
                    raise
            else:
                if answer != emit.number:
                    history.flag("wrong", f"request {emit.number} was answered with {answer!r} (G6)")
            self.asked += 1
            await asyncio.sleep(0.002)

    async def loop_reader(self, facade: AsyncEventBus, rng: random.Random) -> None:
        history = self.history
        sub, pattern, options = self.expect_stream(rng)
        stream = facade.stream(pattern, name=sub.name, **options)
        history.made(sub, stream.subscription)
        reading = Reading(history, sub)
        try:
            for _ in range(rng.randint(10, 100)):
                try:
                    reading.take(await stream.get(0.5))
                except EventTimeoutError:
                    break
        finally:  # also where the task is cancelled, or its loop ends: a stream left open would hold emitters up
            history.leave(sub)
            stream.cancel()
            history.left(sub, cut=True)
        async for event in stream:
            reading.take(event)
        self.streamed += reading.end(stream)


class Reading:
    """What was read of one stream."""

    def __init__(self, history: History, sub: Sub) -> None:
        self.history = history
        self.sub = sub
        self.seen: set[int] = set()
        self.latest = 0

    def take(self, event: Any) -> None:
        emit = event.payload
        if emit.number in self.seen:
            self.history.flag("doubled", f"{self.sub.name} gave event {emit.number} twice")
        if emit.end < self.latest:
            self.history.flag("reordered", f"{self.sub.name} gave event {emit.number} after one that began later (G4)")
        if emit.topic not in self.sub.topics:
            self.history.flag("unexpected", f"{self.sub.name} gave an event of {emit.topic}")
        self.latest = max(self.latest, emit.begin)
        self.seen.add(emit.number)

    def end(self, stream: Any) -> int:
        """It has been read to its end: what was delivered to it was read, or taken out again by its policy."""
        delivered = stream.subscription.stats().delivered
        if delivered != len(self.seen) + stream.dropped:
            self.history.flag(
                "lost", f"{self.sub.name}: {delivered} delivered, {len(self.seen)} read, {stream.dropped} dropped"
            )
        return len(self.seen)
