"""What a run leaves: a table for the terminal, Markdown, JSON and plots. Every figure comes from the samples."""

from __future__ import annotations

import json
import math
import platform
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from eventbus.lowlevel import hot

from .figures import Spread
from .goals import AIM, GOALS, MET, NOT_MEASURED, judge
from .harness import Result, Row
from .peers import OURS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from .goals import Verdict

__all__ = ["PLOTS", "as_document", "from_document", "interpreter", "markdown", "plot", "table", "write"]

# Drawn: the cases with one cost each, of which the README shows some.
PLOTS = (
    "inline-1",
    "inline-10",
    "thread-to-thread-1",
    "thread-to-thread-4",
    "fan-out-8",
    "fan-out-64",
    "thread-to-loop",
    "loop-to-thread",
    "on-loop",
)


def interpreter() -> str:
    """What runs the code: figures depend on it, and on the language of the hot path."""
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    version = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{version}{'' if gil else ', free-threaded'}, the hot path in {hot.language()}"


def number(figure: float) -> str:
    """Three digits that matter."""
    if figure == 0 or not math.isfinite(figure):
        return f"{figure:g}"
    if abs(figure) >= 100:
        return f"{figure:,.0f}"
    digits = 2 - math.floor(math.log10(abs(figure)))
    return f"{figure:.{max(0, min(digits, 3))}f}"


def ranged(spread: Spread) -> str:
    """A median with its quartiles."""
    if spread.low == spread.high:
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.low)}–{number(spread.high)})"


def rows_of(result: Result) -> Iterable[tuple[str, list[str], str]]:
    """Name, a cell a metric and one a ratio, and a remark, of each row."""
    ours = result.ours()
    for row in result.rows:
        if row.missing or row.failed:
            remark = f"missing: {row.missing}" if row.missing else f"failed: {row.failed}"
            yield row.name, ["–", "–"] * len(result.metrics), remark
            continue
        cells: list[str] = []
        for metric in result.metrics:
            spread = row.spread(metric["name"])
            times = result.times_ours(row, metric["name"])
            cells.append("–" if spread is None else ranged(spread))
            cells.append("1" if row is ours else "–" if times is None else ranged(times))
        yield row.name, cells, row.lacks


def headings(result: Result) -> list[str]:
    found: list[str] = []
    for metric in result.metrics:
        unit = f", {metric['unit']}" if metric["unit"] else ""
        found += [f"{metric['name']}{unit}", "times ours"]
    return found


def table(lines: Sequence[Sequence[str]]) -> str:
    """Columns for a terminal: the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def terminal(result: Result) -> str:
    """One case for the terminal."""
    rows = list(rows_of(result))
    lines = [["", *headings(result)], *([name, *cells] for name, cells, _ in rows)]
    remarks = [f"  {name}: {remark}" for name, _, remark in rows if remark.startswith(("missing:", "failed:"))]
    return "\n".join([f"\n{result.title}  [{result.name}, {result.seconds:.1f} s]", table(lines), *remarks])


def goal_lines(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """The goals as cells: text, bound, measured, against whom, verdict."""
    return [
        [
            each.text,
            each.bound,
            "–" if each.measured is None else ranged(each.measured),
            each.against or "–",
            each.verdict,
        ]
        for each in verdicts
    ]


def score(verdicts: Sequence[Verdict]) -> str:
    met = sum(each.verdict in (MET, AIM) for each in verdicts)
    missing = sum(each.verdict == NOT_MEASURED for each in verdicts)
    return f"{met} of {len(verdicts)} goals met" + (f", {missing} not measured" if missing else "")


GOAL_HEADINGS = ["goal", "bound", "measured", "against", "verdict"]


def goals_for_terminal(results: Mapping[str, Result], some: bool = False, counted: Sequence[Verdict] = ()) -> str:
    """The goals; with ``some`` only those that the cases which were run can tell something about."""
    verdicts = [each for each in (*judge(GOALS, results), *counted) if not some or each.verdict != NOT_MEASURED]
    return f"\nGoals: {score(verdicts)}\n{table([GOAL_HEADINGS, *goal_lines(verdicts)])}"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Columns in Markdown: the first to the left, those of figures to the right."""
    rows = [f"| {' | '.join(map(cell, head))} |", f"|{'|'.join([' :--- ', *([' ---: '] * (len(head) - 1))])}|"]
    rows += [f"| {' | '.join(map(cell, line))} |" for line in lines]
    return "\n".join(rows)


