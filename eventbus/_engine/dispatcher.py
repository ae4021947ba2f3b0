"""Who empties mailboxes: the rules that threads and event loops share, and the pool of threads.

How many run at once follows blockage, not queue length: waking several workers for tiny handlers is a convoy on a GIL
build. Up to ``limit`` workers compute; each drains whatever mailbox is ready. Another joins when a worker is blocked:

* its handler waits inside the bus (:meth:`Worker.enter_wait`): counted out at once, also of ``max_workers``;
* a watch, armed only while mailboxes are ready and nobody is free for them, finds it in one handler for two looks;
* its subscription was caught so before, and has not been quick since: counted out as it begins.

When a blocked worker returns and there are too many, it retires.

Owner: the bus's monitor, all of it. ``Worker.sleeper`` is slept on by its own thread only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from .._errors import DispatcherError
from .._values.payload import PLAIN, to_plain
from .._values.stats import PoolStats
from . import hot, primitives
from .call import TooLate, call, enter_converting, enter_plain, judge, own_code, strip
from .delivery import RUNNING, Delivery, running_here
from .timer import RETRY_SECONDS
from .turn import REFUSED, turn
from .waits import notify

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable
    from typing import TypeAlias

    from .._values.stats import Status
    from .engine import Engine
    from .mailbox import Mailbox

    # What the hot path in C could not end by itself, see flow() in c/threads.h.
    _Came: TypeAlias = tuple[Delivery, Any, BaseException | None, float] | Delivery | Mailbox

_NONE: frozenset[type] = frozenset()

__all__ = ["Dispatcher", "Executor", "Worker"]

IDLE_SECONDS = 1.0  # how long an idle thread waits for work before it ends
WATCH_SECONDS = 0.002  # between two looks at a worker that seems blocked
QUICK_SECONDS = 0.001  # a handler that ends within this does not block
SLICE_SECONDS = 0.001  # how long a worker stays with one mailbox while others are ready


class Executor:
    """A ready queue of mailboxes and the workers that claim from it."""

    __slots__ = ("computing", "engine", "gone", "limit", "ready")

    def __init__(self, engine: Engine, limit: int) -> None:
        self.engine = engine
        self.limit = limit
        self.gone = False  # its loop has been closed
        self.ready: deque[Mailbox] = deque()
        self.computing = 0

    def push(self, box: Mailbox) -> None:
        """In a step: a mailbox has something to claim."""
        self.ready.append(box)
        if self.computing < self.limit:
            self.computing += 1
            self.rouse()
        else:
            self.watch()

    def rouse(self) -> None:
        """In a step: get one more worker going; ``computing`` counts it already."""
        raise NotImplementedError

    def watch(self) -> None:
        """In a step: nobody is free for what is ready; keep an eye on who is busy."""

    def close(self) -> None:
        """In a step: the bus is closed."""

    def mend(self, boxes: Iterable[Mailbox]) -> None:
        """In a step that a signal handler broke by raising: make good what it may have left half-done."""
        for box in boxes:
            if box.executor is self:
                box.queued = box in self.ready
                box.schedule()

    def check(self) -> None:
        """In a step: see whether its loop has been closed."""

    def after_fork(self) -> None:
        """In a forked child: nobody of the parent's works here any more."""

    def pull(self) -> Delivery | None:
        """In a step: claim from the first ready mailbox."""
        ready = self.ready
        while ready:
            box = ready.popleft()
            box.queued = False
            delivery = box.claim()
            if delivery is not None:
                if box.claimable() and not box.queued:
                    box.queued = True
                    ready.append(box)
                return delivery
        return None

    def done(self, delivery: Delivery, status: Status, value: Any, error: BaseException | None, took: float) -> None:
        """In a step: a call has ended. Its mailbox goes on, at the end of the ready queue."""
        box = delivery.box
        self.engine.complete(delivery, status, value, error, took)
        if not box.queued and box.claimable():
            box.queued = True
            self.ready.append(box)

    def yield_slot(self) -> None:
        """In a step: a worker computes no more; somebody else may."""
        self.computing -= 1
        if self.ready and self.computing < self.limit:
            self.computing += 1
            self.rouse()


