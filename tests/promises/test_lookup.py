"""Section "Looking up and removing" of the contract."""

from __future__ import annotations

import functools
import random
import threading
from typing import Any

import pytest
from kit import BOUND, Gate, Team, soon

from eventbus import EventBus, EventSynchronizer, NotRegisteredError
from eventbus._engine import registry


def one(payload: Any) -> None:
    """A handler."""


def two(payload: Any) -> None:
    """Another."""


class Owner:
    def method(self, payload: Any) -> None:
        """A handler."""


class TestLooking:
    def test_handlers_are_the_callables_as_given_in_order_of_registration(self, bus: EventBus) -> None:
        partial = functools.partial(two)
        owner = Owner()
        bus.on("a/*", partial)
        bus.on("a/b", one)
        bus.on("**", owner.method)
        bus.on("a/b", one)
        bus.on("other", two)
        bus.on("a/b", two, observer=True)
        assert bus.handlers("a/b") == (partial, one, owner.method, one)
        assert bus.handlers("nobody/knows/it") == (owner.method,)

    def test_handlers_follow_registrations(self, bus: EventBus) -> None:
        for _ in range(3):
            subscription = bus.on("a/*", one)
            assert bus.handlers("a/b") == (one,)
            subscription.cancel()
            assert bus.handlers("a/b") == ()

    def test_subscriptions_are_the_handles(self, bus: EventBus) -> None:
        first = bus.on("a/b", one)
        second = bus.on("a/*", two)
        third = bus.on("c", one, observer=True)
        assert bus.subscriptions() == (first, second, third)
        assert bus.subscriptions("a/b") == (first, second)  # those that an emit would reach
        assert bus.subscriptions("a/*") == (second,)  # those that are registered under it
        assert bus.subscriptions("nobody") == ()
        first.cancel()
        assert bus.subscriptions() == (second, third)

    def test_topics_are_what_somebody_is_registered_for(self, bus: EventBus) -> None:
        bus.on(["b", "a/*"], one)
        subscription = bus.on("c/**", one)
        bus.on("b", two)
        bus.emit("unheard")
        assert bus.topics() == ("a/*", "b", "c/**")
        subscription.cancel()
        assert bus.topics() == ("a/*", "b")

    def test_what_a_handle_tells(self, bus: EventBus) -> None:
        subscription = bus.on(["a", "b/*"], one, name="my name")
        assert subscription.name == "my name"
        assert subscription.topics == ("a", "b/*")
        assert subscription.handler is one
        assert subscription.active
        assert subscription.id < bus.on("a", two).id
        assert repr(subscription) == f"<Subscription {subscription.id} my name on a, b/*: active>"
        subscription.cancel(wait=True)
        assert not subscription.active
        assert repr(subscription) == f"<Subscription {subscription.id} my name on a, b/*: ended>"
        assert "one" in repr(bus.on("a", one))
        assert "2 subscriptions" in repr(bus)

    def test_a_handle_tells_what_has_not_begun_and_what_has_not_ended(self, bus: EventBus) -> None:
        def step() -> Any:  # which a registration interrupts
            subscription = bus.on("a", gate, name="my name")
            assert repr(subscription).endswith(" my name on a: not in effect yet>")
            assert not subscription.active
            return subscription

        with Team() as team, Gate() as gate:
            subscription = bus._engine.monitor.run(step)
            assert repr(subscription).endswith(" my name on a: active>")
            bus.emit("a")
            gate.entered()
            team.add(lambda: subscription.cancel(drain=True))
            team.go()
            soon(lambda: not subscription.active)
            assert repr(subscription).endswith(" my name on a: draining>")
        assert repr(subscription).endswith(" my name on a: ended>")


