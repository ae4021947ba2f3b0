"""The payload of ``service/status``. Imported when it is first used: it needs pydantic."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from .status import ServiceStatus

__all__ = ["ServiceStatusPayload"]


class ServiceStatusPayload(BaseModel):
    """One change of a service's status, as emitted on ``service/status``.

    Attributes:
        service: The service's name.
        status: The new status.
        message: Why, where there is more to say: an error, a limit that was passed.
        time: When it changed, in seconds since the epoch.
    """

    model_config = ConfigDict(frozen=True)

    service: str
    status: ServiceStatus
    message: str = ""
    time: float