class Worker:
    """One thread of the pool."""

    __slots__ = (
        "actor",
        "begun",
        "blocked",
        "cell",
        "claims",
        "delivery",
        "executor",
        "seen",
        "sleeper",
        "thread",
        "waits",
    )

    def __init__(self, pool: Dispatcher) -> None:
        self.executor = pool
        self.sleeper = primitives.Sleeper(hot.Latch)
        self.thread: threading.Thread | None = None
        self.delivery: Delivery | None = None
        self.actor = 0  # the ident of its thread
        self.begun = False
        self.cell: list[Any] = [None]  # what its mailbox is running while it flows
        self.claims = 0
        self.seen = -1
        self.blocked = False
        self.waits = 0

    def enter_wait(self) -> None:
        """In a step: its handler waits inside the bus; it counts against nothing while it does."""
        self.waits += 1
        if self.waits == 1:
            pool = self.executor
            pool.threads -= 1
            if self.blocked:
                pool.retry()  # its slot is given up already, but only now may another thread take its place
            else:
                pool.yield_slot()

    def exit_wait(self) -> None:
        """In a step: the wait is over. There may be more than ``limit`` until somebody retires."""
        self.waits -= 1
        if self.waits == 0:
            self.executor.threads += 1
            if not self.blocked:
                self.executor.computing += 1
            if self.executor.ready:
                self.executor.watch()

    def sleep_elsewhere(self, sleeper: primitives.Sleeper, timeout: float | None) -> None:
        """Outside of steps: its handler waits inside another bus."""
        look = self.executor.engine.look
        look(self.enter_wait)
        try:
            sleeper.sleep(timeout)
        finally:
            look(self.exit_wait)

    def block(self) -> None:
        """In a step: it is stuck in user code; somebody else takes its place."""
        if not self.blocked:
            self.blocked = True
            if not self.waits:
                self.executor.yield_slot()

    def expire(self, delivery: Delivery) -> None:
        """In a step: its handler is past its time-out; it cannot be killed, but replaced (G7)."""
        self.executor.engine.expire(delivery)
        if self.delivery is delivery:
            self.block()

    def abandon(self, delivery: Delivery) -> list[str]:
        """In a step: the bus closes; a thread in a user's handler is left alone and named."""
        return [delivery.box.name]

    def run(self) -> None:
        """The thread's life: claim, call, settle; sleep when there is nothing; end when that lasts."""
        pool = self.executor
        engine = pool.engine
        step = engine.monitor.run
        if not step(pool.begin, self):
            return
        delivery = step(pool.next, self)
        while True:
            while delivery is not None:
                if delivery.box.flows and not (primitives.tools() and primitives.watched()):
                    delivery = self.flow(engine, delivery)
                    continue
                status, value, error, took = call(engine, delivery)
                if self not in pool.alive:
                    return  # the child of a fork, made in that handler
                delivery = step(pool.advance, self, delivery, status, value, error, took)
                self.cell[0] = None  # nobody's any more, if the hot path in C has left one there
            if self not in pool.alive:
                return  # as above
            # Nothing of the last delivery may be kept alive by this frame while it sleeps (G18).
            value = error = None
            # A pool that stopped meanwhile has woken those that were idle then; whoever comes later must not sleep.
            woken = self.sleeper.sleep(0.0 if pool.stopping else IDLE_SECONDS)
            came = hot.resume(engine, pool, self, SLICE_SECONDS) if hot.resume is not None and woken else False
            delivery = step(pool.resume, self, woken) if came is False else self._follow(came)
            del came

    def flow(self, engine: Engine, delivery: Delivery) -> Delivery | None:
        """Run the deliveries of a mailbox, one after another, without the lock; gives what to run after that.

        A section settles one and claims the next, see :func:`turn`; where more is to be done, a step does it.
        """
        pool = self.executor
        step = engine.monitor.run
        monotonic = primitives.monotonic
        box = delivery.box
        spec = box.spec
        assert spec is not None
        function, convert, takes_event = spec.function, spec.convert, spec.takes_event
        as_is: frozenset[type] = PLAIN if convert is to_plain else _NONE
        delivery.actor = self.actor
        following: Delivery | None = None
        payload = context = receipt = value = None
        started = monotonic()
        until = started + SLICE_SECONDS
        try:
            if hot.flow is not None:
                came = hot.flow(engine, self, delivery, box, SLICE_SECONDS)
                if not isinstance(came, Delivery):
                    return self._follow(came)
                delivery = came
            while True:
                receipt = delivery.receipt
                context = receipt._context
                payload = receipt._payload
                try:
                    if takes_event:
                        payload = receipt._as_event()
                    if context is None or delivery.state is not RUNNING:
                        raise TooLate  # settling comes before letting go of the payload
                    if convert is None or type(payload) in as_is:
                        value = context.copy().run(enter_plain, delivery, function, payload)
                    else:
                        value = context.copy().run(enter_converting, delivery, function, convert, payload)
                except BaseException as error:
                    return self._judge(delivery, None, strip(error), monotonic() - started)
                now = monotonic()
                took = now - started
                started = now
                if value is None or type(value) in PLAIN or not isinstance(value, Awaitable):
                    following = turn(engine, self, delivery, receipt, box, value, took, now < until)
                    if following is not REFUSED:
                        if following is None:
                            return step(pool.proceed, self, box)
                        delivery = following
                        continue
                return self._judge(delivery, value, None, took)
        finally:
            # A traceback may hold this frame, and the frame nothing that is settled (G18).
            self.cell[0] = None
            delivery = following = payload = context = receipt = value = came = None  # type: ignore[assignment]

    def _judge(self, delivery: Delivery, value: Any, error: BaseException | None, took: float) -> Delivery | None:
        """A call has ended that is to be judged; gives what to run after that."""
        pool = self.executor
        result: Any = None
        try:
            result = judge(pool.engine, delivery, value, error, took)
            if self not in pool.alive:
                return None  # the child of a fork, made in that handler
            return pool.engine.monitor.run(pool.advance, self, delivery, *result)
        finally:
            del delivery, value, error, result  # as above

    def _follow(self, came: _Came) -> Delivery | None:  # pragma: no cover - for the hot path in C
        """After a run of the hot path in C; gives what to run after that."""
        if isinstance(came, Delivery):
            return came  # it still stands in the cell, by which its mailbox knows it
        try:
            if isinstance(came, tuple):
                return self._judge(*came)
            pool = self.executor
            return pool.engine.monitor.run(pool.proceed, self, came)
        finally:
            self.cell[0] = None
            del came  # as above


