"""Real readings of the machine: from /proc where there is one, else from what the standard library can tell.

A source is read by one thread only. Where a figure is not to be had it raises :class:`FigureError`, whose message says
what is missing; nothing is made up.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .events import CPU, DISK, LOAD, MEMORY, NETWORK, SPACE, Cpu, Disk, Load, Memory, Network, Space

if TYPE_CHECKING:
    from eventbus import Topic

    from .events import Reading

__all__ = ["CpuSource", "FigureError", "Source", "all_sources"]

PROC = Path("/proc")
SECTOR = 512  # bytes; the kernel counts in these, whatever the disk has
LAYERED = ("loop", "ram", "zram", "dm-", "md")  # stand on other disks or on memory, and would count twice


class FigureError(Exception):
    """A figure is not to be had on this machine; the message says why."""


class Source(Protocol):
    """One figure that can be read again and again."""

    topic: Topic[Any]

    def read(self) -> Reading | None:
        """A reading; None where it takes two to compare. Raises FigureError."""
        ...


class CpuSource:
    """How busy the cores are, from the difference of two looks at ``/proc/stat``."""

    topic = CPU

    def __init__(self, proc: Path = PROC) -> None:
        self._file = proc / "stat"
        self._last: tuple[int, int] | None = None

    def read(self) -> Cpu | None:
        fields = numbers(self._file, "CPU use", "cpu ")[
            :8
        ]  # the guest fields after these are contained in the first two
        total, idle = sum(fields), sum(fields[3:5])
        last, self._last = self._last, (total, idle)
        if last is None or total <= last[0]:
            return None  # the kernel counts in hundredths of a second: nothing has moved yet
        spent = total - last[0]
        return Cpu(busy=min(100.0, max(0.0, 100.0 * (spent - (idle - last[1])) / spent)))


class LoadSource:
    """The load averages."""

    topic = LOAD

    def read(self) -> Load:
        try:
            one, five, fifteen = os.getloadavg()
        except (AttributeError, OSError):
            raise FigureError("load averages are not to be had: this system keeps none") from None
        return Load(one=one, five=five, fifteen=fifteen, cores=os.cpu_count() or 1)


class MemorySource:
    """Physical memory, from ``/proc/meminfo``, or else from ``sysconf``."""

    topic = MEMORY

    def __init__(self, proc: Path = PROC) -> None:
        self._file = proc / "meminfo"

    def read(self) -> Memory:
        try:
            text = self._file.read_text("ascii")
            rows = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            total, free = (int(rows[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
        except (OSError, KeyError, ValueError, IndexError):
            total, free = self._by_sysconf()
        return Memory(total=total, used=total - free)

    def _by_sysconf(self) -> tuple[int, int]:
        try:
            page = os.sysconf("SC_PAGE_SIZE")
            return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
        except (AttributeError, OSError, ValueError):
            raise FigureError(
                f"memory use is not to be had: there is no {self._file}, and sysconf does not tell free pages"
            ) from None


class SpaceSource:
    """How full the file system of a directory is."""

    topic = SPACE

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Space:
        try:
            usage = shutil.disk_usage(self._path)
        except OSError as error:
            raise FigureError(f"disk space is not to be had: {error}") from None
        if not usage.total:
            raise FigureError(f"disk space is not to be had: the file system of {self._path} tells no size")
        return Space(path=str(self._path), total=usage.total, used=usage.used)


class Meter:
    """Two growing counters, made into rates per second."""

    def __init__(self) -> None:
        self._last: tuple[float, int, int] | None = None

    def rates(self, one: int, other: int) -> tuple[float, float] | None:
        """The growth since the call before; None at the first call. A counter that was reset counts as none."""
        now = time.monotonic()
        last, self._last = self._last, (now, one, other)
        if last is None or now <= last[0]:
            return None
        return max(0, one - last[1]) / (now - last[0]), max(0, other - last[2]) / (now - last[0])


class DiskSource:
    """What whole disks read and write, from ``/proc/diskstats``."""

    topic = DISK

    def __init__(self, proc: Path = PROC) -> None:
        self._file = proc / "diskstats"
        self._meter = Meter()

    def read(self) -> Disk | None:
        read = written = 0
        disks: list[str] = []
        try:
            for row in lines(self._file, "disk traffic"):
                name, fields = row.split()[2], row.split()[3:]
                if name.startswith(LAYERED) or any(is_partition(name, disk) for disk in disks):
                    continue
                disks.append(name)
                read += int(fields[2]) * SECTOR
                written += int(fields[6]) * SECTOR
        except (IndexError, ValueError):
            raise FigureError(f"disk traffic is not to be had: {self._file} has an unknown form") from None
        if not disks:
            raise FigureError(f"disk traffic is not to be had: {self._file} lists no disk")
        rates = self._meter.rates(read, written)
        return None if rates is None else Disk(read=rates[0], written=rates[1])


def is_partition(name: str, disk: str) -> bool:
    """Partitions follow their disk and have its name with a number: sda, sda1; nvme0n1, nvme0n1p1."""
    return name.startswith(disk) and name[len(disk) :].removeprefix("p").isdigit()


class NetworkSource:
    """What the interfaces carry, from ``/proc/net/dev``."""

    topic = NETWORK

    def __init__(self, proc: Path = PROC) -> None:
        self._file = proc / "net" / "dev"
        self._meter = Meter()

    def read(self) -> Network | None:
        received = sent = interfaces = 0
        try:
            for row in lines(self._file, "network traffic")[2:]:
                name, _, rest = row.partition(":")
                if name.strip() != "lo":
                    interfaces += 1
                    fields = rest.split()
                    received += int(fields[0])
                    sent += int(fields[8])
        except (IndexError, ValueError):
            raise FigureError(f"network traffic is not to be had: {self._file} has an unknown form") from None
        if not interfaces:
            raise FigureError(f"network traffic is not to be had: {self._file} lists no interface but the loopback")
        rates = self._meter.rates(received, sent)
        return None if rates is None else Network(received=rates[0], sent=rates[1])


def lines(file: Path, what: str) -> list[str]:
    """The lines of a file of the kernel's. Raises FigureError."""
    try:
        return file.read_text("ascii", "replace").splitlines()
    except OSError as error:
        raise FigureError(f"{what} is not to be had: {file} cannot be read ({error.strerror})") from None


def numbers(file: Path, what: str, prefix: str) -> list[int]:
    """The numbers of the first line with that prefix. Raises FigureError."""
    for line in lines(file, what):
        if line.startswith(prefix):
            try:
                return [int(field) for field in line.split()[1:]]
            except ValueError:
                break
    raise FigureError(f"{what} is not to be had: {file} has an unknown form")


def all_sources(directory: Path, proc: Path = PROC) -> list[Source]:
    """One source of each figure; disk space is that of the directory's file system."""
    return [
        CpuSource(proc),
        LoadSource(),
        MemorySource(proc),
        SpaceSource(directory),
        DiskSource(proc),
        NetworkSource(proc),
    ]
