"""Names of a package that are imported when they are first used, so that importing it costs what everybody needs.

No state of its own: what has been imported stands in the package's namespace like any other name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["later"]


def later(namespace: dict[str, Any], homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a module.

    Args:
        namespace: The module's ``globals()``.
        homes: Name to the module that has it; one that begins with a dot is relative to this module's package.
    """

    def find(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")
        from importlib import import_module

        value = namespace[name] = getattr(import_module(home, namespace["__package__"]), name)
        return value

    def names() -> list[str]:
        return sorted({*namespace, *homes})

    return find, names
