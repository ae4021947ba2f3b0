"""Programs in processes of their own: what hangs is killed with its whole process group, and the test fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

__all__ = ["SAY", "begin", "end", "kill"]

ROOT = Path(__file__).resolve().parents[1]

# For programs: print in one go, for several threads do.
SAY = """
def say(*what):
    sys.stdout.write(" ".join(map(str, what)) + "\\n")
    sys.stdout.flush()
"""


def begin(program: str, prelude: str = "") -> subprocess.Popen[str]:
    """Start it; both of its outputs are one."""
    return subprocess.Popen(
        [sys.executable, "-u", "-X", "faulthandler", "-c", prelude + textwrap.dedent(program)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )


def kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def end(process: subprocess.Popen[str], within: float) -> str:
    """Its output; it must end with 0, within so many seconds."""
    try:
        output, _ = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        kill(process)
        output, _ = process.communicate()
        pytest.fail(f"hangs:\n{output}")
    assert process.returncode == 0, f"exit code {process.returncode}:\n{output}"
    return output
