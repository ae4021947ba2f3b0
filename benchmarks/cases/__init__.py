"""One file a question; each names its cases in ``CASES``."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..harness import Case

__all__ = ["ORDER", "all_cases"]

ORDER = (
    "inline",
    "thread_to_thread",
    "fan_out",
    "thread_to_loop",
    "loop_to_thread",
    "on_loop",
    "latency",
    "blocking",
    "scaling",
    "churn",
    "memory",
    "idle",
    "imports",
    "at_rest",
)


def all_cases() -> list[Case]:
    """Every case, in the order of the table."""
    unknown = {each.name for each in pkgutil.iter_modules(__path__)} ^ set(ORDER)
    if unknown:
        raise LookupError(f"cases/ and ORDER differ: {sorted(unknown)}")
    return [case for name in ORDER for case in importlib.import_module(f"{__name__}.{name}").CASES]
