"""What happens to living buses when the process forks or exits.

Owner: ``_living`` is touched by constructors (``add`` is one step on every build for what nobody else holds yet) and
read as a snapshot by the two hooks, which run with one thread (fork) or at exit.
"""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING

from . import primitives

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["enrol"]

log = logging.getLogger("eventbus")
_living: weakref.WeakSet[Engine] = weakref.WeakSet()
_lock = primitives.make_lock()


def enrol(engine: Engine) -> None:
    """See to an engine at fork and exit, for as long as it lives."""
    with _lock:
        _living.add(engine)


def _after_fork() -> None:
    global _lock
    _lock = primitives.make_lock()
    for engine in list(_living):
        try:
            engine.after_fork()
        except BaseException:
            log.exception("a bus could not be set up in the forked child")


def _at_exit() -> None:
    for engine in list(_living):
        try:
            engine.finish_at_exit()
        except BaseException:
            # One that raises would keep the interpreter from calling the other hooks.
            log.exception("a bus could not be closed at exit")


primitives.on_fork(_after_fork)
primitives.on_exit(_at_exit)