class Dispatcher(Executor):
    """The thread pool of a bus. Threads are made when they are needed and end when they are idle."""

    __slots__ = ("alive", "idle", "max_workers", "name", "numbers", "starting", "stopping", "threads", "watching")

    def __init__(self, engine: Engine, limit: int, max_workers: int, name: str) -> None:
        super().__init__(engine, limit)
        self.max_workers = max_workers
        self.name = name
        self.numbers = 0
        self.renew()

    def renew(self) -> None:
        """No threads: at birth and in a forked child."""
        self.ready.clear()
        for worker in getattr(self, "alive", ()):
            worker.blocked = True  # whoever forked is out of sections
        self.computing = 0
        self.threads = 0  # those that count against max_workers
        self.starting = 0
        self.idle: list[Worker] = []
        self.alive: set[Worker] = set()
        self.watching = False
        self.stopping = False

    # Growing and shrinking

    def rouse(self) -> None:
        if self.idle:
            self.engine.monitor.after.append(self.idle.pop().sleeper.wake)
        elif self.threads < self.max_workers:
            self.threads += 1
            self.starting += 1
            self.engine.monitor.after.append(self._start)
        else:
            self.computing -= 1  # when one of the stuck ones returns, it takes what is ready
            self.watch()

    def _start(self) -> None:
        """Start one of the threads that steps have asked for. May be called too often."""
        worker = Worker(self)
        try:
            if not self.engine.monitor.run(self._enrol, worker):
                return
            worker.thread = primitives.start_thread(worker.run, f"{self.name}-{self.numbers}")
        except (RuntimeError, MemoryError):  # no more threads, or none any more at exit
            self.engine.monitor.run(self._not_started, worker)
        except BaseException:  # a signal handler's: the thread may run or not
            self.engine.monitor.run(self._disown, worker)
            raise

    def _enrol(self, worker: Worker) -> bool:
        if self.starting == 0:
            return False
        self.numbers += 1
        self.starting -= 1
        self.alive.add(worker)  # the one call comes last: whoever is in is not among those that are to be started
        return True

    def _disown(self, worker: Worker) -> None:
        """In a step: have another one started, unless this one has begun to work."""
        if not worker.begun and worker in self.alive:
            self.alive.discard(worker)
            self.starting += 1

    def begin(self, worker: Worker) -> bool:
        """In a step: a thread begins; False if it is not wanted any more."""
        worker.begun = True
        worker.actor = primitives.get_ident()
        return worker in self.alive

    def mend(self, boxes: Iterable[Mailbox]) -> None:
        busy = [worker for worker in self.alive if worker not in self.idle]
        self.threads = self.starting + sum(not worker.waits for worker in self.alive)
        self.computing = self.starting + sum(not worker.blocked and not worker.waits for worker in busy)
        self.engine.monitor.after.extend([self._start] * self.starting)
        self.engine.monitor.after.extend(worker.sleeper.wake for worker in busy if worker.delivery is None)
        super().mend(boxes)
        self.retry()

    def _not_started(self, worker: Worker) -> None:
        if worker.begun:
            return  # a signal handler raised in the midst of Thread.start(), and made RuntimeError of it
        self.alive.discard(worker)
        self.threads -= 1
        self.computing -= 1
        self.engine.timer.at(RETRY_SECONDS, self.retry)
        if self.computing == 0:
            # The timer may find no thread either: so that the next emit to one of them tries again.
            boxes = dict.fromkeys(self.ready)
            self.ready.clear()
            self.ready.extend(boxes)
            for box in boxes:
                box.queued = False

    def retry(self) -> None:
        if self.ready and self.computing < self.limit:
            self.computing += 1
            self.rouse()
        elif self.ready:
            self.watch()

    def assure(self) -> None:
        """Before a wait: see that ready mailboxes have a worker. Raises DispatcherError if none can be started."""
        monitor = self.engine.monitor
        if not self.ready:
            return
        if self.computing:
            # They may be stuck, and only the timer's thread would find that out.
            if self.engine.timer.ident or not monitor.run(self.engine.timer.lacks_thread):
                return
        else:
            monitor.run(self.retry)
        if monitor.run(self._hopeless):
            raise DispatcherError(
                "no thread can be started for the deliveries that this wait depends on; free some threads of the"
                " process"
            )

    def _hopeless(self) -> bool:
        if not self.ready:
            return False
        if self.computing:
            return self.watching and self.engine.timer.ident == 0
        return self.threads < self.max_workers

    def leave(self, worker: Worker) -> None:
        """In a step: an idle worker ends."""
        self.idle.remove(worker)
        self.alive.discard(worker)
        self.threads -= 1
        if self.engine.closers:
            notify(self.engine, self.engine.closers)

    def stop(self) -> list[Worker]:
        """In a step: idle threads end now, busy ones when they become idle. Gives all that are alive."""
        self.stopping = True
        for worker in self.idle:
            self.engine.monitor.after.append(worker.sleeper.wake)
        return list(self.alive)

    # Working

    def between(self, ident: int) -> bool:
        """Whether a thread is a worker that is not in a handler; it may have claimed what it does next."""
        return running_here(ident) is None and any(
            worker.thread is not None and worker.thread.ident == ident for worker in tuple(self.alive)
        )

    def resume(self, worker: Worker, woken: bool) -> Delivery | None:
        """In a step: a worker's sleep is over; its next delivery, or None if it ends or has to sleep on."""
        if worker not in self.idle:
            return self.next(worker)
        if self.stopping or not woken:
            self.leave(worker)
        return None  # if it was woken, then by a wake-up that came twice

    def proceed(self, worker: Worker, box: Mailbox) -> Delivery | None:
        """In a step: a worker has emptied a mailbox, or been at it for long enough; its next delivery."""
        if not box.queued and box.claimable():
            box.queued = True
            self.ready.append(box)
        return self.next(worker)

    def advance(
        self, worker: Worker, delivery: Delivery, status: Status, value: Any, error: BaseException | None, took: float
    ) -> Delivery | None:
        """In a step: a worker's call has ended; its next delivery."""
        worker.delivery = None
        if worker.blocked:
            worker.blocked = False
            self.computing += 1
        box = delivery.box
        if box.slow and took < QUICK_SECONDS:
            box.slow = False
            box.review()
        self.done(delivery, status, value, error, took)
        return self.next(worker)

    def next(self, worker: Worker) -> Delivery | None:
        """In a step: the next delivery of a worker, or None after it has been put to sleep."""
        delivery = None if self.computing > self.limit else self.pull()
        if delivery is None:
            self.computing -= 1
            self.idle.append(worker)
            if self.ready:
                self.watch()  # there are too many, and those that stay may be stuck
            return None
        worker.claims += 1
        worker.delivery = delivery
        delivery.worker = worker
        if delivery.box.slow:
            worker.block()
        elif self.ready:
            self.watch()
        self.engine.arm(delivery)
        return delivery

    def stats(self) -> PoolStats:
        """In a step: the pool at this instant."""
        waiting = sum(worker.waits > 0 for worker in self.alive)
        blocked = sum(worker.blocked and not worker.waits for worker in self.alive)
        return PoolStats(len(self.alive), len(self.idle), max(0, self.computing), blocked, waiting, len(self.ready))

    # The watch

    def watch(self) -> None:
        # Armed while something is ready and somebody computes, unless one who was roused is still to come. Where all
        # are known to be stuck there is nothing to see: when one returns, he takes what is ready.
        if not self.watching and self.computing:
            self.engine.timer.at(WATCH_SECONDS, self._look)
            self.watching = True

    def _look(self) -> None:
        """Mark workers that are still in the handler in which the last look found them."""
        self.watching = False
        if not self.ready:
            return
        for worker in tuple(self.alive):
            if worker.delivery is not None and not worker.blocked and not worker.waits:
                if worker.seen == worker.claims:
                    worker.delivery.box.slow = True
                    worker.delivery.box.review()
                    worker.block()
                worker.seen = worker.claims
        if self.ready:
            self.watch()


own_code.add(Worker.flow.__code__)