def markdown(results: Sequence[Result], environment: Mapping[str, Any], counted: Sequence[Verdict] = ()) -> str:
    """The whole report; ``counted`` are goals that another run has judged."""
    verdicts = [*judge(GOALS, {each.name: each for each in results}), *counted]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    parts = [
        "# Results",
        f"Written by `python -m benchmarks{environment['arguments']}`; do not edit. {environment['python']},"
        f" {environment['machine']}, {environment['cores']} cores, {environment['rounds']} interleaved rounds,"
        f" {environment['when']}, load average {environment['load']} before and after. {versions}.",
        "Figures are medians, with quartiles in brackets; ratios pair the samples of one round. *Times ours* above 1"
        " means that ours is lower. Ours has its defaults: receipts, isolation, order, contexts, statistics.",
        f"## Goals\n\n{score(verdicts)}.\n\n{markdown_table(GOAL_HEADINGS, goal_lines(verdicts))}",
    ]
    for result in results:
        lines = [[name, *cells, remark or "–"] for name, cells, remark in rows_of(result)]
        text = f"## {result.title}\n\n`{result.name}`. {result.note}\n\n"
        if drawable(result):
            text += f"![{result.title}]({result.name}.svg)\n\n"
        parts.append(text + markdown_table(["", *headings(result), "does not promise"], lines))
    return "\n\n".join(parts) + "\n"


# Plots

WIDTH, BAR, GAP, LABEL = 720, 34, 18, 24
COLOURS = {"ours": "#0b7a75", "peer": "#8a94a6", "limit": "#c9ced8"}
LOG_FROM = 60  # the longest bar is so many times the shortest: then lengths are logarithms


def drawable(result: Result) -> bool:
    return result.name in PLOTS and any(row.samples for row in result.rows)


def plot(result: Result) -> str:
    """Bars with their names above them: readable at a phone's width, on light and dark pages."""
    metric, title = result.metrics[0], result.title.replace("`", "")
    found = [(row, spread) for row in result.rows if (spread := row.spread(metric["name"])) is not None]
    found.sort(key=lambda pair: pair[1].median)
    longest = max(spread.median for _, spread in found)
    shortest = min(spread.median for _, spread in found)
    logarithmic = shortest > 0 and longest / shortest > LOG_FROM
    full = WIDTH - 190

    def length(figure: float) -> float:
        if logarithmic:
            return full * (0.06 + 0.94 * math.log(figure / shortest) / math.log(longest / shortest))
        return full * figure / longest if longest else 0.0

    top = 104
    step = LABEL + BAR + GAP + 8
    height = top + step * len(found) + 16
    scale = "logarithmic scale, " if logarithmic else ""
    caption = f"{metric['unit']} {metric['what'].removeprefix('time ')}, {scale}shorter is better"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' font-family="system-ui, sans-serif" aria-label="{escape(title, {chr(34): "&quot;"})}">',
        f'<rect width="{WIDTH}" height="{height}" rx="12" fill="#ffffff"/>',
        f'<text x="24" y="44" font-size="30" font-weight="700" fill="#1c2430">{escape(title)}</text>',
        f'<text x="24" y="78" font-size="22" fill="#5b6575">{escape(caption)}</text>',
    ]
    for place, (row, spread) in enumerate(found):
        y = top + place * step
        weight = "700" if row.kind == OURS else "400"
        parts += [
            f'<text x="24" y="{y + LABEL - 4}" font-size="24" font-weight="{weight}" fill="#1c2430">{escape(row.name)}'
            f"{'' if row.kind != 'limit' else ' (limit)'}</text>",
            f'<rect x="24" y="{y + LABEL + 4}" width="{length(spread.median):.1f}" height="{BAR}" rx="4"'
            f' fill="{COLOURS.get(row.kind, "#8a94a6")}"/>',
            f'<text x="{24 + length(spread.median) + 10:.1f}" y="{y + LABEL + BAR - 5}" font-size="26"'
            f' font-weight="{weight}" fill="#1c2430">{number(spread.median)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


# Files


def as_document(results: Sequence[Result], environment: Mapping[str, Any]) -> dict[str, Any]:
    """What the JSON file holds: every sample, and what was made of them."""
    cases: list[dict[str, Any]] = []
    for result in results:
        rows: list[dict[str, Any]] = []
        for row in result.rows:
            entry = asdict(row)
            for metric in row.samples:
                spread, times = row.spread(metric), result.times_ours(row, metric)
                entry.setdefault("spread", {})[metric] = None if spread is None else spread.as_dict()
                entry.setdefault("times_ours", {})[metric] = None if times is None else times.as_dict()
            rows.append(entry)
        cases.append({**asdict(result), "rows": rows})
    verdicts = [asdict(each) for each in judge(GOALS, {each.name: each for each in results})]
    return {"environment": dict(environment), "cases": cases, "goals": verdicts}


def from_document(document: Mapping[str, Any]) -> list[Result]:
    """The results that a JSON file holds."""
    fields = ("name", "kind", "lacks", "missing", "failed", "n", "samples")
    return [
        Result(
            case["name"],
            case["title"],
            case["metrics"],
            [Row(**{name: row[name] for name in fields}) for row in case["rows"]],
            case["note"],
            case["seconds"],
        )
        for case in document["cases"]
    ]


def write(
    folder: Path, results: Sequence[Result], environment: Mapping[str, Any], counted: Sequence[Verdict] = ()
) -> list[Path]:
    """Write results.json, results.md and a plot a case; gives what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "results.json": json.dumps(as_document(results, environment), indent=1) + "\n",
        "results.md": markdown(results, environment, counted),
        **{f"{result.name}.svg": plot(result) for result in results if drawable(result)},
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in files]
