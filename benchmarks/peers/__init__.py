"""One adapter a library: the same few shapes of work, done as that library's own users would do it.

An adapter offers functions, each marked with ``@offers`` and each a context manager:

    inline(handlers)            yields emit(payload): all handlers have run when it returns
    threads(handlers, workers)  yields emit(payload), callable from any thread: handlers run in other threads
    to_loop(handler, loop)      async, entered on ``loop``; yields emit(payload) for another thread; the coroutine
                                function ``handler`` runs on the loop
    from_loop(handler)          async; yields emit(payload), called on the loop: the handler runs in a thread
    on_loop(handler)            async; yields emit(payload), to be awaited on the same loop until the handler has ended
    churn(count)                yields pair(): registers and removes one handler beside ``count`` others

A library that is not installed is :class:`Missing`: reported as such, and no error.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LIMIT", "OURS", "PEER", "Missing", "Offer", "load", "offers"]

OURS, PEER, LIMIT = "ours", "peer", "limit"


@dataclass(frozen=True, slots=True)
class Missing:
    """An offer that cannot be had here, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Offer:
    """One way of doing the work: what it is called, whose it is, and what it does not promise that we do."""

    name: str
    kind: str
    lacks: str
    share: float  # of a case's n: very slow ones do less of the same work, and count per item
    open: Callable[..., Any]


def offers(name: str, kind: str, lacks: str = "", share: float = 1.0) -> Callable[[Callable[..., Any]], Offer]:
    """Mark a context manager of an adapter as an offer."""
    return lambda function: Offer(name, kind, lacks, share, function)


def load(reference: str) -> Offer | Missing:
    """The offer ``"module:name"``, or Missing where its library is not installed."""
    module, _, attribute = reference.partition(":")
    try:
        adapter = importlib.import_module(f"{__name__}.{module}")
    except ImportError as error:
        name = "eventbus_async" if module == "ours_async" else module
        return Missing(name, str(error))
    found: Offer = getattr(adapter, attribute)
    return found
