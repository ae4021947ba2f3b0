"""The README tells the truth: every ``python`` block runs, prints what its ``text`` block shows, and ends cleanly."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import eventbus
import eventbus_async
from eventbus._values.options import BusOptions, Options

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LIMIT = 50  # seconds for one block


class Block(NamedTuple):
    heading: str
    code: str
    shown: str | None


def blocks() -> list[Block]:
    """All python blocks, each with the heading above it and the text block that follows it at once."""
    found = re.finditer(
        r"^#+ (?P<heading>[^\n]+)$|^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<shown>.*?)^```$)?",
        README,
        re.M | re.S,
    )
    heading, result = "", []
    for match in found:
        if match["code"] is None:
            heading = match["heading"]
        else:
            result.append(Block(heading, match["code"], match["shown"]))
    return result


def run(arguments: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=LIMIT,
    )


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.heading)
def test_a_block_of_the_readme(block: Block, tmp_path: Path) -> None:
    if re.search(r"^(async )?def test_", block.code, re.M):
        (tmp_path / "test_block.py").write_text(block.code, encoding="utf-8")
        ended = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_block.py"], tmp_path)
        tests = len(re.findall(r"def test_", block.code))
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert f"{tests} passed" in ended.stdout
        return
    assert block.shown is not None, "a block that is no test shows what it prints"
    (tmp_path / "block.py").write_text(block.code, encoding="utf-8")
    ended = run(["-W", "error", "block.py"], tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == block.shown


def test_there_are_blocks_for_everything() -> None:
    """The pattern above finds them all."""
    assert len(blocks()) == README.count("```python") >= 10
    headings = {block.heading for block in blocks()}
    assert {"Threads", "asyncio", "Both at once", "Services", "Testing", "Streams"} <= headings


def test_the_two_commands_stand_there_verbatim() -> None:
    assert "\npip install . && python -m eventbus demo\n" in README
    assert "\npip install -e '.[test]' && pytest\n" in README


def rows(heading: str) -> dict[str, str]:
    """The table under a heading: what its first column names in backticks, and its second column."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    table = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    return {name: default.strip() for names, default in table for name in re.findall(r"`(\w+)`", names)}


def test_the_options_of_a_subscription_are_all_there_with_their_defaults() -> None:
    told = rows("Options of a subscription")
    assert list(told) == list(Options.__slots__)
    for name in set(told) - {"payload", "name"}:
        assert eval(told[name].strip("`")) == getattr(Options(), name)


def test_the_options_of_a_bus_are_all_there_with_their_defaults() -> None:
    told = rows("Options of a bus")
    for name in BusOptions.__slots__:
        assert eval(told.pop(name).strip("`")) == getattr(BusOptions(), name)
    assert set(told) == {"concurrency", "max_pending", "overflow", "block_timeout", "max_waiting"}


def test_every_promise_has_a_row() -> None:
    assert re.findall(r"^\| (G\d+) ", README, re.M) == [f"G{number}" for number in range(1, 23)]


def test_every_error_that_the_readme_names_exists() -> None:
    builtin = {"TypeError", "ValueError", "TimeoutError", "LookupError", "RuntimeError"}
    named = set(re.findall(r"`(\w+Error)`", README)) - builtin
    assert named
    for name in named:
        assert hasattr(eventbus, name), name
        assert hasattr(eventbus_async, name), name
