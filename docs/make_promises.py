"""Writes ``docs/promises.md``: what each promise says and does not say, and what holds it.

``python docs/make_promises.py`` writes the page anew. The texts stand in ``promises.toml`` beside it; the tests and the
planted bugs are collected from the sources of the tests, the figures from ``benchmarks/results``.

A test belongs to the promises that its name or docstring names (``test_g8_…``, "G8"); one that names none, to those of
its class, its file's name (``test_g08_….py``) or its file's docstring. A planted bug belongs to those that its
docstring names.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "promises.md"
NUMBERS = range(1, 23)
PLANTS = ROOT / "tests" / "kit_schedule" / "plants.py"
RESULTS = ROOT / "benchmarks" / "results"


class Test(NamedTuple):
    """One test function."""

    file: str  # from the root
    name: str
    promises: frozenset[int]

    @property
    def sentence(self) -> str:
        """Its name, as it would be said."""
        return re.sub(r"^test_(g\d+_)?", "", self.name).replace("_", " ")


class Plant(NamedTuple):
    """One planted bug."""

    name: str
    told: str
    promises: frozenset[int]


def named(text: str | None) -> frozenset[int]:
    """The promises that a text names; a range (``G1 to G22``) names none."""
    rest = re.sub(r"\bG\d+ (to|-) G\d+", "", text or "")
    return frozenset(int(number) for number in re.findall(r"\bG(\d+)\b", rest)) & frozenset(NUMBERS)


def by_name(name: str) -> frozenset[int]:
    """The promise that a test's or a file's name begins with."""
    match = re.match(r"test_g(\d+)_", name)
    return frozenset((int(match[1]),)) if match else frozenset()


def tests() -> list[Test]:
    """All tests, in order of files and lines."""
    found: list[Test] = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        file = path.relative_to(ROOT).as_posix()
        above = by_name(path.name) or named(ast.get_docstring(tree))
        found += [Test(file, name, promises) for name, promises in _within(tree, above)]
    return found


def _within(tree: ast.Module | ast.ClassDef, above: frozenset[int]) -> Iterator[tuple[str, frozenset[int]]]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from _within(node, named(ast.get_docstring(node)) or above)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            yield node.name, by_name(node.name) | named(ast.get_docstring(node)) or above


def plants() -> list[Plant]:
    """All planted bugs."""
    found: list[Plant] = []
    for node in ast.parse(PLANTS.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and any("plant" in ast.unparse(each) for each in node.decorator_list):
            told = " ".join((ast.get_docstring(node) or "").split())
            found.append(Plant(node.name, re.sub(r" \(G[\dG, ]+\)\.$", ".", told), named(told)))
    return found


def kept(name: str) -> dict[str, Any]:
    """A result that is kept, or nothing."""
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def figures() -> list[str]:
    """What has been run, as far as its results are kept."""
    lines: list[str] = []
    if schedules := kept("schedules.json"):
        lines.append(
            f"- **Schedules** (`python -m benchmarks schedules`): {schedules['distinct']:,} distinct ones, in "
            f"{schedules['minutes']:g} minutes with {schedules['processes']} processes on Python "
            f"{schedules['python']}; promises broken: {len(schedules['failures']) or 'none'}."
        )
    if mutants := kept("mutants.json"):
        of, left, bare = (sum(each[key] for each in mutants.values()) for key in ("run", "survived", "unexplained"))
        lines.append(
            f"- **Mutants** (`python -m benchmarks mutants`): {of:,} in {len(mutants)} modules of the core; the tests "
            f"notice {of - left:,}. Of the {left} others, which are equal or only slower, {bare or 'none'} is without "
            "a reason in `benchmarks/mutants.toml`."
        )
    if soak := kept("soak.json"):
        grown = [
            f"{name.replace(' at rest', '')} {slope['a minute']:+,.0f} ± {slope['noise']:,.0f}"
            for name, slope in soak["memory"]["slopes"].items()
            if " at rest" in name
        ]
        broken = [f"{count:,} {what}" for what, count in soak["must be zero"].items() if count]
        lines.append(
            f"- **Soak** (`python -m benchmarks soak`): {soak['events']:,} events and {soak['deliveries']:,} "
            f"deliveries in {soak['minutes']:g} minutes; lost, doubled, reordered, unsettled and the like: "
            f"{', '.join(broken) or 'zero'}. At rest, growth a minute: {', '.join(grown)}. "
            f"The run's verdict, which demands zeros and no growth beyond the noise: {soak['verdict']}."
        )
    return lines


def page() -> str:
    """The whole page."""
    texts = tomllib.loads((ROOT / "docs" / "promises.toml").read_text(encoding="utf-8"))
    all_tests, all_plants = tests(), plants()
    parts = [_paragraphs(texts["head"])]
    counted = sum(bool(each.promises) for each in all_tests)
    summary = [
        f"- **Tests**: {len(all_tests)} test functions, {counted} of which name a promise. Many are parametrised.",
        f"- **Planted bugs**: {len(all_plants)} small wrong changes of the engine, planted one at a time; the "
        "schedule explorer finds each of them, and a test fails if it ever does not.",
        *figures(),
    ]
    parts.append("\n".join(_item(line) for line in summary))
    for number in NUMBERS:
        parts.append(_section(number, texts[f"G{number}"], all_tests, all_plants))
    return "\n\n".join(parts) + "\n"


def _section(number: int, text: dict[str, str], all_tests: list[Test], all_plants: list[Plant]) -> str:
    mine = [each for each in all_tests if number in each.promises]
    planted = [each for each in all_plants if number in each.promises]
    parts = [
        f"## G{number} {text['title']}",
        _paragraphs(text["promised"]),
        _paragraphs("*Not promised.* " + text["not"]),
    ]
    if planted:
        took = kept("schedules.json").get("planted", {})
        lines = [_item(f"- {_planted(each, took.get(each.name))}") for each in planted]
        parts += ["Planted bugs that break it, and are found:", "\n".join(lines)]
    parts.append(f"<details><summary>{len(mine)} tests</summary>")
    for file in dict.fromkeys(each.file for each in mine):
        lines = [_item(f"- {each.sentence}") for each in mine if each.file == file]
        parts += [f"[{file}](../{file})", "\n".join(lines)]
    parts.append("</details>")
    return "\n\n".join(parts)


def _planted(plant: Plant, schedules: int | None) -> str:
    found = f" Found in schedule {schedules:,}." if schedules else ""
    return f"{plant.name.replace('_', ' ')}: {plant.told}{found}"


def _paragraphs(text: str) -> str:
    return "\n\n".join(_fill(" ".join(each.split())) for each in text.strip().split("\n\n"))


def _item(text: str) -> str:
    return _fill(text, "  ")


def _fill(text: str, indent: str = "") -> str:
    return fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
