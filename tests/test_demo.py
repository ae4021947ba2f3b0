"""``python -m eventbus demo``: the command as a user runs it, and the figures it reads."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eventbus import Event, EventBus, SubscriptionStats, __version__
from eventbus.__main__ import main
from eventbus.lowlevel import hot
from eventbus_async import AsyncEventBus
from eventbus_async._demo import figures
from eventbus_async._demo.events import CPU, MEMORY, Cpu, Disk, Memory, Network, size
from eventbus_async._demo.figures import FigureError
from eventbus_async._demo.samplers import Sampler
from eventbus_async._demo.services import Thresholds
from eventbus_async._demo.summary import Check, accounted
from eventbus_async._demo.writer import Writer

LIMIT = 40
ALARMS = ("--space-alarm", "0", "--cpu-alarm", "100", "--memory-alarm", "100")  # one for certain, the others never
NUMBERS = ("deliveries", "pending", "running", "delivered", "failed", "timed_out", "cancelled", "dropped", "rejected")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "eventbus", "demo", *arguments]


def check_sum(summary: dict[str, Any]) -> None:
    """The contract's sum, counted here again from the numbers alone."""
    for row in (summary["totals"], *summary["subscriptions"].values()):
        assert set(row) == {*NUMBERS, "wait", "run"}
        assert row["deliveries"] == sum(row[name] for name in NUMBERS[1:])
        assert row["pending"] == row["running"] == 0
    totals = summary["totals"]
    assert totals["deliveries"] == sum(row["deliveries"] for row in summary["subscriptions"].values()) > 0
    assert summary["events"] == sum(summary["topics"].values()) > 0
    assert summary["events"] == summary["subscriptions"]["writer"]["deliveries"]
    assert summary["output"]["lines"] == summary["subscriptions"]["writer"]["delivered"]
    assert summary["accounted"] is True
    assert all(check["holds"] for check in summary["checks"])
    assert summary["errors"] == []