class TestOff:
    def test_by_topic_and_handler(self, bus: EventBus) -> None:
        bus.on("a", one)
        bus.on("a", one)
        other = bus.on("a", two)
        elsewhere = bus.on("b", one)
        assert bus.off("a", one) == 2
        assert bus.subscriptions() == (other, elsewhere)

    def test_by_topic(self, bus: EventBus) -> None:
        bus.on("a", one)
        bus.on("a", two)
        pattern = bus.on("*", one)
        assert bus.off("a") == 2  # the pattern was registered under another name
        assert bus.subscriptions() == (pattern,)
        assert bus.off("*") == 1

    def test_one_of_several_topics_ends_the_whole_subscription(self, bus: EventBus) -> None:
        subscription = bus.on(["a", "b"], one)
        assert bus.off("a", one) == 1
        assert not subscription.active
        assert bus.topics() == ()

    def test_by_handle(self, bus: EventBus) -> None:
        subscription = bus.on("a", one)
        assert bus.off(subscription) == 1
        assert bus.off(subscription) == 0
        assert not subscription.active

    def test_what_synchronizers_have_registered_stays(self, bus: EventBus) -> None:
        with EventSynchronizer(bus) as synchronizer:
            bus.on("a", one)
            assert bus.remove_all_listeners() == 1
            assert bus.remove_all_listeners("**") == 0
            with pytest.raises(NotRegisteredError):
                bus.off("**")
            bus.emit("a", 1)
            assert synchronizer.wait_for_event("a", timeout=0) == 1

    @pytest.mark.parametrize("method", ["off", "remove_listener"])
    def test_it_raises_where_nothing_matches_now(self, bus: EventBus, method: str) -> None:
        off = getattr(bus, method)
        bus.on("a", one)
        for arguments in (("b",), ("a", two), ("*",), ("b", one)):
            with pytest.raises(NotRegisteredError, match=r"no subscription of"):
                off(*arguments)
        assert off("a", one) == 1
        with pytest.raises(NotRegisteredError):
            off("a", one)

    def test_bound_methods_are_found_by_object_and_function(self, bus: EventBus) -> None:
        owner = Owner()
        bus.on("a", owner.method)
        with pytest.raises(NotRegisteredError):
            bus.off("a", Owner().method)
        assert bus.off("a", owner.method) == 1

    def test_methods_of_builtins_are_found_too(self, bus: EventBus) -> None:
        first: list[Any] = []
        second: list[Any] = []
        bus.on("a", first.append)
        with pytest.raises(NotRegisteredError):
            bus.off("a", second.append)
        assert bus.off("a", first.append) == 1

    def test_an_equal_object_is_not_the_same_handler(self, bus: EventBus) -> None:
        """F5: by identity, whatever ``__eq__`` says."""

        class Equal:
            def __eq__(self, other: object) -> bool:
                return True

            def __hash__(self) -> int:
                return 1

            def __call__(self, payload: Any) -> None:
                """A handler."""

        registered = Equal()
        bus.on("a", registered)
        with pytest.raises(NotRegisteredError):
            bus.off("a", Equal())
        assert bus.off("a", registered) == 1

    def test_remove_listener_is_like_off(self, bus: EventBus) -> None:
        subscription = bus.on("a", one)
        bus.on("b", one)
        assert bus.remove_listener(subscription) == 1
        assert bus.remove_listener("b", one) == 1

    def test_remove_all_listeners_never_raises(self, bus: EventBus) -> None:
        assert bus.remove_all_listeners() == 0
        assert bus.remove_all_listeners("a") == 0
        bus.on("a", one)
        bus.on("a", two)
        bus.on("b", one)
        assert bus.remove_all_listeners("a") == 2
        assert bus.remove_all_listeners("a") == 0
        assert bus.remove_all_listeners() == 1
        assert bus.subscriptions() == ()

    def test_it_acts_at_once(self, bus: EventBus) -> None:
        """G2: once it has returned nothing more is claimed."""
        got: list[Any] = []
        for remove in (lambda: bus.off("a"), lambda: bus.remove_listener("a"), bus.remove_all_listeners):
            bus.on("a", got.append)
            remove()
            assert bus.emit("a", 1).deliveries == 0
        assert got == []

    def test_of_two_threads_that_remove_the_same_one_succeeds(self, bus: EventBus) -> None:
        for _ in range(50):
            bus.on("a", one)
            ready = threading.Barrier(2)
            counts: list[int] = []

            def remove() -> None:
                ready.wait(BOUND)
                try:
                    counts.append(bus.off("a"))
                except NotRegisteredError:
                    counts.append(0)

            threads = [threading.Thread(target=remove) for _ in range(2)]
            for each in threads:
                each.start()
            for each in threads:
                each.join(BOUND)
            assert sorted(counts) == [0, 1]

    def test_on_a_closed_bus(self, bus: EventBus) -> None:
        subscription = bus.on("a", one)
        bus.close(BOUND)
        assert bus.off(subscription) == 0
        assert bus.remove_all_listeners() == 0
        assert bus.handlers("a") == bus.subscriptions() == bus.topics() == ()
        with pytest.raises(NotRegisteredError):
            bus.off("a")


