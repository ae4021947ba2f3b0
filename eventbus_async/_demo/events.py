"""What the demo's programs tell each other: pydantic models, and the typed topics that carry them."""

from __future__ import annotations

import time

from pydantic import BaseModel, Field

from eventbus import Topic

__all__ = [
    "ALARM",
    "CPU",
    "DIGEST",
    "DISK",
    "LOAD",
    "MEMORY",
    "NETWORK",
    "SPACE",
    "UNAVAILABLE",
    "Alarm",
    "Cpu",
    "Digest",
    "Disk",
    "Load",
    "Memory",
    "Network",
    "Reading",
    "Space",
    "Unavailable",
    "size",
]


def size(count: float) -> str:
    """A number of bytes for people: ``1536`` is ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class Reading(BaseModel):
    """Something that was measured, and when (seconds since the epoch)."""

    time: float = Field(default_factory=time.time)

    def value(self) -> float:
        """The one number that stands for the reading in digests and alarms."""
        raise NotImplementedError

    def text(self) -> str:
        """The reading for people."""
        raise NotImplementedError


class Cpu(Reading):
    """How busy all cores together were since the reading before, in per cent."""

    busy: float

    def value(self) -> float:
        return self.busy

    def text(self) -> str:
        return f"{self.busy:.1f} % busy"


class Load(Reading):
    """The system's load averages, and the cores that share it."""

    one: float
    five: float
    fifteen: float
    cores: int

    def value(self) -> float:
        return self.one

    def text(self) -> str:
        return f"{self.one:.2f} {self.five:.2f} {self.fifteen:.2f} on {self.cores} cores"


class Memory(Reading):
    """Physical memory in bytes; what the kernel could give at once is not counted as used."""

    total: int
    used: int

    def value(self) -> float:
        return 100.0 * self.used / self.total

    def text(self) -> str:
        return f"{size(self.used)} of {size(self.total)} ({self.value():.1f} %)"


class Space(Reading):
    """The file system that holds a path, in bytes."""

    path: str
    total: int
    used: int

    def value(self) -> float:
        return 100.0 * self.used / self.total

    def text(self) -> str:
        return f"{size(self.used)} of {size(self.total)} ({self.value():.1f} %) at {self.path}"


class Disk(Reading):
    """What all disks together read and wrote since the reading before, in bytes per second."""

    read: float
    written: float

    def value(self) -> float:
        return self.read + self.written

    def text(self) -> str:
        return f"{size(self.read)}/s read, {size(self.written)}/s written"


class Network(Reading):
    """What all interfaces but the loopback carried since the reading before, in bytes per second."""

    received: float
    sent: float

    def value(self) -> float:
        return self.received + self.sent

    def text(self) -> str:
        return f"{size(self.received)}/s in, {size(self.sent)}/s out"


class Unavailable(BaseModel):
    """A figure that this machine does not give, and why."""

    figure: str
    reason: str


class Digest(BaseModel):
    """Several readings of one topic in short."""

    topic: str
    count: int
    low: float
    mean: float
    high: float


class Alarm(BaseModel):
    """A figure went over its limit (``raised``), or came back under it."""

    figure: str
    value: float
    limit: float
    raised: bool

    def text(self) -> str:
        return f"{self.figure} at {self.value:.1f} %, {'over' if self.raised else 'back under'} {self.limit:g} %"


CPU = Topic("machine/cpu", Cpu)
LOAD = Topic("machine/load", Load)
MEMORY = Topic("machine/memory", Memory)
SPACE = Topic("machine/space", Space)
DISK = Topic("machine/disk", Disk)
NETWORK = Topic("machine/network", Network)
UNAVAILABLE = Topic("figures/unavailable", Unavailable)
DIGEST = Topic("digest", Digest)
ALARM = Topic("alarm", Alarm)
