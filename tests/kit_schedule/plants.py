"""Planted bugs: each a small wrong change of the engine or the seam that the explorer has to find.

A plant replaces named functions while it stands. If the engine has changed so that a name is gone, standing it up
fails, and the plant has to be moved; one that the engine does not use any more is not found, which fails as well. The
promises that it breaks stand at the end of its docstring; ``docs/promises.md`` is made from them.
"""

from __future__ import annotations
import __future__

import inspect
import re
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from unittest.mock import patch

from eventbus._engine import closing, dispatcher, draining, primitives, subscription, waits
from eventbus._engine import engine as engine_module
from eventbus._engine.delivery import LINED, RUNNING, SETTLED
from eventbus._engine.dispatcher import Dispatcher, Worker
from eventbus._engine.engine import Engine
from eventbus._engine.lane import Lane
from eventbus._engine.mailbox import ENDED, InlineMailbox, Mailbox
from eventbus._engine.monitor import Monitor
from eventbus._values.stats import Status
from eventbus_async._runner import LoopExecutor

from . import seam
from .baton import here

__all__ = ["PLANTS", "Plant"]


class Plant(NamedTuple):
    """One planted bug, and where to look for it."""

    what: str
    stand: Callable[[], AbstractContextManager[Any]]
    programs: tuple[str, ...]
    grain: str = "seam"
    bound: int = 2


PLANTS: dict[str, Plant] = {}


def plant(*programs: str, grain: str = "seam", bound: int = 2) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register a plant: the function's name and docstring say what it is."""

    def register(stand: Callable[[], Any]) -> Callable[[], Any]:
        PLANTS[stand.__name__] = Plant(stand.__doc__ or "", stand, programs, grain, bound)
        return stand

    return register


