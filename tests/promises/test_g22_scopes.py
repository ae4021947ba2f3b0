"""G22: scopes, several topics in one subscription, ``unique``, ``@handles`` and ``register``."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from kit import BOUND, Gate, Team, soon

from eventbus import (
    BusClosedError,
    EventBus,
    EventTimeoutError,
    HandlerTypeError,
    SubscriptionError,
    TopicError,
    handles,
)
from eventbus._engine.engine import Engine


def listen(payload: Any) -> None:
    """A handler."""


class TestScope:
    def test_its_end_waits_for_the_calls_of_a_subscription_that_is_half_made(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is in effect already, though on() has not returned."""
        register = Engine.register
        with Gate() as gate, Team() as team:
            scope = bus.scope()

            def half_made(self: Engine, *args: Any, **options: Any) -> Any:
                made = register(self, *args, **options)
                bus.emit("t")
                gate.entered()
                team.add(lambda: scope.cancel(wait=True) and gate.inside == 0)
                team.go()
                soon(lambda: scope._over, "the end of the scope")
                return made

            monkeypatch.setattr(Engine, "register", half_made)
            with pytest.raises(BusClosedError, match="has ended"):
                scope.on("t", gate)
            soon(lambda: team.results[0] is not None or bus._engine.sleepers, "it waits")
            gate.open()
        assert team.results == [True]
        assert bus.handlers("t") == ()

    def test_g18_what_is_refused_is_no_member(self, bus: EventBus) -> None:
        scope = bus.scope()
        scope.on("t", listen)
        for _ in range(3):
            with pytest.raises(SubscriptionError):
                scope.on("t", listen, unique=True)
        assert len(scope._members) == 1
        scope.cancel()

    def test_nothing_of_an_object_outlives_it(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        """It ends while the second of two methods is being registered."""
        scope = bus.scope()
        register = Engine.register
        done: list[Any] = []

        def overtaken(self: Engine, *args: Any, **options: Any) -> Any:
            done.append(register(self, *args, **options))
            if len(done) == 1:
                scope.cancel()
            return done[-1]

        monkeypatch.setattr(Engine, "register", overtaken)
        with pytest.raises(BusClosedError, match="has ended"):
            scope.register(Shop())
        assert len(done) == 1
        assert bus.subscriptions() == ()

    def test_everything_that_was_begun_through_it_ends_with_it(self, bus: EventBus) -> None:
        outside = bus.on("t", listen)
        with bus.scope() as scope:
            subscription = scope.on("t", lambda payload: None)
            decorated = scope.on("t")(lambda payload: None)
            stream = scope.stream("t")
            registered = scope.register(Shop())
            inner = scope.scope()
            deepest = inner.on("t", lambda payload: None)
            assert callable(decorated)
            assert bus.emit("t").deliveries == 5
            assert len(bus.subscriptions()) == 5 + 2
        for each in (subscription, stream, registered, inner, deepest, scope):
            assert not each.active
        assert bus.subscriptions() == (outside,)

    def test_leaving_it_waits_for_calls_that_run(self, bus: EventBus) -> None:
        """It is ``cancel(wait=True)`` (G2)."""
        begun, gate, ended = threading.Event(), threading.Event(), []

        def slow(payload: Any) -> None:
            begun.set()
            assert gate.wait(BOUND)
            ended.append(payload)

        with bus.scope() as scope:
            scope.on("t", slow)
            bus.emit("t", 1)
            bus.emit("t", 2)
            assert begun.wait(BOUND)
            threading.Timer(0.02, gate.set).start()
        assert ended == [1]

    def test_cancel_does_not_wait_unless_it_is_asked_to(self, bus: EventBus) -> None:
        begun, gate = threading.Event(), threading.Event()

        def slow(payload: Any) -> None:
            begun.set()
            assert gate.wait(BOUND)

        scope = bus.scope()
        scope.on("t", slow)
        bus.emit("t")
        assert begun.wait(BOUND)
        assert scope.cancel() is True
        assert scope.cancel() is False  # it may be repeated
        assert bus.subscriptions() == ()
        second = bus.scope()
        second.on("u", slow)
        begun.clear()
        bus.emit("u")
        assert begun.wait(BOUND)
        with pytest.raises(EventTimeoutError):
            second.cancel(wait=True, timeout=0)
        assert bus.subscriptions() == ()
        gate.set()

    def test_it_ends_on_errors_as_well(self, bus: EventBus) -> None:
        with pytest.raises(ZeroDivisionError):
            with bus.scope() as scope:
                scope.on("t", listen)
                1 / 0
        assert bus.subscriptions() == ()

    def test_inside_its_own_handler_it_does_not_wait_for_itself(self, bus: EventBus) -> None:
        scope = bus.scope()
        scope.on("t", lambda payload: scope.cancel(wait=True, timeout=BOUND))
        assert bus.emit("t").wait(BOUND).results() == [True]

    def test_what_was_cancelled_by_hand_is_forgotten(self, bus: EventBus) -> None:
        scope = bus.scope()
        for _ in range(1000):
            scope.on("t", listen).cancel()
        assert len(scope._members) < 200
        scope.cancel()

    @pytest.mark.parametrize("repetition", range(20))
    def test_registrations_of_other_threads_end_with_it_even_half_made(self, bus: EventBus, repetition: int) -> None:
        """Whoever comes too late is refused; nothing is left over."""
        scope = bus.scope()
        ready = threading.Barrier(4)
        registered: list[Any] = []

        def register() -> None:
            ready.wait(BOUND)
            try:
                for _ in range(50):
                    registered.append(scope.on("t", listen))
                    registered.append(scope.stream("t"))
            except BusClosedError:
                pass

        threads = [threading.Thread(target=register) for _ in range(3)]
        for each in threads:
            each.start()
        ready.wait(BOUND)
        if repetition % 2:
            soon(lambda: registered)
        scope.cancel()
        for each in threads:
            each.join(BOUND)
        assert bus.subscriptions() == ()
        assert not any(each.active for each in registered)

    def test_a_closed_bus_ends_scopes_quietly(self) -> None:
        bus = EventBus()
        with bus.scope() as scope:
            subscription = scope.on("t", listen)
            bus.close(BOUND)
            assert not subscription.active


class TestSeveralTopics:
    def test_a_list_is_one_subscription(self, bus: EventBus) -> None:
        got: list[Any] = []
        subscription = bus.on(["a", "b/*", "b/c"], got.append)
        assert subscription.topics == ("a", "b/*", "b/c")
        assert bus.subscriptions() == (subscription,)
        for topic in ("a", "b/c", "b/d", "b", "c"):
            bus.emit(topic, topic)
        bus.drain(BOUND)
        assert got == ["a", "b/c", "b/d"]
        assert subscription.cancel()
        assert bus.topics() == ()

    def test_any_iterable_will_do_and_doubles_count_once(self, bus: EventBus) -> None:
        assert bus.on((each for each in ("a", "b", "a")), listen).topics == ("a", "b")
        assert bus.on(("x",), listen).topics == ("x",)

    def test_a_generator_is_read_once_and_typed_topics_in_it_are_checked(self, bus: EventBus) -> None:
        """What an iterator gives must not be lost between two readings."""
        from eventbus import Topic

        class Order:
            pass

        def wants_int(payload: int) -> None:
            """Does not fit."""

        with pytest.raises(HandlerTypeError):
            bus.on((each for each in [Topic("t", Order)]), wants_int)

    def test_one_emitters_order_holds_across_its_topics(self, bus: EventBus) -> None:
        got: list[Any] = []
        bus.on(["a", "b"], got.append)
        for n in range(100):
            bus.emit("ab"[n % 2], n)
        bus.drain(BOUND)
        assert got == list(range(100))


class TestUnique:
    def test_it_refuses_the_same_handler_on_the_same_topic(self, bus: EventBus) -> None:
        shop = Shop()
        first = bus.on("t", shop.note, unique=True)
        with pytest.raises(SubscriptionError):
            bus.on("t", shop.note, unique=True)
        with pytest.raises(SubscriptionError):
            bus.on(["x", "t"], shop.note, unique=True)
        bus.on("t", Shop().note, unique=True)  # another object's
        bus.on("t/*", shop.note, unique=True)  # another topic
        bus.on("t", shop.note)  # only who asks is refused
        assert len(bus.subscriptions()) == 4
        first.cancel()

    def test_after_a_cancel_there_is_room_again(self, bus: EventBus) -> None:
        bus.on("t", listen, unique=True).cancel()
        assert bus.on("t", listen, unique=True).active

    def test_of_many_threads_one_wins(self, bus: EventBus) -> None:
        ready = threading.Barrier(8)
        won: list[Any] = []

        def register() -> None:
            ready.wait(BOUND)
            try:
                won.append(bus.on("t", listen, unique=True))
            except SubscriptionError:
                pass

        threads = [threading.Thread(target=register) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(BOUND)
        assert len(won) == 1
        assert bus.subscriptions() == tuple(won)


class Shop:
    """Two marked methods, one that is not."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    @handles("orders/created", "orders/paid")
    def note(self, payload: Any) -> Any:
        self.got.append(payload)
        return payload

    @handles("orders/**", name="audit", max_pending=5)
    def audit(self, payload: Any) -> str:
        return "audit"

    def unmarked(self, payload: Any) -> None:
        raise AssertionError("never subscribed")

    @property
    def trap(self) -> Any:
        raise AssertionError("properties do not run")


class TestHandles:
    def test_registering_subscribes_the_marked_methods(self, bus: EventBus) -> None:
        shop = Shop()
        with bus.register(shop) as scope:
            assert [each.topics for each in bus.subscriptions()] == [("orders/created", "orders/paid"), ("orders/**",)]
            assert bus.subscriptions()[1].name == "audit"
            receipt = bus.emit("orders/paid", 7).wait(BOUND)
            assert receipt.results() == [7, "audit"]
            assert shop.got == [7]
            assert scope.active
        assert bus.subscriptions() == ()
        assert bus.emit("orders/paid", 8).deliveries == 0

    def test_two_objects_of_a_class_are_two(self, bus: EventBus) -> None:
        one, two = Shop(), Shop()
        bus.register(one)
        scope = bus.register(two)
        bus.emit("orders/paid", 1).wait(BOUND)
        scope.cancel()
        bus.emit("orders/paid", 2).wait(BOUND)
        assert (one.got, two.got) == ([1, 2], [1])

    def test_overriding_is_honoured(self, bus: EventBus) -> None:
        class Overrides(Shop):
            def note(self, payload: Any) -> Any:  # keeps its marks
                return "overridden"

            @handles("other")
            def audit(self, payload: Any) -> str:  # has its own
                return "other"

        class Removes(Shop):
            note = None  # type: ignore[assignment]
            audit = None  # type: ignore[assignment]

        with bus.register(Overrides()):
            assert bus.emit("orders/paid").wait(BOUND).results() == ["overridden"]
            assert bus.emit("other").wait(BOUND).results() == ["other"]
        with bus.register(Removes()):
            assert bus.subscriptions() == ()

    def test_stacked_marks_are_one_subscription_each(self, bus: EventBus) -> None:
        class Stacked:
            @handles("a", name="first")
            @handles("b", name="second")
            def method(self, payload: Any) -> None:
                """Twice."""

        with bus.register(Stacked()):
            assert {each.topics: each.name for each in bus.subscriptions()} == {("a",): "first", ("b",): "second"}

    def test_class_and_static_methods(self, bus: EventBus) -> None:
        class Mixed:
            @classmethod
            @handles("a")
            def of_class(cls, payload: Any) -> Any:
                return cls.__name__

            @handles("b")
            @staticmethod
            def static(payload: Any) -> Any:
                return payload

        with bus.register(Mixed()):
            assert bus.emit("a").wait(BOUND).results() == ["Mixed"]
            assert bus.emit("b", 1).wait(BOUND).results() == [1]

    def test_a_method_that_cannot_be_subscribed_leaves_nothing_behind(self, bus: EventBus) -> None:
        class Broken:
            @handles("a")
            def fine(self, payload: Any) -> None:
                """Registered first, then undone."""

            @handles("b")
            def broken(self, one: Any, two: Any) -> None:
                """Takes two."""

        with pytest.raises(HandlerTypeError):
            bus.register(Broken())
        assert bus.subscriptions() == ()

    def test_marks_are_checked_where_they_are_made(self) -> None:
        with pytest.raises(TopicError):
            handles("a//b")
        with pytest.raises(TopicError):
            handles()

    def test_the_marked_function_is_still_a_plain_one(self) -> None:
        assert Shop().note(5) == 5
