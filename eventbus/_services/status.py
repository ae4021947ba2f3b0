"""What is told about services, and how they recover. Frozen records; no state."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .._errors import OptionError, OptionTypeError
from .._values.options import check_count, check_timeout

__all__ = ["ACCEPTING", "STATUS_TOPIC", "UP", "Restart", "ServiceStatus"]

STATUS_TOPIC = "service/status"
LONGEST_BACKOFF = 60.0  # seconds


class ServiceStatus(StrEnum):
    """Where a service stands; a ``str``, so ``service.status == "running"`` works."""

    INITIALIZING = "initializing"
    STARTING = "starting"
    RUNNING = "running"
    DEGRADED = "degraded"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"


UP = (ServiceStatus.RUNNING, ServiceStatus.DEGRADED)
ACCEPTING = (ServiceStatus.STARTING, *UP)


@dataclass(frozen=True, slots=True)
class Restart:
    """How a service that is DEGRADED recovers: it is stopped and started again.

    Attributes:
        attempts: How many restarts there may be after one ``start()``.
        backoff: Seconds before the first; doubled each time, up to a minute.
        jitter: By up to this fraction each wait is longer, at random, so that many services do not restart at once.

    Raises:
        OptionError: A value that cannot be. (OptionTypeError for a wrong type.)
    """

    attempts: int = 3
    backoff: float = 0.1
    jitter: float = 0.1

    def __post_init__(self) -> None:
        check_count(self.attempts, "attempts", 1)
        for name in ("backoff", "jitter"):
            value = getattr(self, name)
            if value is None:
                raise OptionTypeError(f"{name} must be a number, not None")
            if check_timeout(value, name) is None:
                raise OptionError(f"{name} must be a finite number, not {value!r}")

    def delay(self, attempt: int) -> float:
        """Seconds before the attempt of that number, the first being 1."""
        from random import random  # not with `import eventbus`: it costs more than all of this module

        plain: float = min(LONGEST_BACKOFF, self.backoff * 2.0 ** min(attempt - 1, 64))
        return plain * (1.0 + self.jitter * random())