class TestVerify:
    def test_it_is_silent_where_all_are_there(self, bus: EventBus) -> None:
        owner = Owner()
        bus.on("a", one)
        bus.on("b/*", two)
        bus.on("b/*", owner.method)
        bus.verify_subscriptions({"a": one, "b/*": [two, owner.method], "b/c": two})
        bus.verify_subscriptions({})

    def test_it_names_all_that_are_missing(self, bus: EventBus) -> None:
        bus.on("a", one)
        with pytest.raises(NotRegisteredError) as caught:
            bus.verify_subscriptions({"a": [one, two], "b": one, "c/*": two})
        text = str(caught.value)
        assert "two on 'a'" in text
        assert "one on 'b'" in text
        assert "two on 'c/*'" in text
        assert "one on 'a'" not in text


def matches(pattern: str, topic: str) -> bool:
    """The contract's rules, said once more: a star is one level, two at the end are any number, none reach "bus/"."""
    wanted, levels = pattern.split("/"), topic.split("/")
    if wanted[0] in ("*", "**") and topic.startswith("bus/"):
        return False
    if wanted[-1] == "**":
        wanted.pop()
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(one in ("*", other) for one, other in zip(wanted, levels, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_g1_g2_random_registrations_reach_what_their_patterns_say(bus: EventBus, seed: int) -> None:
    """Exact topics and patterns that share branches, added and removed at random, against the rules."""
    chance = random.Random(seed)
    topics = ["a", "a/b", "a/b/c", "b", "b/b", "bus", "bus/x", "c/b/c/d"]
    patterns = [*topics, "*", "**", "a/*", "a/**", "*/b", "*/b/**", "a/b/*", "a/b/**", "*/*/c", "bus/*", "bus/**"]
    alive: list[tuple[list[str], Any]] = []
    for _ in range(250):
        if alive and chance.random() < 0.48:
            alive.pop(chance.randrange(len(alive)))[1].cancel()
        else:
            chosen = chance.sample(patterns, chance.choice((1, 1, 2, 3)))
            alive.append((chosen, bus.on(chosen, one)))
        topic = chance.choice(topics)
        expected = tuple(each for names, each in alive if any(matches(name, topic) for name in names))
        assert bus.subscriptions(topic) == expected
        if topic != "bus/x":
            assert bus.emit(topic).deliveries == len(expected)
    bus.drain(BOUND)
    while alive:
        alive.pop()[1].cancel()
    assert bus.topics() == ()
    table = bus._engine.registry
    assert not table._root.children  # G18: a branch that nobody is registered in is cut off
    assert not table._root.here
    assert not table._root.tail
    assert not table._exact


def test_g18_the_routes_that_are_remembered_are_bounded(bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "ROUTES_REMEMBERED", 4)
    subscription = bus.on("t/*", one)
    for number in range(20):
        assert bus.emit(f"t/{number}").deliveries == 1
        assert len(bus._engine.registry.routes) <= 4
    subscription.cancel()
    assert [bus.emit(f"t/{number}").deliveries for number in range(20)] == [0] * 20


@pytest.mark.parametrize("patterns", range(3))
def test_g1_g2_a_route_that_an_emit_has_looked_up_is_told_of_a_change(bus: EventBus, patterns: int) -> None:
    """The emit compares numbers: whatever the registry's is, that of a route that was changed is another."""
    table = bus._engine.registry
    for number in range(patterns):
        bus.on(f"x{number}/*", one)
    for change in (lambda: bus.on("t", one), lambda: bus.off("t"), lambda: bus.on("*", one), lambda: bus.off("*")):
        looked_up = table.route("t")
        assert looked_up.generation == table.generation
        change()
        assert looked_up.generation != table.generation


def test_g11_the_registry_that_a_child_builds_anew_is_the_same(bus: EventBus) -> None:
    found = [bus.on(topics, one) for topics in ("a", ["a", "b/*"], "**", "a")]
    bus._engine.monitor.run(bus._engine.registry.renew)
    assert bus.subscriptions("a") == tuple(found)
    assert bus.subscriptions("b/c") == (found[1], found[2])
    found[1].cancel()
    assert bus.subscriptions("b/c") == (found[2],)


def test_what_a_signal_handler_has_cut_off_is_taken_out_twice_without_harm(bus: EventBus) -> None:
    """G12: or before it is in."""
    first, second = bus.on("a/*", one)._box, bus.on("a/*", one)._box
    exact = registry.Exact(first, 0)
    assert exact.remove(second) is False
    exact.add(second)
    for _ in range(2):
        assert exact.remove(second) is False
    for _ in range(2):
        assert exact.remove(first) is True
    for _ in range(2):
        bus._engine.monitor.run(bus._engine.registry._prune, "a/*", first.id)
    assert bus.emit("a/x").wait(BOUND).deliveries == 1
