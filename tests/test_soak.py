"""The soak: a short run holds, its checker sees each kind of broken promise, and its slope tells growth from noise."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from kit import BOUND

from benchmarks import __main__ as command
from benchmarks.soak import COUNTED, judge_memory, watch
from benchmarks.soak.history import FIGURES, History, Sub
from eventbus import Event, EventBus

# The run


def run(minutes: float, folder: Path) -> dict[str, Any]:
    status = command.main(["soak", "--minutes", str(minutes), "--seed", "7", "--out", str(folder)])
    found: dict[str, Any] = json.loads((folder / "soak.json").read_text(encoding="utf-8"))
    assert found["must be zero"] == dict.fromkeys(FIGURES, 0), "\n".join(found["remarks"])
    assert found["verdict"] == "held", found["memory"]
    assert status == 0
    return found


def test_three_seconds_hold_and_are_told_of(tmp_path: Path) -> None:
    """G1 to G6, G9, G10, G13, G18 to G21, all at once."""
    found = run(0.05, tmp_path)
    assert found["events"] > 100
    assert found["deliveries"] == sum(found["outcomes"].values())
    assert found["outcomes"]["delivered"] > 100
    assert min(found[name] for name in COUNTED) > 0
    assert found["seconds"] >= 3
    assert not found["memory"]["judged"]
    tree = ElementTree.fromstring((tmp_path / "soak.svg").read_text(encoding="utf-8"))
    (line,) = tree.iter("{http://www.w3.org/2000/svg}polyline")
    assert len(line.attrib["points"].split()) == len(found["samples"])
    resting = [each for each in found["samples"] if each["rest"]]
    assert len(resting) == found["rests"]
    assert all(each["tasks"] == 0 for each in resting)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_ten_minutes_hold_and_memory_is_steady(tmp_path: Path) -> None:
    found = run(10, tmp_path)
    assert found["memory"]["judged"]


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("size", "measure"), [(80, "blocks in use at rest"), (2000, "C heap in use at rest, KiB")])
def test_a_leak_of_200_kib_a_minute_is_seen(
    size: int, measure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G18: small objects, which Python's allocator has, and larger ones, which the C library's has."""
    kept: list[bytes] = []
    began = time.monotonic()
    plain = History.judge

    def judge(self: History, bus: Any) -> None:
        plain(self, bus)
        due = (time.monotonic() - began) / 60 * 200 * 1024
        while len(kept) * size < due:
            kept.append(bytes(size - 33))  # its header takes 33

    monkeypatch.setattr(History, "judge", judge)
    assert command.main(["soak", "--minutes", "4", "--seed", "7", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "soak.json").read_text(encoding="utf-8"))
    assert found["verdict"] == "broken"
    assert found["must be zero"] == dict.fromkeys(FIGURES, 0), "\n".join(found["remarks"])
    unit = 1 if "blocks" in measure else size / 1024
    assert found["memory"]["slopes"][measure]["a minute"] == pytest.approx(200 * 1024 / size * unit, rel=0.3)
    assert found["memory"]["slopes"][measure]["grows"]


