"""Groups of services that start in the order of their dependencies and stop in reverse.

Owner: ``_after`` is changed by :meth:`GroupCore.add` alone, and swapped; flows take turns (see turns.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from .._engine.flow import Call, drive
from .._engine.receipt import group_errors
from .._errors import OptionTypeError, ServiceError
from .service import BaseService, ServiceCore
from .status import UP
from .turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from .._engine.flow import Flow
    from .turns import Turn

__all__ = ["GroupCore", "ServiceGroup"]

S = TypeVar("S", bound=ServiceCore)


class GroupCore(Generic[S]):
    """The members of a group of either face, and its flows."""

    _kind: type[Any] = ServiceCore

    def __init__(self, *services: S | Iterable[S] | Mapping[S, Iterable[S | str]]) -> None:
        self._after: dict[S, tuple[S, ...]] = {}
        self._turns: dict[None, Turns] = {}  # one, made by setdefault(), which is atomic on every build
        for each in services:
            if isinstance(each, Mapping):
                self._add_all(cast("Mapping[S, Iterable[S | str]]", each))
            elif isinstance(each, Iterable):
                for one in each:
                    self.add(one)
            else:
                self.add(each)

    def add(self, service: S, after: S | str | Iterable[S | str] = ()) -> S:
        """Add a service, to be started after others, and stopped before them.

        Args:
            service: The service, of this face.
            after: What it depends on: services of this group, or their names.

        Returns:
            The service itself.

        Raises:
            OptionTypeError: Not a service of this face.
            ServiceError: It is in already, or what it depends on is not.
        """
        self._check(service)
        if service in self._after:
            raise ServiceError(f"{service.name!r} is in this group already")
        self._after = {**self._after, service: self._resolve(service, after, self._after)}
        return service

    @property
    def services(self) -> tuple[S, ...]:
        """The services in the order in which they start."""
        return self._order(self._after)

    def _add_all(self, graph: Mapping[S, Iterable[S | str]]) -> None:
        known = {**self._after, **dict.fromkeys(graph, ())}
        for service in graph:
            self._check(service)
            if service in self._after:
                raise ServiceError(f"{service.name!r} is in this group already")
        after = {**self._after, **{each: self._resolve(each, wanted, known) for each, wanted in graph.items()}}
        self._order(after)
        self._after = after

    def _check(self, service: Any) -> None:
        if not isinstance(service, self._kind):
            raise OptionTypeError(
                f"a {type(self).__module__.partition('.')[0]}.ServiceGroup takes services of its own face, not"
                f" {service!r}"
            )

    def _resolve(self, service: S, after: Any, known: Mapping[S, Any]) -> tuple[S, ...]:
        wanted = [after] if isinstance(after, (str, ServiceCore)) else list(after)
        found: list[S] = []
        for each in wanted:
            matching = [one for one in known if (one.name == each if isinstance(each, str) else one is each)]
            if len(matching) != 1:
                raise ServiceError(
                    f"{service.name!r} depends on {each!r}, of which this group has {len(matching)}; add it"
                    " first, or give the service itself"
                )
            found.append(matching[0])
        return tuple(found)

    @staticmethod
    def _order(after: Mapping[S, tuple[S, ...]]) -> tuple[S, ...]:
        from graphlib import CycleError, TopologicalSorter

        try:
            return tuple(TopologicalSorter(after).static_order())
        except CycleError as error:
            names = " -> ".join(repr(each.name) for each in reversed(error.args[1]))
            raise ServiceError(f"these services depend on each other in a cycle: {names}; break it") from None

    def _flow(self, kind: str, work: Callable[[Turn], Flow[None]]) -> Flow[None]:
        """One start or stop of the whole group."""
        if not self._after:
            return
        made = Turns(next(iter(self._after))._lifecycle.engine, "the group", self._kind._blocking)
        ended = yield from self._turns.setdefault(None, made).run(kind, lambda: True, work)
        if ended is not None:
            turn, mine = ended
            turn.raise_error(mine)

    def _starting(self, turn: Turn) -> Flow[None]:
        begun: list[S] = []
        try:
            for service in self.services:
                running = service.status in UP
                if not running:
                    begun.append(service)
                yield Call(cast("Any", service).start)
        except GeneratorExit:
            raise
        except BaseException as error:
            # The one that failed has cleaned up after itself; its stop changes nothing.
            passing: BaseException | None = None
            for service in reversed(begun):
                try:
                    yield Call(cast("Any", service).stop)
                except GeneratorExit:
                    raise
                except Exception as problem:
                    error.add_note(f"and while this start was undone, {service.name!r} failed to stop: {problem!r}")
                except BaseException as problem:
                    passing = problem  # once the others are stopped
            if passing is not None:
                raise passing from error
            raise

    def _stopping(self, turn: Turn) -> Flow[None]:
        errors: list[BaseException] = []
        for service in reversed(self.services):
            try:
                yield Call(cast("Any", service).stop)
            except GeneratorExit:
                raise
            except BaseException as error:  # whatever one of them raises, the others are stopped
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise group_errors(f"{len(errors)} services failed to stop", errors)

    def __len__(self) -> int:
        return len(self._after)

    def __repr__(self) -> str:
        states = ", ".join(f"{each.name} {each.status}" for each in self._after)
        return f"<{type(self).__name__}: {states or 'empty'}>"


class ServiceGroup(GroupCore[BaseService]):
    """Services that start in the order of their dependencies and stop in reverse. Safe in any thread.

    A context manager: entering starts all, leaving stops all.

    Args:
        *services: Services, iterables of them, or mappings of a service to those that it depends on. Where nothing is
            said, the order is the one given.

    Raises:
        OptionTypeError: Not a service of this face.
        ServiceError: A cycle of dependencies, or one that is not in the group.

    Example:
        >>> from eventbus import BaseService, EventBus, ServiceGroup
        >>> bus = EventBus()
        >>> store, shop = BaseService("store", bus), BaseService("shop", bus)
        >>> with ServiceGroup({shop: [store], store: []}) as group:
        ...     [service.name for service in group.services]
        ['store', 'shop']
    """

    _kind = BaseService

    def start(self) -> None:
        """Start all, each after what it depends on. If one fails, those that this call has started are stopped again.

        Raises:
            Exception: What that one raised.
        """
        drive(self._flow("start", self._starting))

    def stop(self) -> None:
        """Stop all in reverse order; one that fails does not keep the others from it.

        Raises:
            Exception: What that one raised; an ExceptionGroup, if several have.
        """
        drive(self._flow("stop", self._stopping))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
