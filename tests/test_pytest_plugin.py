"""The pytest plugin, in runs of pytest in their own processes: in this one they would import the bus a second time."""

from __future__ import annotations

import importlib.util

import pytest

needs_pytest_asyncio = pytest.mark.skipif(
    importlib.util.find_spec("pytest_asyncio") is None, reason="pytest-asyncio is not installed"
)
FIXTURE_LOOP_SCOPE = ("-o", "asyncio_default_fixture_loop_scope=function")  # it warns where this is unset


def run(pytester: pytest.Pytester, *arguments: str, plugins: tuple[str, ...] = ("eventbus",)) -> pytest.RunResult:
    """Runs pytest with these plugins and no others, whatever else is installed."""
    named = [argument for name in plugins for argument in ("-p", name)]
    return pytester.runpytest_subprocess(
        "--disable-plugin-autoload", *named, "--strict-markers", "-W", "error", *arguments
    )


MARKED_TEST = """
    import asyncio
    import pytest

    @pytest.mark.asyncio
    async def test_marked():
        await asyncio.sleep(0)
"""

USES_OF_THE_FIXTURES = """
    import asyncio
    import eventbus
    import eventbus_async
    import pytest

    buses = []

    def test_threads(event_bus, event_sync):
        assert type(event_bus) is eventbus.EventBus
        buses.append(event_bus)
        event_bus.emit("my/topic", {"value": 42})
        assert event_sync.wait_for_event("my/topic") == {"value": 42}

    @pytest.mark.asyncio
    async def test_loop(async_event_bus, async_event_sync):
        assert type(async_event_bus) is eventbus_async.AsyncEventBus
        buses.append(async_event_bus.bus)
        seen = []

        @async_event_bus.on("my/*")
        async def handler(payload):
            seen.append(payload)

        await async_event_bus.emit("my/topic", {"value": 42})
        assert seen == [{"value": 42}]
        assert await async_event_sync.wait_for_event("my/topic") == {"value": 42}

    @pytest.mark.asyncio
    async def test_nothing_is_awaited(async_event_bus, async_event_sync):
        buses.append(async_event_bus.bus)

        @async_event_bus.on("my/topic")
        async def handler(payload):
            await asyncio.sleep(3600)

        async_event_bus.emit("my/topic")

    def test_without_a_loop(async_event_bus, async_event_sync):
        buses.append(async_event_bus.bus)
        async_event_bus.on("my/topic", lambda payload: None)
        async_event_bus.bus.emit("my/topic").wait(10)

    def test_the_buses_are_closed():
        assert len(set(buses)) == 4
        for bus in buses:
            with pytest.raises(eventbus.BusClosedError):
                bus.emit("my/topic")
"""


def test_runs_marked_tests(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import asyncio
        import pytest

        loops = []

        @pytest.fixture
        def value():
            return 42

        @pytest.fixture(autouse=True)
        def not_an_argument():
            yield "autouse"

        @pytest.mark.asyncio
        async def test_passes(value):
            await asyncio.sleep(0)
            assert value == 42
            loops.append(asyncio.get_running_loop())

        @pytest.mark.asyncio
        async def test_has_a_loop_of_its_own():
            assert asyncio.get_running_loop() is not loops[0]
            assert loops[0].is_closed()

        @pytest.mark.asyncio
        @pytest.mark.parametrize("number", [1, 2])
        async def test_parametrised(number, value, tmp_path):
            assert tmp_path.exists()
            assert number < value

        @pytest.mark.asyncio
        class TestClass:
            def setup_method(self):
                self.ready = True

            async def test_method(self, value):
                assert self.ready
                assert value == 42

            @staticmethod
            async def test_static(value):
                assert value == 42

            def test_plain(self):
                assert self.ready

        @pytest.mark.asyncio
        async def test_skips():
            pytest.skip("from inside")

        @pytest.mark.asyncio
        @pytest.mark.xfail(raises=ZeroDivisionError, strict=True)
        async def test_is_expected_to_fail():
            1 / 0

        @pytest.mark.asyncio
        async def test_cancels_what_it_leaves_behind():
            task = asyncio.ensure_future(asyncio.sleep(3600))
            loops.append(task)

        def test_it_was_cancelled():
            assert loops.pop().cancelled()
        """
    )
    run(pytester).assert_outcomes(passed=9, skipped=1, xfailed=1)


def test_failures_of_marked_tests_are_failures(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import asyncio
        import pytest

        @pytest.mark.asyncio
        async def test_assertion():
            await asyncio.sleep(0)
            left = 1
            assert left == 2

        @pytest.mark.asyncio(loop_scope="module")
        async def test_shared_loop():
            pass

        async def test_not_marked():
            pass
        """
    )
    result = run(pytester)
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines_random(
        ["E *assert 1 == 2", "loop_scope needs pytest-asyncio: *", "async def functions are not natively supported."]
    )


def test_stands_aside_where_pytest_asyncio_is(pytester: pytest.Pytester) -> None:
    """A stand-in under its name that runs nothing: so neither does ours."""
    pytester.makeconftest("def pytest_configure(config): config.pluginmanager.register(object(), 'asyncio')")
    pytester.makepyfile(MARKED_TEST)
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["async def functions are not natively supported."])


@pytest.mark.parametrize("options", ["", "@pytest.hookimpl(tryfirst=True)"])
def test_leaves_tests_to_other_plugins(pytester: pytest.Pytester, options: str) -> None:
    pytester.makeconftest(
        f"""
        import pytest

        {options}
        def pytest_pyfunc_call(pyfuncitem):
            pyfuncitem.obj().close()
            print("run by the other plugin")
            return True
        """
    )
    pytester.makepyfile(MARKED_TEST)
    result = run(pytester, "-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*run by the other plugin*"])


@needs_pytest_asyncio
@pytest.mark.parametrize("mode", ["strict", "auto"])
@pytest.mark.parametrize("name", ["asyncio", "pytest_asyncio.plugin"])
def test_beside_pytest_asyncio(pytester: pytest.Pytester, name: str, mode: str) -> None:
    pytester.makepyfile(
        """
        import pytest
        import pytest_asyncio

        @pytest_asyncio.fixture(loop_scope="module")
        async def value():
            return 42

        @pytest.mark.asyncio(loop_scope="module")
        async def test_async_fixture(value):
            assert value == 42
        """
    )
    result = run(pytester, f"--asyncio-mode={mode}", *FIXTURE_LOOP_SCOPE, plugins=(name, "eventbus"))
    result.assert_outcomes(passed=1)


def test_fixtures(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(USES_OF_THE_FIXTURES)
    run(pytester).assert_outcomes(passed=5)


@needs_pytest_asyncio
def test_fixtures_beside_pytest_asyncio(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(USES_OF_THE_FIXTURES)
    run(pytester, *FIXTURE_LOOP_SCOPE, plugins=("asyncio", "eventbus")).assert_outcomes(passed=5)


@pytest.mark.asyncio
async def test_the_example_of_the_seed() -> None:
    """Emitted first, awaited afterwards; run by whichever plugin is there when this suite runs."""
    from eventbus_async import EventSynchronizer, SyncEventBus

    event_bus = SyncEventBus()
    sync = EventSynchronizer(event_bus)
    await event_bus.emit("my/topic", {"message": "test", "value": 42})
    result = await sync.wait_for_event("my/topic")
    assert result == {"message": "test", "value": 42}
    await sync.cleanup()
    await event_bus.close()