def test_a_broken_promise_is_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G18: a payload that is kept is leaked."""
    kept: list[Any] = []
    plain = History.emit

    def emit(self: History, *args: Any, **arguments: Any) -> Any:
        made = plain(self, *args, **arguments)
        if not kept:
            kept.append(made)
        return made

    monkeypatch.setattr(History, "emit", emit)
    monkeypatch.setattr("benchmarks.soak.REST", 0.0)  # only what is kept is looked at
    assert command.main(["soak", "--minutes", "0.01", "--seed", "7", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "soak.json").read_text(encoding="utf-8"))
    assert found["verdict"] == "broken"
    assert any("payloads" in remark for remark in found["remarks"])


# The checker


class Play:
    """A bus, a history of it, and one subscription that notes its calls."""

    def __init__(self, bus: EventBus, **options: Any) -> None:
        self.bus = bus
        self.history = History()
        self.sub = self.subscribe(**options)

    def subscribe(self, **options: Any) -> Sub:
        sub = self.history.expect(("c",), options)

        def handler(event: Event) -> Any:
            self.history.begin(sub, event.payload, event)
            try:
                return event.payload.number
            finally:
                self.history.end(sub, event.payload)

        self.history.made(sub, self.bus.on("c", handler, name=sub.name, **options))
        return sub

    def emit(self) -> Any:
        emit = self.history.emit(self.bus, "c", "k")
        emit.receipt.wait(BOUND)
        return emit


def lost(play: Play) -> None:
    play.emit().calls.clear()


def lost_before_it_was_a_delivery(play: Play) -> None:
    sub = play.history.expect(("c",), {})
    play.history.made(sub, play.bus.on("elsewhere", print, name=sub.name))
    play.emit()


def doubled(play: Play) -> None:
    emit = play.emit()
    play.history.begin(play.sub, emit, None)
    play.history.end(play.sub, emit)


def unexpected(play: Play) -> None:
    play.emit().calls.append("somebody else")


def unexpected_after_a_cancel(play: Play) -> None:
    play.history.leave(play.sub)
    play.history.left(play.sub)
    play.emit()


def reordered(play: Play) -> None:
    emits = [play.history.begin_emit("c", "k") for _ in range(2)]
    for emit in emits:
        emit.end = play.history.now()
        emit.refused = True
    emits[1].begin = play.history.now()
    for emit in reversed(emits):
        play.history.begin(play.sub, emit, None)
        play.history.end(play.sub, emit)
        emit.calls.clear()


def overlapped(play: Play) -> None:
    emit = play.history.begin_emit("c", "k")
    play.history.begin(play.sub, emit, None)
    play.emit()
    play.history.end(play.sub, emit)
    emit.calls.clear()
    emit.refused, emit.end = True, play.history.now()


def late(play: Play) -> None:
    emit = play.emit()
    play.sub.quiet = True
    emit.calls.clear()
    play.history.begin(play.sub, emit, None)
    play.sub.quiet = False
    play.history.end(play.sub, emit)


def unsettled(play: Play) -> None:
    class Never:
        done = False
        deliveries = 1
        outcomes = ()

    emit = play.emit()
    emit.receipt = Never()
    emit.calls.clear()
    play.sub.end = play.history.now()


def wrong(play: Play) -> None:
    play.emit().number += 1_000_000


def miscounted(play: Play) -> None:
    play.emit()
    play.history.apart += 1


def told_twice(play: Play) -> None:
    play.emit()
    play.history.heard["handler"] += 1


def timeout_not_told(play: Play) -> None:
    play.emit()
    play.history.heard["timeout"] -= 1


PLANTED: list[tuple[str, Callable[[Play], None]]] = [
    ("lost", lost),
    ("lost", lost_before_it_was_a_delivery),
    ("doubled", doubled),
    ("unexpected", unexpected),
    ("unexpected", unexpected_after_a_cancel),
    ("reordered", reordered),
    ("overlapped", overlapped),
    ("late", late),
    ("unsettled", unsettled),
    ("wrong", wrong),
    ("miscounted", miscounted),
    ("miscounted", told_twice),
    ("miscounted", timeout_not_told),
]


@pytest.mark.parametrize(("figure", "plant"), PLANTED, ids=[plant.__name__ for _, plant in PLANTED])
def test_the_checker_sees(figure: str, plant: Callable[[Play], None], bus: EventBus) -> None:
    play = Play(bus)
    play.emit()
    plant(play)
    play.history.judge(bus)
    for sub in tuple(play.history.subs.values()):
        play.history.cancel(sub, wait=True)
    play.history.judge_end(bus)
    assert play.history.found[figure] > 0, play.history.remarks


@pytest.mark.parametrize(
    "options",
    [{}, {"lane": "l"}, {"key": lambda event: event.payload.key, "concurrency": 2}, {"observer": True}],
    ids=["plain", "lane", "key", "observer"],
)
def test_the_checker_finds_nothing_where_nothing_is_wrong(options: dict[str, Any], bus: EventBus) -> None:
    play = Play(bus, **options)
    for _ in range(20):
        play.emit()
        play.history.cancel(play.subscribe(**options), drain=True)
    play.history.judge(bus)
    play.history.cancel(play.sub, wait=True)
    play.history.judge_end(bus)
    assert not play.history.found, play.history.remarks
    assert play.history.events == 20
    assert not play.history.open
    assert not play.history.subs  # its memory is bounded


# The slope


def test_the_slope_and_its_noise() -> None:
    times = [float(each) for each in range(60, 121)]
    found = watch.slope(times, [3000.0 + 2 * (each - 60) for each in times])
    assert found.per_minute == pytest.approx(120)
    assert found.noise == pytest.approx(0)
    assert (found.begin, found.at) == (60, pytest.approx(3000))
    assert found.grows
    coarse = watch.slope(times, [3000.0 + 2 * (each - 60) for each in times], grain=121)
    assert coarse.noise == pytest.approx(121)  # a minute is what was looked at
    assert not coarse.grows


def planted(minutes: float = 10, **growth: float) -> list[watch.Sample]:
    """What a run of so long would have measured: tables that fill up at first, noise, rests in the second half, and
    what is planted, a minute: ``memory`` and ``heap`` in KiB, ``blocks``, and ``busy`` blocks that a rest lets go."""
    rng = random.Random(11)
    found: list[watch.Sample] = []
    rested = 0.0
    for second in range(int(minutes * 60) + 1):
        rest = second >= minutes * 30 and second % 12 == 0
        filled = min(1.0, second / 120)
        noise = rng.gauss(0, 0.02 if rest else 1)
        now = second / 60
        rested = now if rest else rested
        found.append(
            watch.Sample(
                second,
                int((50_000 - 4000 * rest + 5000 * filled + 300 * noise + growth.get("memory", 0) * now) * 1024),
                int(
                    160_000 + 5000 * filled + 5000 * noise
                    + growth.get("blocks", 0) * now + growth.get("busy", 0) * (now - rested)
                ),
                int((7800 + 500 * filled + 400 * noise + growth.get("heap", 0) * now) * 1024),
                1, 0, 8, 1000 * second, rest,
            )
        )  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("growth", "measure"),
    [
        ({"blocks": 200 * 1024 / 80}, "blocks in use at rest"),
        ({"heap": 200}, "C heap in use at rest, KiB"),
        ({"memory": 1500}, "resident at rest, KiB"),
        ({"busy": 8000}, "blocks in use under load"),
    ],
)
def test_memory_is_judged_by_what_is_planted(growth: dict[str, float], measure: str) -> None:
    """A leak of 200 KiB a minute, of small objects and of large ones; fragmentation; what only a rest lets go."""
    found = judge_memory(planted(**growth), 600)
    assert [name for name, slope in found["slopes"].items() if slope["grows"]] == [measure]
    assert found["judged"]
    assert found["grows"]
    assert found["slopes"][measure]["a minute"] == pytest.approx(next(iter(growth.values())), rel=0.1)


@pytest.mark.parametrize("creep", [0, 300])
def test_memory_that_fills_up_and_is_noisy_does_not_grow(creep: float) -> None:
    """Nor does resident memory that creeps up by less than the load's own demand while what is in use stays."""
    found = judge_memory(planted(memory=creep), 600)
    assert found["judged"]
    assert not found["grows"], found["slopes"]


