"""The command ``python -m eventbus``, installed also as ``eventbus``: reads its arguments and runs the demo.

A program beside the library: it alone looks upwards, to the demo, by name and at run time.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .lowlevel import hot

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code. Wrong arguments exit with 2 and a message, as argparse does."""
    options = parser().parse_args(arguments)
    if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]
        return run(options)
    with open(os.devnull, "w") as sys.stdout:  # it was closed before we began
        return run(options)


def run(options: argparse.Namespace) -> int:
    """Run the demo; gives the exit code."""
    limits = {"cpu": options.cpu_alarm, "memory": options.memory_alarm, "space": options.space_alarm}
    try:
        demo = import_module("eventbus_async._demo")
        settings = demo.Settings(options.seconds, options.interval, options.json, options.output, limits)
        return int(demo.run(settings))
    except KeyboardInterrupt:
        return 130  # before or after the part that ends in order
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # whoever read our output has gone, and knows
            print(f"eventbus demo: {error}", file=sys.stderr)
        # Python would complain again when it flushes the output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    command = argparse.ArgumentParser(prog="python -m eventbus", description="An event bus for threads and asyncio.")
    version = f"eventbus {__version__}, the hot path in {hot.language()}"
    command.add_argument("--version", action="version", version=version)
    commands = command.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="watch this machine through a bus",
        description="Watch this machine: threads read its figures, asyncio services make digests and alarms of them, a"
        " blocking handler writes every event to a file, all on one bus. Ends by itself or on Ctrl-C, with a summary"
        " that accounts for every delivery. Exit code 0 if it does.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--seconds", type=seconds, default=10.0, metavar="S", help="how long to watch")
    demo.add_argument(
        "--interval", type=seconds, default=0.1, metavar="S", help="time between two readings of a figure"
    )
    demo.add_argument("--json", action="store_true", help="print nothing but the summary, as JSON")
    demo.add_argument(
        "--output", type=Path, metavar="FILE", help="write the events here, instead of to a temporary file"
    )
    for figure, what in (("cpu", "CPU use"), ("memory", "memory use"), ("space", "disk space use")):
        demo.add_argument(
            f"--{figure}-alarm",
            type=per_cent,
            default=90.0,
            metavar="PCT",
            help=f"raise an alarm when {what} is over this",
        )
    return command


def seconds(text: str) -> float:
    """A time that is more than 0 and ends."""
    value = number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: give seconds, more than 0")
    return value


def per_cent(text: str) -> float:
    """From 0 to 100."""
    value = number(text.removesuffix("%"))
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: give per cent, from 0 to 100")
    return value


def number(text: str) -> float:
    """Any number, nan if it is none: no range contains that."""
    try:
        return float(text)
    except ValueError:
        return math.nan


if __name__ == "__main__":
    sys.exit(main())