def test_the_demo_accounts_for_every_delivery(tmp_path: Path) -> None:
    """On every machine: what this one does not tell is said to be unavailable, and the rest is there."""
    output = tmp_path / "events.jsonl"
    ended = subprocess.run(
        command("--seconds", "1", "--interval", "0.02", "--json", "--output", str(output), *ALARMS),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    summary = json.loads(ended.stdout)
    check_sum(summary)
    assert summary["ended_by"] == "the clock"
    assert summary["seconds"] >= 1
    told = {topic.name for topic in (each.topic for each in figures.all_sources(tmp_path))}
    assert set(summary["readings"]) | set(summary["unavailable"]) == told
    assert [alarm["figure"] for alarm in summary["alarms"]] == ["space"]

    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert len(rows) == summary["output"]["lines"] == summary["events"]
    counted = {topic: sum(row["topic"] == topic for row in rows) for topic in summary["topics"]}
    assert counted == summary["topics"]
    assert counted["machine/space"] > 5
    # A digest is caused by the tenth reading of its topic (G19).
    by_seq = {row["seq"]: row for row in rows}
    assert len(by_seq) == len(rows)
    digests = [
        row["payload"] for row in rows if row["topic"] == "digest" and row["payload"]["topic"] == "machine/space"
    ]
    assert len(digests) == counted["machine/space"] // 10
    assert all(row["parent"] for row in rows if row["topic"] in ("digest", "alarm"))
    assert all(row["parent"] is None for row in rows if row["topic"].startswith("machine/"))


@contextmanager
def running(*arguments: str, output: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo in a process of its own, once it has begun to write events."""
    process = subprocess.Popen(
        command(*arguments, "--output", str(output)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + LIMIT
        while not (output.exists() and output.stat().st_size):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            threading.Event().wait(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="signals of processes are another thing there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_the_demo_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    """G10: drained, every delivery accounted for, exit code 0."""
    with running("--seconds", "1000", "--json", output=tmp_path / "events") as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err) == (0, "")
    summary = json.loads(out)
    assert summary["ended_by"] == number.name
    check_sum(summary)


def test_the_summary_for_people(tmp_path: Path) -> None:
    """Elsewhere than on a terminal there are plain lines, without escapes."""
    ended = subprocess.run(command("--seconds", "0.3"), capture_output=True, text=True, timeout=LIMIT, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\x1b" not in ended.stdout
    assert "every delivery is accounted for" in ended.stdout
    assert "latency p50" in ended.stdout
    assert "writer" in ended.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="there are no pseudo-terminals there")
def test_the_live_table_on_a_terminal() -> None:
    """It is redrawn in place: the cursor goes up before the second table."""
    import pty

    leader, follower = pty.openpty()
    process = subprocess.Popen(command("--seconds", "1.2"), stdout=follower, stderr=follower)
    os.close(follower)
    shown = bytearray()
    try:
        while piece := os.read(leader, 65536):
            shown += piece
    except OSError:
        pass  # how Linux says that the other end has gone
    finally:
        os.close(leader)
    assert process.wait(LIMIT) == 0
    text = shown.decode()
    assert text.count("eventbus demo: ") >= 2
    assert "\x1b[K" in text
    assert re.search("\x1b\\[\\d+A", text)
    assert "queued" in text
    assert "every delivery is accounted for" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--seconds", "0"], "'0' is no time"),
        (["demo", "--seconds", "-3"], "'-3' is no time"),
        (["demo", "--seconds", "nan"], "'nan' is no time"),
        (["demo", "--seconds", "inf"], "'inf' is no time"),
        (["demo", "--seconds", "soon"], "'soon' is no time"),
        (["demo", "--interval", "0"], "'0' is no time"),
        (["demo", "--cpu-alarm", "101"], "'101' is no share"),
        (["demo", "--what"], "--what"),
        (["dance"], "dance"),
        ([], "COMMAND"),
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_version_says_in_what_the_hot_path_is(capsys: pytest.CaptureFixture[str]) -> None:
    before = hot.use(False)
    try:
        for on in (False, True):
            hot.use(on)
            with pytest.raises(SystemExit):
                main(["--version"])
            language = "C" if on and hot.module is not None else "Python"
            assert capsys.readouterr().out == f"eventbus {__version__}, the hot path in {language}\n"
    finally:
        hot.use(before)


def test_an_output_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--seconds", "1", "--output", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert str(tmp_path) in told.err
    assert told.out == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device there")
def test_a_full_disk_ends_the_demo_with_an_error_and_all_the_same_with_its_sum() -> None:
    """G5: the writer fails, everybody else goes on, and nothing is hidden."""
    ended = subprocess.run(
        command("--seconds", "1000", "--json", "--output", "/dev/full"), capture_output=True, text=True, timeout=LIMIT
    )
    assert (ended.returncode, ended.stderr) == (1, "")
    summary = json.loads(ended.stdout)
    assert summary["accounted"] is True
    assert summary["ended_by"] == "an error of writer"
    assert "No space left" in summary["errors"][0]
    writer = summary["subscriptions"]["writer"]
    assert writer["failed"] == len(summary["errors"]) == writer["deliveries"] == summary["totals"]["failed"]
    assert summary["totals"]["delivered"] > 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device there")
def test_an_output_that_takes_nothing_is_one_clear_error() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command("--seconds", "1"), stdout=full, stderr=subprocess.PIPE, text=True, timeout=LIMIT)
    assert ended.returncode == 1
    assert ended.stderr == "eventbus demo: [Errno 28] No space left on device\n"


@pytest.mark.skipif(os.name == "nt", reason="pipes break in another way there")
def test_a_reader_that_goes_away_ends_the_demo_quietly() -> None:
    with subprocess.Popen(command("--seconds", "1000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"eventbus demo: ")
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(LIMIT) == 1


def test_an_event_that_is_lost_makes_the_demo_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """G3: the demo's own counts would show it; here the writer hides one line."""
    write = Writer.write
    hidden: list[Event] = []

    def hide_one(self: Writer, event: Event) -> None:
        if hidden:
            write(self, event)
        else:
            hidden.append(event)

    monkeypatch.setattr(Writer, "write", hide_one)
    assert main(["demo", "--seconds", "0.3"]) == 1
    told = capsys.readouterr().out
    assert "WRONG: lines in the file: " in told
    assert "every delivery is accounted for" not in told

    monkeypatch.undo()
    assert main(["demo", "--seconds", "0.3"]) == 0
    assert "every delivery is accounted for" in capsys.readouterr().out


def test_a_sum_that_fails_is_seen() -> None:
    """The exit code hangs on these."""
    assert accounted(SubscriptionStats(deliveries=9, delivered=3, failed=2, dropped=1, pending=1, running=1)) == 8
    assert not Check("anything", 9, 8).holds
    assert Check("anything", 9, 9).holds


# Figures


def proc_with(directory: Path, **files: str) -> Path:
    for name, text in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text, encoding="ascii")
    return directory


def test_cpu_use_is_the_share_of_busy_time_between_two_readings(tmp_path: Path) -> None:
    source = figures.CpuSource(proc_with(tmp_path, stat="cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 2 3\n"))
    assert source.read() is None
    assert source.read() is None  # nothing has moved
    proc_with(tmp_path, stat="cpu  130 0 120 740 110 0 0 0 70 0\n")
    reading = source.read()
    assert isinstance(reading, Cpu)
    assert reading.busy == pytest.approx(50.0)  # 30 + 20 of 30 + 20 + 40 + 10


def test_memory_that_the_kernel_can_give_at_once_is_not_used(tmp_path: Path) -> None:
    proc = proc_with(tmp_path, meminfo="MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 600 kB\nHugePages_Total: 0\n")
    reading = figures.MemorySource(proc).read()
    assert isinstance(reading, Memory)
    assert (reading.total, reading.used, reading.value()) == (1024000, 409600, 40.0)


def test_disk_traffic_counts_whole_disks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr("eventbus_async._demo.figures.time.monotonic", lambda: now[0])

    def row(name: str, read: int, written: int) -> str:
        return f" 8 0 {name} 1 0 {read} 5 1 0 {written} 5 0 0 0\n"

    def table(read: int, written: int) -> str:
        names = ("sda", "sda1", "sdaa", "nvme0n1", "nvme0n1p1", "loop0", "dm-0")
        return "".join(row(name, read, written) for name in names)

    source = figures.DiskSource(proc_with(tmp_path, diskstats=table(100, 10)))
    assert source.read() is None
    now[0] = 12.0
    proc_with(tmp_path, diskstats=table(102, 14))
    reading = source.read()
    assert isinstance(reading, Disk)
    assert (reading.read, reading.written) == (3 * 2 * 512 / 2, 3 * 4 * 512 / 2)


def test_network_traffic_leaves_out_the_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr("eventbus_async._demo.figures.time.monotonic", lambda: now[0])

    def table(received: int, sent: int) -> str:
        rows = "".join(f"{name}:{received} 1 0 0 0 0 0 0 {sent} 1 0 0 0 0 0 0\n" for name in ("  lo", "eth0", "wlan0"))
        return "Inter-|\n face |\n" + rows

    source = figures.NetworkSource(proc_with(tmp_path, net__dev=table(1000, 100)))
    assert source.read() is None
    now[0] = 10.5
    proc_with(tmp_path, net__dev=table(2000, 50))  # a counter that was reset
    reading = source.read()
    assert isinstance(reading, Network)
    assert (reading.received, reading.sent) == (4000.0, 0.0)


@pytest.mark.parametrize("text", [None, "", "nonsense\n", "cpu x\n 8 0 sda\n\n\neth0: x\n"])
def test_a_figure_that_is_not_to_be_had_says_so(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        proc_with(tmp_path, stat=text, diskstats=text, net__dev="a\nb\neth0: x\n" if text else "", meminfo=text)
    for source, what in (
        (figures.CpuSource(tmp_path), "CPU use"),
        (figures.DiskSource(tmp_path), "disk traffic"),
        (figures.NetworkSource(tmp_path), "network traffic"),
    ):
        with pytest.raises(FigureError, match=f"^{what} is not to be had: "):
            source.read()
    assert figures.MemorySource(tmp_path).read().total > 0  # by another way, here


def test_this_machine_gives_plausible_figures(tmp_path: Path) -> None:
    """Real ones; each is a reading, None for now, or a clear refusal."""
    read = 0
    for source in figures.all_sources(tmp_path):
        try:
            reading = source.read()
        except FigureError:
            continue  # its message has a test of its own, above
        read += 1
        if reading is not None:
            assert reading.value() >= 0
            assert reading.text()
            assert abs(reading.time - time.time()) < 60
    assert read


def test_sizes_for_people() -> None:
    assert [size(n) for n in (0, 1023, 1536, 5 * 2**20, 2**40)] == ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "1.0 TiB"]


# What the machine, or the user, does not give


def test_the_demo_runs_without_any_output() -> None:
    """As a daemon may be started: there is no stdout at all."""
    ended = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command("--seconds", "0.2")], stderr=subprocess.PIPE, timeout=LIMIT
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_ctrl_c_before_there_is_anything_to_end_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("eventbus.__main__.import_module", interrupted)
    assert main(["demo"]) == 130


