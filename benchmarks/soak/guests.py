"""What else a long-lived program does with the two packages, on a bus of its own: services and groups that start, fail
and stop, synchronizers, scopes, typed topics, following receipts; names of topics, lanes and keys that are ever new;
and a loop with a facade that live as long as the process, served again after each rest.

Each visit checks what it has done by itself, so the history of the other bus has no part in it.

Owner: one thread visits, one serves the loop; what both count is changed by atomic calls only.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

import eventbus_async
from eventbus import (
    BaseService,
    EventBus,
    EventSynchronizer,
    EventTimeoutError,
    PayloadError,
    Restart,
    ServiceGroup,
    Topic,
    handles,
)
from eventbus_async import AsyncEventBus

from .handlers import Fault
from .history import PATIENCE, settled

if TYPE_CHECKING:
    import random

    from .history import History

__all__ = ["Guests"]

PAUSE = 0.02  # seconds between visits
NAMES = 2000  # topics that nobody names: more than are counted one by one, fewer than are remembered
SHORT = 0.001


class Order(BaseModel):
    """A payload that is validated."""

    number: int
    lines: list[str] = []


ORDERS = Topic("orders/placed", Order)


class Ledger(BaseService):
    """Notes what it hears, and fails for 13."""

    error_limit = 0  # the first error makes it DEGRADED

    def __init__(self, name: str, bus: Any, broken: bool = False, **options: Any) -> None:
        super().__init__(name, bus, **options)
        self.broken = broken
        self.heard: list[int] = []

    def _start(self) -> None:
        self.subscribe("ledger/more", self.hear)
        if self.broken:
            raise Fault("as asked for")

    @handles("ledger/*", lane="ledgers")
    def hear(self, number: int) -> None:
        self.heard.append(number)
        if number == 13:
            raise Fault("as asked for")


class AsyncLedger(eventbus_async.BaseService):
    """The same on a loop, for other topics."""

    def __init__(self, name: str, bus: Any, broken: bool = False) -> None:
        super().__init__(name, bus)
        self.broken = broken
        self.heard: list[int] = []

    async def _start(self) -> None:
        await self.subscribe("book/more", self.hear)
        await asyncio.sleep(0)
        if self.broken:
            raise Fault("as asked for")

    async def _stop(self) -> None:
        await asyncio.sleep(0)

    @handles("book/*", lane="books")
    async def hear(self, number: int) -> None:
        await asyncio.sleep(0)
        self.heard.append(number)


class Guests:
    """Who visits, and the bus that is visited."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.bus = EventBus("side", on_error=self._hear)
        self.facade = AsyncEventBus(self.bus)
        self.loop = asyncio.new_event_loop()
        self.visits = 0
        self.errors = 0
        self._numbers = itertools.count(1)
        self._kept: list[int] = []
        self.facade.on("kept/*", self._keep)  # unbound: at home where the facade is served
        self.bus.on("**", lambda event: None, observer=True)
        self.bus.on("name/**", lambda event: None, key=lambda event: event.topic, concurrency=2)

    def _hear(self, _: Any) -> None:
        self.errors += 1  # for the watcher alone

    async def _keep(self, number: int) -> int:
        await asyncio.sleep(0)
        self._kept.append(number)
        return number

    def _check(self, figure: str, what: str, found: Any, wanted: Any) -> None:
        if found != wanted:
            self.history.flag(figure, f"{what}: {found!r}, not {wanted!r}")

    # In a thread

    def visit(self, rng: random.Random) -> None:
        """Do one thing after another."""
        rng.choice((self.service, self.group, self.fragile, self.synchronize, self.scoped, self.names, self.keep))(rng)
        self.visits += 1

    def service(self, rng: random.Random) -> None:
        """A service with a name that was never there; what is emitted while it runs reaches it once, in order."""
        ledger = Ledger(f"ledger-{next(self._numbers)}", self.bus, broken=rng.random() < 0.1)
        try:
            ledger.start()
        except Fault:
            self._check("wrong", "a service that fails", (ledger.broken, str(ledger.status)), (True, "error"))
            return
        numbers = list(range(rng.randint(1, 20)))
        for receipt in [self.bus.emit(f"ledger/{rng.choice('abc')}", number) for number in numbers]:
            receipt.wait(PATIENCE)
        self._check("lost", "a service heard", ledger.heard, numbers)
        self._check("wrong", "its status", str(ledger.status), "degraded" if 13 in numbers else "running")
        ledger.stop()
        self.bus.emit("ledger/a", -1).wait(PATIENCE)
        self._check("late", "after its stop a service heard", ledger.heard, numbers)

    def group(self, rng: random.Random) -> None:
        """Services that depend on each other, one of which may fail."""
        first, second = (Ledger(f"{name}-{next(self._numbers)}", self.bus) for name in ("first", "second"))
        second.broken = rng.random() < 0.3
        try:
            with ServiceGroup({second: [first], first: []}):
                self.bus.emit("ledger/more", 1).wait(PATIENCE)
        except Fault:
            pass
        self._check("late", "after its group a service is", str(first.status), "stopped")
        self._check("lost", "in a group was heard", len(first.heard + second.heard), 0 if second.broken else 4)

    def fragile(self, rng: random.Random) -> None:
        """A service that starts again by itself, and is stopped meanwhile."""
        restart = Restart(attempts=2, backoff=rng.choice((0.0, SHORT)))
        ledger = Ledger(f"fragile-{next(self._numbers)}", self.bus, restart=restart)
        with ledger:
            self.bus.emit("ledger/a", 13).wait(PATIENCE)
            if rng.random() < 0.5:
                self.bus.emit("ledger/b", 13).wait(PATIENCE)
        self._check("late", "a service that was stopped is", str(ledger.status), "stopped")

    def synchronize(self, rng: random.Random) -> None:
        """Waits that are answered and waits that are not."""
        with EventSynchronizer(self.bus, timeout=PATIENCE, grace_period_ms=rng.choice((0, 5))) as sync:
            for number in range(rng.randint(1, 20)):
                self.bus.emit("seen/x", {"number": number})
            self.bus.emit("seen/y", 1)
            found = sync.wait_for_event("seen/*", condition=lambda seen: seen == {"number": 0})
            self._check("lost", "a synchronizer gave", found, {"number": 0})
            self.bus.emit("seen/x", 2)
            sync.wait_for_events(["seen/y", "seen/x"])
            try:
                sync.wait_for_event("seen/never", SHORT)
            except EventTimeoutError:
                pass
            sync.expect_no_event("seen/never", within=SHORT)

    def scoped(self, rng: random.Random) -> None:
        """Typed topics and a follower in a scope; topics, lanes and keys that were never there before."""
        new = next(self._numbers)
        got: list[Any] = []

        def placed(order: Order) -> None:
            for line in order.lines:
                self.bus.emit(f"new-{new}/line", line)

        with self.bus.scope() as scope:
            scope.on(ORDERS, placed)
            scope.on(f"new-{new}/line", got.append, lane=f"lane-{new}")
            scope.on(f"new-{new}/*", lambda event: None, key=lambda _: next(self._numbers), concurrency=2)
            stream = scope.stream(f"new-{new}/**")
            lines = [str(each) for each in range(rng.randint(0, 5))]
            self.bus.emit(ORDERS, {"number": new, "lines": lines}, follow=True).wait(PATIENCE)
            self._check("unsettled", "a follower's receipt was settled, and heard was", got, lines)
            self._check("lost", "a stream gave", [stream.get(PATIENCE).payload for _ in lines], lines)
            try:
                self.bus.emit(ORDERS, {"number": "none"})
            except PayloadError:
                pass
            else:
                self.history.flag("wrong", "a payload that does not validate was taken")

    def names(self, rng: random.Random) -> None:
        """Topics that nobody names; requests that nobody answers in time."""
        for _ in range(rng.randint(1, 80)):
            self.bus.emit(f"name/{next(self._numbers) % NAMES}/x", 0)
        with self.bus.on(f"slow-{next(self._numbers)}", lambda _: None) as subscription:
            try:
                self.bus.request(subscription.topics[0], 0, 0)
            except EventTimeoutError:
                pass

    def keep(self, rng: random.Random) -> None:
        """From this thread to the handler on the loop that stays."""
        numbers = list(range(rng.randint(1, 50)))
        for receipt in [self.bus.emit("kept/x", number) for number in numbers]:
            receipt.wait(PATIENCE)
        self._check("lost", "the loop that stays heard", self._kept, numbers)
        self._kept.clear()

    # On the loop that stays

    def serve(self, rng: random.Random, stop: threading.Event) -> None:
        """Run the loop that stays, in this thread, until the end or the next rest; and visit from another thread."""
        visitor = threading.Thread(target=self._visit_all, args=(rng, stop), name="soaking-visitor", daemon=True)
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._serve(rng, visitor))
        finally:
            asyncio.set_event_loop(None)

    def _visit_all(self, rng: random.Random, stop: threading.Event) -> None:
        while not stop.wait(PAUSE):
            try:
                self.visit(rng)
            except EventTimeoutError as error:
                self.history.flag("stalled", f"a guest: {error}")
            except Exception as error:
                self.history.flag("errors", f"a guest: {error!r}")

    async def _serve(self, rng: random.Random, visitor: threading.Thread) -> None:
        async with self.facade.serve():
            visitor.start()
            visits = (self.async_service, self.async_wait, self.async_scoped)
            while visitor.is_alive():
                try:
                    await rng.choice(visits)(rng)
                except EventTimeoutError as error:
                    self.history.flag("stalled", f"a guest on a loop: {error}")
                except Exception as error:
                    self.history.flag("errors", f"a guest on a loop: {error!r}")
                self.visits += 1
                await asyncio.sleep(PAUSE)
            visitor.join()
            await self.facade.drain(PATIENCE)

    async def async_service(self, rng: random.Random) -> None:
        """Services of a group: heard once, in order, and nothing after the end."""
        ledgers = [AsyncLedger(f"book-{next(self._numbers)}", self.facade) for _ in range(2)]
        ledgers[1].broken = rng.random() < 0.1
        numbers = list(range(rng.randint(1, 20)))
        try:
            async with eventbus_async.ServiceGroup(*ledgers):
                await asyncio.gather(*(self.facade.emit("book/a", number) for number in numbers))
        except Fault:
            numbers = []
        await self.facade.emit("book/a", -1)
        for ledger in ledgers:
            self._check("lost", "a service on a loop heard", ledger.heard, numbers)

    async def async_wait(self, rng: random.Random) -> None:
        """Waits that are answered, run out, or are cancelled."""
        async with eventbus_async.EventSynchronizer(self.facade, timeout=PATIENCE) as sync:
            given_up = asyncio.create_task(sync.wait_for_event("heard/never"))
            self.facade.emit("heard/x", 1)
            self._check("lost", "a synchronizer on a loop gave", await sync.wait_for_event("heard/*"), 1)
            try:
                await sync.wait_for_event("heard/never", rng.choice((0, SHORT)))
            except EventTimeoutError:
                pass
            given_up.cancel()
            await asyncio.wait([given_up])

    async def async_scoped(self, rng: random.Random) -> None:
        """A stream and a handler in a scope, on topics that were never there before; emits that are not awaited."""
        new = next(self._numbers)
        got: list[int] = []
        numbers = list(range(rng.randint(1, 10)))
        async with self.facade.scope() as scope:
            scope.on(f"wave-{new}/*", got.append, lane=f"lane-{new}")
            stream = scope.stream(f"wave-{new}/**")
            for number in numbers:
                self.facade.emit(f"wave-{new}/x", number)
            read = [(await stream.get(PATIENCE)).payload for _ in numbers]
            await self.facade.drain(PATIENCE)
        self._check("lost", "a stream on a loop gave", read, numbers)
        self._check("lost", "a handler of its scope heard", got, numbers)

    def end(self) -> None:
        """Close the bus and the loop."""
        self.loop.run_until_complete(self._last())
        self.loop.close()
        report = self.bus.close(PATIENCE)
        totals = self.bus.stats().totals
        if report.cancelled or report.stuck or totals.deliveries != settled(totals):
            self.history.flag("unsettled", f"the guests' bus at its close: {report}, {totals}")
        self._check("miscounted", "failures told of", self.errors, totals.failed + totals.timed_out + totals.rejected)

    async def _last(self) -> None:
        await self.loop.shutdown_asyncgens()
