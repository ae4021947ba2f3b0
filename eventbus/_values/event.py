"""One event, as handlers, streams and recorders see it."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Event", "Lineage", "make_id"]

# (parent's uid, parent's seq, root's uid, root's seq, depth, topics that led here or None)
Lineage = tuple[str, int, str, int, int, tuple[str, ...] | None]

_NO_HEADERS: Mapping[str, Any] = MappingProxyType({})


def make_id(uid: str, seq: int) -> str:
    """The id of an event: which bus in which process, and its number there."""
    return f"{uid}-{seq:x}"


@final
class Event:
    """An emitted event. Attributes are read-only; events are equal and hashed by identity; safe in any thread.

    Attributes:
        topic: The topic's name.
        payload: What was emitted, unconverted and shared by all handlers: treat it as read-only.
        seq: A number that increases over all events of the bus.
        id: A unique string; made when it is first read.
        timestamp: When it was emitted, in seconds since the epoch.
        parent_id: The id of the event whose handler emitted this one, or None for a root.
        root_id: The id of the event that all of it goes back to; a root's own id.
        depth: How many events lie between this one and its root: 0 for a root.
        headers: What ``emit(headers=…)`` was given; an immutable mapping.
    """

    __slots__ = ("__weakref__", "_headers", "_lineage", "_payload", "_seq", "_timestamp", "_topic", "_uid")

    def __init__(
        self,
        topic: str,
        payload: Any,
        seq: int,
        timestamp: float,
        uid: str,
        lineage: Lineage | None,
        headers: Mapping[str, Any] | None,
    ) -> None:
        self._topic = topic
        self._payload = payload
        self._seq = seq
        self._timestamp = timestamp
        self._uid = uid
        self._lineage = lineage
        self._headers = headers

    @property
    def topic(self) -> str:
        return self._topic

    @property
    def payload(self) -> Any:
        return self._payload

    @property
    def seq(self) -> int:
        return self._seq

    @property
    def id(self) -> str:
        return make_id(self._uid, self._seq)

    @property
    def timestamp(self) -> float:
        return self._timestamp

    @property
    def parent_id(self) -> str | None:
        lineage = self._lineage
        return make_id(lineage[0], lineage[1]) if lineage and lineage[4] else None

    @property
    def root_id(self) -> str:
        lineage = self._lineage
        return make_id(lineage[2], lineage[3]) if lineage and lineage[4] else self.id

    @property
    def depth(self) -> int:
        return self._lineage[4] if self._lineage else 0

    @property
    def headers(self) -> Mapping[str, Any]:
        return _NO_HEADERS if self._headers is None else self._headers

    def __repr__(self) -> str:
        payload = repr(self._payload)
        if len(payload) > 80:
            payload = payload[:77] + "..."
        return f"<Event {self._topic!r} seq={self._seq} payload={payload}>"
