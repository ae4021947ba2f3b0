"""Loads the hot path in C where there is one: the functions of ``_hot.c``, or None in the place of each.

Everything works without it. It is left out where no compiler was found at installation, on builds without a GIL, on
other interpreters than CPython, and where the environment has ``EVENTBUS_PURE=1``.
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from . import _hot as module
else:
    module: ModuleType | None
    try:
        from . import _hot as module
    except ImportError:
        module = None
    if os.environ.get("EVENTBUS_PURE", "0") not in ("", "0"):
        module = None

__all__ = [
    "Latch",
    "attend",
    "bind",
    "bind_loops",
    "drain",
    "flow",
    "language",
    "quicken",
    "resume",
    "serve",
    "track",
    "use",
]


def bind(names: Mapping[str, Any]) -> None:
    """Tell it the classes and objects of the core that it works on."""
    if module is not None:
        try:
            module.bind(names)
        except TypeError:
            pass  # this Python's classes are not as those that it knows: it refuses everything


def language() -> str:
    """What the hot path is written in, here and now: ``C`` or ``Python``."""
    return "C" if module is not None and module.used() else "Python"


def bind_loops(names: Mapping[str, Any]) -> None:
    """The same for those of the facade, and have the collector ask for what is hidden from it."""
    if module is not None:
        module.bind_loops(names)
        if module.collects not in gc.callbacks:
            gc.callbacks.append(module.collects)


def quicken(face: type[Any], make: type[Any]) -> None:
    """Have the method ``emit`` of a face be in C; it looks like the function in whose place it stands."""
    if module is not None:
        module.quicken(face, make)


def use(on: bool) -> bool:
    """Whether it does anything; tells whether it did before. Not to be changed while a bus is in use."""
    return module is not None and module.use(on)


Latch = None if module is None else module.Latch
attend = None if module is None else module.attend
drain = None if module is None else module.drain
flow = None if module is None else module.flow
resume = None if module is None else module.resume
serve = None if module is None else module.serve
track = None if module is None else module.track
