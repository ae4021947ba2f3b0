"""ServiceGroup for asyncio. See the core's group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from eventbus.lowlevel import GroupCore

from ._await import Acted
from ._flow import begin_flow
from ._service import BaseService, enter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Self

    from eventbus.lowlevel import Flow, Turn

    from ._flow import Holder

__all__ = ["ServiceGroup"]


class ServiceGroup(GroupCore[BaseService]):
    """Services that start in the order of their dependencies and stop in reverse. ``async with`` starts and stops all.

    Args:
        *services: Services, iterables of them, or mappings of a service to those that it depends on. Where nothing is
            said, the order is the one given.

    Raises:
        OptionTypeError: Not a service of this face.
        ServiceError: A cycle of dependencies, or one that is not in the group.
    """

    _kind = BaseService

    def __init__(self, *services: BaseService | Iterable[BaseService] | Mapping[BaseService, Iterable[Any]]) -> None:
        self._flows: Holder = set()
        super().__init__(*services)

    def start(self) -> Acted[None]:
        """Start all, each after what it depends on. If one fails, those that this call has started are stopped again.

        It begins now and goes on in a task of its own, as the start of a service does.

        Raises:
            Exception: When awaited: what that one raised.
        """
        return self._begin("start", self._starting)

    def stop(self) -> Acted[None]:
        """Stop all in reverse order; one that fails does not keep the others from it. Begins and goes on as a start.

        Raises:
            Exception: When awaited: what that one raised; an ExceptionGroup, if several have.
        """
        return self._begin("stop", self._stopping)

    def _begin(self, kind: str, work: Callable[[Turn], Flow[None]]) -> Acted[None]:
        for first in self.services:
            name = f"the {kind} of the group"
            return begin_flow(first.event_bus._binding, self._flow(kind, work), name, self._flows, first._home)
        return Acted(cast("Any", Nowhere()), nothing)

    async def __aenter__(self) -> Self:
        await enter(self, self.services)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


class Nowhere:
    """Stands for the binding of a group without services."""

    def enter(self) -> None:
        """There is no bus to be bound to a loop."""


async def nothing() -> None:
    """What there is to wait for then."""