def _instead(owner: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> AbstractContextManager[Any]:
    return patch.object(owner, name, make(getattr(owner, name)))


# At the seam: what the core may rely on is not kept.


@plant("wait+drain", "emit+wait", bound=1)
def a_wake_up_before_the_sleep_is_lost() -> Any:
    """A sleeper remembers no wake-up that came early (G6)."""

    def make(sleep: Any) -> Any:
        def forgetful(self: Any, timeout: float | None = None) -> bool:
            me = here()
            if me is not None:
                me.sched.point()
            self.woken = False
            return bool(sleep(self, timeout))

        return forgetful

    return _instead(seam.Sleeper, "sleep", make)


@plant("emits+wait", "on+emit", grain="line")
def the_lock_excludes_nobody() -> Any:
    """Steps of two threads at once (G3)."""

    def make(acquire: Any) -> Any:
        def always(self: Any, *args: Any, **kwargs: Any) -> bool:
            me = here()
            if me is not None:
                self.depth += 1
                self.owner = me
            return True

        return always

    return _instead(seam.Lock, "acquire", make)


# Waits


@plant("emit+wait", "wait+drain", bound=1)
def a_wait_that_checks_before_the_lock() -> Any:
    """What is waited for may come true between the look and the lining up: a lost wake-up (G6)."""

    def make(sleep: Any) -> Any:
        def early(engine: Any, waiter: Any, timeout: float | None, insist: bool = True) -> bool:
            if engine.look(waiter.ready):
                return True
            truth, asked = waiter.ready, []

            def not_the_first_time() -> bool:
                asked.append(None)
                return len(asked) > 1 and bool(truth())

            waiter.ready = not_the_first_time
            return bool(sleep(engine, waiter, timeout, insist))

        return early

    stack = _Several()
    for module in ("receipt", "engine", "subscription", "draining", "closing"):
        stack.add(f"eventbus._engine.{module}", "sleep", make(waits.sleep))
    return stack


@plant("drain+emits", "wait+wait")
def everybody_is_woken_without_a_look() -> Any:
    """A settled delivery ends every wait that is told of it, come true or not (G10)."""

    def hasty(engine: Any, waiters: Any) -> None:
        for waiter in tuple(waiters):
            waiter.done = True
            engine.monitor.after.append(waiter.wake)

    return patch.object(engine_module, "notify", hasty)


@plant("drain+emit", "drain+drain", grain="line", bound=1)
def a_drain_lines_up_after_its_look() -> Any:
    """Its waiter is enlisted outside of the step in which it saw that there is something to wait for (G10)."""

    def make(enlist: Any) -> Any:
        def later(engine: Any, waiter: Any, begin: bool) -> None:
            if begin:
                engine.monitor.after.append(lambda: enlist(engine, waiter, True))
            else:
                enlist(engine, waiter, False)

        return later

    return _instead(draining, "enlist_drain", make)


@plant("drain+drain", "drain+emits")
def a_drain_forgets_older_epochs() -> Any:
    """It waits only for what was emitted since the last drain began (G10)."""
    return _instead(draining, "new_epoch", lambda new: lambda engine: new(engine)[-1:])


# Settling


@plant("timeout+wait", "timeout+timeout")
def a_delivery_settles_twice() -> Any:
    """By its time-out and by its return (G6, G7)."""

    def make(complete: Any) -> Any:
        def again(self: Any, delivery: Any, *args: Any) -> None:
            if delivery.state is SETTLED and delivery.receipt is not None:
                delivery.state = RUNNING
            complete(self, delivery, *args)

        return again

    return _instead(Engine, "complete", make)


@plant("emit+wait", "on+emit", bound=1)
def a_count_is_lost() -> Any:
    """The number of emits is read before the step and written after it (G3)."""

    def make(accept: Any) -> Any:
        def torn(self: Any, receipt: Any, *args: Any, **kwargs: Any) -> None:
            tally = self.registry.route(receipt._topic).tally
            before = tally.emits
            accept(self, receipt, *args, **kwargs)
            tally.emits = before + 1

        return torn

    return _instead(Engine, "_accept", make)


@plant("block+cancelfull", bound=1)
def a_cancelled_waiting_line_still_counts() -> Any:
    """Whoever waits for space is not told that the subscription has ended (G2, G9)."""

    def make(settle: Any) -> Any:
        def silent(self: Any, delivery: Any, status: Any, *args: Any, **kwargs: Any) -> None:
            if delivery.state is LINED and status is Status.CANCELLED:
                delivery.receipt._accepting += 1
            settle(self, delivery, status, *args, **kwargs)

        return silent

    return _instead(Engine, "settle", make)


# Registration and removal


@plant("on+emit", "on+wait", bound=1)
def on_returns_before_it_is_in_effect() -> Any:
    """The registration is done by another thread (G1)."""

    def make(register: Any) -> Any:
        def elsewhere(self: Any, step: Any, *args: Any) -> Any:
            if getattr(step, "__func__", None) is Engine._register and here() is not None and here().inside == 0:  # type: ignore[union-attr]
                if here().name == "main":  # type: ignore[union-attr]
                    return register(self, step, *args)
                primitives.start_thread(lambda: register(self, step, *args), "registrar")
                return None
            return register(self, step, *args)

        return elsewhere

    return _instead(Monitor, "run_in_turn", make)


@plant("emits+cancel", "emits+cancelwait")
def cancel_leaves_what_is_pending() -> Any:
    """While a call runs, what stands behind it is not cancelled (G2)."""

    def make(cancel: Any) -> Any:
        def partly(self: Any, box: Any) -> int:
            return 0 if box.running else int(cancel(self, box))

        return partly

    return _instead(Engine, "cancel_pending", make)


@plant("inlines+undrain", bound=1)
def an_inline_delivery_that_has_not_begun_is_nobodys() -> Any:
    """A cancel that drains does not know of it: it is cancelled when its turn comes (G2)."""

    def make(queue: Any) -> Any:
        return lambda self: iter(())

    return _instead(InlineMailbox, "queue", make)


@plant("cancel+cancel", "cancel+cancelwait", bound=1)
def two_cancels_were_the_one() -> Any:
    """Whether it was this call is found out before the step (G2)."""

    def make(cancel: Any) -> Any:
        def early(self: Any, box: Any, drain: bool = False) -> bool:
            ending = box.state < ENDED
            cancel(self, box, drain)
            return ending

        return early

    return _instead(Engine, "cancel", make)


@plant("emits+cancelwait", "emit+cancelwait")
def a_waiting_cancel_does_not_wait() -> Any:
    """cancel(wait=True) returns although the handler still runs (G2)."""
    return _instead(
        subscription, "quiet_waiter", lambda make: lambda box, actor: _with(make(box, actor), ready=lambda: True)
    )


# The pool


@plant("warm/late+emit", "late+late", "lying/warm/late+wait")
def a_worker_leaves_with_a_job() -> Any:
    """Between its last look and its leave it may have been given work (G3)."""

    def make(resume: Any) -> Any:
        def blindly(self: Any, worker: Any, woken: bool) -> Any:
            if not woken and worker not in self.idle:
                self.alive.discard(worker)
                self.threads -= 1
                return None
            return resume(self, worker, woken)

        return blindly

    return _instead(Dispatcher, "resume", make)


@plant("emit+wait", bound=1)
def a_worker_falls_asleep_in_two_steps() -> Any:
    """It sees that nothing is ready in one step, and is counted as idle in another (G3)."""

    def make(run: Any) -> Any:
        def split(self: Any, step: Any, *args: Any) -> Any:
            function = getattr(step, "__func__", None)
            if function not in (advance, following):
                return run(self, step, *args)
            pool, worker = step.__self__, args[0]
            if function is advance:
                run(self, lambda: _end_of_call(pool, *args))
            if run(self, lambda: pool.computing <= pool.limit and bool(pool.ready)):
                return run(self, pool.next, worker)
            return run(self, lambda: _sleep_blindly(pool, worker))

        return split

    advance, following = Dispatcher.advance, Dispatcher.next
    return _instead(Monitor, "run", make)


@plant("single/leans+emits", "single/leans+leans", bound=1)
def a_worker_that_retires_leaves_no_watch() -> Any:
    """There are too many after a wait inside the bus; the one that stays is stuck, and something is ready (G3)."""
    return _edited(Dispatcher, "next", "self.watch()  # there", "pass  # there")


@plant("arob+emit", "arob+emits", grain="switch", bound=1)
def a_pause_of_a_loop_that_another_thread_is_to_end() -> Any:
    """Whoever does what the step of a cancelled task has left is not the loop's thread, and does nothing (G13)."""
    return _edited(LoopExecutor, "_resume_later", "elif self.paused:", "elif False:")


@plant("join+wait", "join+join")
def a_blocked_worker_comes_back_twice() -> Any:
    """When its handler returns after all, it is counted as two of those who compute (G7)."""

    def make(advance: Any) -> Any:
        def eager(self: Any, worker: Any, *args: Any) -> Any:
            if worker.blocked:
                self.computing += 1
            return advance(self, worker, *args)

        return eager

    return _instead(Dispatcher, "advance", make)


@plant("lying/emit+wait", "lying/drain+join")
def a_thread_that_failed_to_start_still_counts() -> Any:
    """The pool takes it for one of those who compute, and starts no other (G3)."""

    def forgetful(self: Any, worker: Any) -> None:
        self.alive.discard(worker)
        self.threads -= 1

    return patch.object(Dispatcher, "_not_started", forgetful)


@plant("lying/emit+wait", "lying/warm/late+wait", "lying/warm/emit+cancelwait")
def a_worker_that_wakes_for_nothing_takes_work() -> Any:
    """It does not look whether it has been given a place (G10)."""
    return patch.object(Dispatcher, "resume", lambda self, worker, woken: self.next(worker))


@plant("emit+wait", "wait+wait", "wait+drain")
def a_flag_is_cleared_after_the_last_look() -> Any:
    """Who finds somebody at what steps have left to do leaves it to him, who has looked for the last time (G6)."""
    at_it: set[int] = set()

    def flush(self: Any) -> None:
        if self.deferred:
            self._catch_up()
        if id(self) in at_it:
            return
        at_it.add(id(self))
        try:
            while self.after:
                self.after.popleft()()
            me = here()
            if me is not None:
                me.sched.point()
        finally:
            at_it.discard(id(self))

    return patch.object(Monitor, "flush", flush)


# Order and limits


@plant("lanestuck+emit", bound=1)
def a_lane_lets_two_in() -> Any:
    """It does not look whether somebody is in it (G20)."""

    def make(following: Any) -> Any:
        def whoever(self: Any) -> Any:
            holder, self.holder = self.holder, None
            try:
                return following(self)
            finally:
                self.holder = holder

        return whoever

    return _instead(Lane, "next", make)


@plant("stuck+emit", "emits+emits", bound=1)
def a_mailbox_runs_two_at_once() -> Any:
    """It does not count the calls that go on (G4)."""

    def make(claimable: Any) -> Any:
        def careless(self: Any) -> bool:
            running, self.running = self.running, []
            try:
                return bool(claimable(self))
            finally:
                self.running = running

        return careless

    return _instead(Mailbox, "claimable", make)


@plant("emits+on", "emits+emits", "emits+wait", "emits+emits+wait")
def deliveries_are_admitted_outside_of_the_step() -> Any:
    """They overtake each other between the emit's instant and their mailbox (G4)."""

    def attach(self: Any, executor: Any) -> None:
        honest(self, executor)
        self.plain = False

    def make(offer: Any) -> Any:
        def later(self: Any, delivery: Any) -> None:
            monitor = self.engine.monitor
            monitor.after.append(lambda: monitor.run(lambda: delivery.state is not SETTLED and offer(self, delivery)))

        return later

    honest = Mailbox.attach
    stack = _Several()
    stack.add(Mailbox, "attach", attach)
    stack.add(Mailbox, "offer", make(Mailbox.offer))
    return stack


@plant("oldest+oldest", "oldest+emits")
def the_oldest_is_dropped_and_run() -> Any:
    """The policy settles the oldest, but does not take it out of the mailbox (G3, G9)."""
    return patch.object(Mailbox, "discard", lambda self, delivery, key: None)


# Closing


@plant("emit+close", "warm/emit+close", "wait+close", bound=1)
def an_emit_looks_at_the_state_too_early() -> Any:
    """Whether the bus is open is asked before the step: an emit is accepted by a closed bus (G10)."""
    open_then: set[int] = set()

    def make_accept(accept: Any) -> Any:
        def early(self: Any, receipt: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state == 0:
                open_then.add(id(receipt))
            return accept(self, receipt, *args, **kwargs)

        return early

    def make_admit(admit: Any) -> Any:
        def blindly(self: Any, receipt: Any, *args: Any) -> Any:
            if id(receipt) not in open_then:
                return admit(self, receipt, *args)
            open_then.discard(id(receipt))
            state, self.state = self.state, 0
            try:
                return admit(self, receipt, *args)
            finally:
                self.state = state

        return blindly

    stack = _Several()
    stack.add(Engine, "_accept", make_accept(Engine._accept))
    stack.add(Engine, "_admit", make_admit(Engine._admit))
    return stack


@plant("emit+close", "drain+close", "late+close", bound=1)
def close_does_not_drain() -> Any:
    """It ends everything as soon as it has begun (G10)."""

    def make(waiter_of: Any) -> Any:
        def hasty(engine: Any, actor: Any) -> Any:
            waiter = waiter_of(engine, actor)
            return _with(waiter, ready=lambda: True) if engine.state else waiter

        return hasty

    return _instead(closing, "drain_waiter", make)


# The hot path: its sections rely on what they look at, and on nothing coming between.


@plant("warm/emit+close", "warm/wait+close", grain="switch", bound=1)
def an_emit_does_not_ask_whether_the_bus_is_open() -> Any:
    """A section admits to a bus that has closed meanwhile (G10)."""
    return _edited(Engine, "_emit_in_sections", "and self.state == OPEN", "")


@plant("warm/oldest+oldest", "warm/error+error", "warm/block+block", grain="switch", bound=1)
def an_emit_steps_into_a_step() -> Any:
    """It does not look whether another thread is in the midst of one (G9)."""
    return _edited(Engine, "_emit_in_sections", "not monitor.busy", "True", times=2)


@plant("warm/second+emits", grain="switch", bound=1)
def an_emit_admits_to_an_ended_mailbox() -> Any:
    """Between the emit's instant and the admission the subscription was cancelled (G2)."""
    return _edited(Engine, "_emit_in_sections", "and box.admits and", "and")


@plant("warm/emit+emit", "warm/emits+emits", grain="switch", bound=1)
def a_call_tears_the_count_of_emits() -> Any:
    """Another thread may count between the call and the store (G3)."""
    return _edited(
        Engine, "_emit_in_sections", "route.tally.emits += 1", "route.tally.emits = max(route.tally.emits + 1, 0)"
    )


@plant("warm/emits+drain", "warm/drain+emits", "warm/emits+emits+drain", grain="switch", bound=1)
def a_call_tears_the_count_of_what_is_open() -> Any:
    """A drain waits for ever, or not at all (G10)."""
    return _edited(dispatcher, "turn", "epoch.open -= 1", "epoch.open = max(epoch.open - 1, 0)")


@plant("warm/emit+wait", "warm/wait+wait", grain="switch", bound=1)
def a_worker_settles_though_somebody_waits() -> Any:
    """Nobody tells him (G6)."""
    return _edited(dispatcher, "turn", "or receipt._waiters is not None", "")


@plant("warm/emits+drain", "warm/emit+drain", grain="switch", bound=1)
def a_worker_settles_though_somebody_drains() -> Any:
    """Nobody tells him (G10)."""
    old = "or (engine.drains and (engine.keen or delivery.epoch is None or delivery.epoch.open == 1))"
    return _edited(dispatcher, "turn", old, "")


@plant("warm/tired+emits", "warm/tired+tired", grain="switch", bound=1)
def an_emit_takes_a_mailbox_for_busy() -> Any:
    """It relies on a worker that has just seen the mailbox empty (G3)."""
    old = "if following is None:\n                            return step(pool.proceed, self, box)"
    new = "if following is None:\n                            return step(pool.next, self)"
    return _edited(Worker, "flow", old, new)


@plant("warm/emits+cancel", "warm/emits+cancelwait", "warm/emits+emits+cancel", grain="switch", bound=1)
def a_call_tears_a_claim() -> Any:
    """What it looked at may be settled before it has taken it out (G2)."""
    return _edited(dispatcher, "turn", "following = pending[0]", "following = pending[0]; len(pending)")


# Helpers


def _edited(owner: Any, name: str, old: str, new: str, times: int = 1) -> AbstractContextManager[Any]:
    """The function with a change to its text, in its own module, at its own lines."""
    function = getattr(owner, name)
    lines, number = inspect.getsourcelines(function)
    source = textwrap.dedent("".join(lines))
    old = textwrap.dedent(old)
    found = _spaced(old).findall(source)
    assert len(found) == times, f"{owner.__name__}.{name} has {old!r} {len(found)} times: move this plant"
    for each in set(found):
        source = source.replace(each, new)
    source = "\n" * (number - 1) + source
    space: dict[str, Any] = {}
    code = compile(
        source, function.__code__.co_filename, "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True
    )
    exec(code, function.__globals__, space)
    return patch.object(owner, name, space[name])


def _spaced(text: str) -> re.Pattern[str]:
    return re.compile(r"\s+".join(re.escape(word) for word in text.split()))


class _Several(AbstractContextManager[None]):
    """Several patches at once."""

    def __init__(self) -> None:
        self._patches: list[Any] = []

    def add(self, owner: Any, name: str, replacement: Any) -> None:
        if isinstance(owner, str):
            self._patches.append(patch(f"{owner}.{name}", replacement))
        else:
            self._patches.append(patch.object(owner, name, replacement))

    def __enter__(self) -> None:
        for each in self._patches:
            each.__enter__()

    def __exit__(self, *error: Any) -> None:
        for each in reversed(self._patches):
            each.__exit__(*error)


def _with(waiter: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(waiter, name, value)
    return waiter


def _end_of_call(pool: Any, *args: Any) -> None:
    with patch.object(Dispatcher, "next", lambda self, worker: None):
        Dispatcher.advance(pool, *args)


def _sleep_blindly(pool: Any, worker: Any) -> None:
    pool.computing -= 1
    pool.idle.append(worker)