def test_a_short_run_is_not_judged() -> None:
    assert not judge_memory(planted(minutes=1, blocks=10_000), 60)["judged"]


def test_the_c_heap_tells_what_it_has_given_out() -> None:
    """Not everywhere: 0 there, and always."""
    before = watch.heap()
    kept = [bytearray(100_000) for _ in range(50)]
    grown = watch.heap() - before
    assert len(kept) == 50
    assert grown == 0 if before == 0 else 5_000_000 <= grown < 6_000_000


def test_noise_does_not_grow_and_growth_is_seen_through_noise() -> None:
    rng = random.Random(3)
    times = [float(each) for each in range(600)]
    noise = [rng.gauss(0, 10) for _ in times]
    assert not watch.slope(times, noise).grows
    growing = watch.slope(times, [each + 0.5 * time for each, time in zip(noise, times, strict=True)])
    assert growing.grows
    assert growing.per_minute == pytest.approx(30, rel=0.1)
    outliers = [1000.0 if place % 50 == 0 else each for place, each in enumerate(noise)]
    assert not watch.slope(times, outliers).grows


def test_a_record_gives_back_what_it_was_given_and_takes_its_memory_beforehand() -> None:
    given = [watch.Sample(each / 2, each << 30, each, -each, 9, each, 5, 1 << 40, each % 3 == 0) for each in range(100)]
    record, small = watch.Record(100), watch.Record(1)
    before = sys.getallocatedblocks()
    for each in given:
        record.append(each)
    assert sys.getallocatedblocks() - before < 5
    for each in given:
        small.append(each)
    assert list(record) == list(small) == given


def test_too_few_points_have_no_slope() -> None:
    with pytest.raises(ValueError, match="too few"):
        watch.slope([1, 2, 3], [1, 2, 3])


def test_the_plot_shows_memory_its_line_and_what_there_was() -> None:
    samples = [watch.Sample(each, (40 + each) << 20, 0, 0, 9, each, 5, 0, each >= 6) for each in range(10)]
    line = watch.slope([each.seconds for each in samples[6:]], [each.memory for each in samples[6:]])
    tree = ElementTree.fromstring(watch.plot(samples, line, "a <verdict> & more"))
    space = "{http://www.w3.org/2000/svg}"
    texts = [each.text for each in tree.iter(f"{space}text")]
    assert "a <verdict> & more" in texts
    assert "9–9 threads, 0–9 tasks, 5–5 handles" in texts
    (fit,) = [each for each in tree.iter(f"{space}line") if "stroke-dasharray" in each.attrib]
    (curve,) = tree.iter(f"{space}polyline")
    assert len(list(tree.iter(f"{space}circle"))) == 4
    last = curve.attrib["points"].split()[-1]
    assert last == f"{fit.attrib['x2']},{fit.attrib['y2']}"
    assert min(float(each.attrib["font-size"]) for each in tree.iter(f"{space}text")) >= 22