def test_the_demo_runs_in_a_thread_that_gets_no_signals(capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["demo", "--seconds", "0.2", "--json"])))
    thread.start()
    thread.join(LIMIT)
    assert codes == [0]
    check_sum(json.loads(capsys.readouterr().out))


def test_what_this_machine_does_not_tell_is_said_to_be_unavailable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The rest goes on, and every delivery is accounted for."""

    def nothing(*_: Any) -> Any:
        raise OSError("nobody knows")

    monkeypatch.setattr(os, "getloadavg", nothing)
    monkeypatch.setattr(os, "sysconf", nothing)
    monkeypatch.setattr(figures, "PROC", tmp_path)
    monkeypatch.setattr(figures.shutil, "disk_usage", nothing)
    with pytest.raises(FigureError, match="sysconf"):
        figures.MemorySource(tmp_path).read()
    assert main(["demo", "--seconds", "0.3", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["accounted"] is True
    assert {"machine/load", "machine/space"} <= set(summary["unavailable"])
    monkeypatch.setattr(figures.shutil, "disk_usage", lambda path: type("Usage", (), {"total": 0, "used": 0}))
    with pytest.raises(FigureError, match="tells no size"):
        figures.SpaceSource(tmp_path).read()


def test_a_line_that_is_written_in_part_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a line that is counted."""
    writer = Writer(tmp_path / "events")
    with EventBus() as bus:
        bus.on("t", writer.write)
        monkeypatch.setattr(writer, "_file", type("Full", (), {"write": lambda self, line: len(line) - 1})())
        (outcome,) = bus.emit("t").wait(LIMIT).outcomes
    monkeypatch.undo()
    writer.close()
    assert "only a part" in str(outcome.error)
    assert writer.lines == 0


def test_figures_without_a_limit_raise_no_alarm() -> None:
    async def run() -> None:
        async with AsyncEventBus() as bus, Thresholds(bus, {"cpu": 50.0}) as thresholds:
            assert (await bus.emit(MEMORY, Memory(total=100, used=99))).results() == [None]
            assert thresholds.emitted == {}
            assert (await bus.emit(CPU, Cpu(busy=60.0))).results() == [None]
            assert thresholds.emitted == {"alarm": 1}

    asyncio.run(run())


def test_a_sampler_that_the_end_overtakes_stops_quietly() -> None:
    bus = EventBus()
    sampler = Sampler(bus, figures.SpaceSource(Path()), 0.01, threading.Event())
    bus.close(0)
    sampler.run()
    assert sampler.emitted == {}
