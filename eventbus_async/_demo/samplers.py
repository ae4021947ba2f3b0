"""Plain threads that read figures and emit them on the core's face of the bus.

Owner: each sampler owns its source and its counts; the counts are read after ``join()``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from eventbus import BusClosedError

from .events import UNAVAILABLE, Unavailable
from .figures import FigureError

if TYPE_CHECKING:
    from eventbus import EventBus

    from .figures import Source

__all__ = ["Sampler"]


class Sampler(threading.Thread):
    """Emits a source's readings every ``interval`` seconds, until ``stop`` is set or the figure is not to be had."""

    def __init__(self, bus: EventBus, source: Source, interval: float, stop: threading.Event) -> None:
        super().__init__(name=f"sampler-{source.topic.name}", daemon=True)
        self.emitted: dict[str, int] = {}
        self._bus = bus
        self._source = source
        self._interval = interval
        self._stop_asked = stop

    def run(self) -> None:
        topic = self._source.topic
        try:
            while not self._stop_asked.is_set():
                reading = self._source.read()
                if reading is not None:
                    self._bus.emit(topic, reading)
                    self._count(topic.name)
                self._stop_asked.wait(self._interval)
        except FigureError as error:
            self._bus.emit(UNAVAILABLE, Unavailable(figure=topic.name, reason=str(error)))
            self._count(UNAVAILABLE.name)
        except BusClosedError:
            pass  # the demo was cut short

    def _count(self, topic: str) -> None:
        self.emitted[topic] = self.emitted.get(topic, 0) + 1
