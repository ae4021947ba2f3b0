"""G17: bad input is one clear error at the call, nothing changed; each is an EventBusError and a fitting built-in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from kit import BOUND

import eventbus
from eventbus import (
    BusClosedError,
    EventBus,
    EventBusError,
    HandlerTypeError,
    NoHandlerError,
    NotRegisteredError,
    OptionError,
    OptionTypeError,
    SubscriptionError,
    Topic,
    TopicError,
    TopicTypeError,
    handles,
)


def listen(payload: Any) -> None:
    """A handler."""


def unchanged(bus: EventBus, call: Callable[[], Any], error: type[Exception], builtin: type[Exception]) -> str:
    """The call raises that error and changes nothing; gives its text."""
    before = bus.subscriptions(), bus.topics(), bus.stats().events, bus.closed
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, EventBusError)
    assert isinstance(caught.value, builtin)
    assert (bus.subscriptions(), bus.topics(), bus.stats().events, bus.closed) == before
    text = str(caught.value)
    assert len(text) > 15
    assert "\n" not in text
    return text


EMPTY = ["", "/a", "a/", "a//b", "/", "//"]
PATTERNS = ["*", "a/*", "a/**", "**"]
BAD_PATTERNS = ["**/a", "a/**/b", "a*", "a/b*", "a/***", "*a/b", "**a"]
NO_TOPICS = [None, 7, 1.5, b"a", object(), ["a"], ("a",), {"a": 1}]


class TestTopics:
    @pytest.mark.parametrize("topic", EMPTY)
    def test_empty_names_and_levels(self, bus: EventBus, topic: str) -> None:
        for call in (
            lambda: bus.emit(topic), lambda: bus.on(topic, listen), lambda: bus.stream(topic), lambda: bus.off(topic),
            lambda: bus.handlers(topic), lambda: bus.request(topic, 1, 0), lambda: bus.subscriptions(topic),
            lambda: bus.remove_listener(topic, listen), lambda: bus.on([topic, "a"], listen), lambda: Topic(topic, int),
            lambda: handles(topic), lambda: bus.verify_subscriptions({topic: listen}),
            lambda: bus.remove_all_listeners(topic),
        ):  # fmt: skip
            text = unchanged(bus, call, TopicError, ValueError)
            assert repr(topic) in text or "empty" in text

    @pytest.mark.parametrize("topic", PATTERNS)
    def test_a_pattern_where_a_topic_is_needed(self, bus: EventBus, topic: str) -> None:
        for call in (
            lambda: bus.emit(topic), lambda: bus.request(topic, 1, 0), lambda: bus.handlers(topic),
            lambda: Topic(topic, int),
        ):  # fmt: skip
            assert repr(topic) in unchanged(bus, call, TopicError, ValueError)

    @pytest.mark.parametrize("pattern", BAD_PATTERNS)
    def test_malformed_patterns(self, bus: EventBus, pattern: str) -> None:
        for call in (lambda: bus.on(pattern, listen), lambda: bus.stream(pattern), lambda: bus.off(pattern)):
            assert repr(pattern) in unchanged(bus, call, TopicError, ValueError)

    @pytest.mark.parametrize("topic", NO_TOPICS, ids=repr)
    def test_what_is_no_string(self, bus: EventBus, topic: Any) -> None:
        for call in (lambda: bus.emit(topic), lambda: bus.handlers(topic), lambda: bus.request(topic)):
            unchanged(bus, call, TopicTypeError, TypeError)

    @pytest.mark.parametrize("topics", [None, 7, b"a", [7], ["a", None], [["a"]]], ids=repr)
    def test_lists_of_topics_that_are_none(self, bus: EventBus, topics: Any) -> None:
        unchanged(bus, lambda: bus.on(topics, listen), TopicTypeError, TypeError)

    def test_an_empty_list_of_topics(self, bus: EventBus) -> None:
        unchanged(bus, lambda: bus.on([], listen), TopicError, ValueError)

    @pytest.mark.parametrize("topic", ["bus/error", "bus/mine", "bus/a/b"])
    def test_reserved_topics_are_not_to_be_emitted(self, bus: EventBus, topic: str) -> None:
        assert topic in unchanged(bus, lambda: bus.emit(topic), TopicError, ValueError)
        bus.on(topic, listen)  # but may be listened to
        unchanged(bus, lambda: bus.emit(topic), TopicError, ValueError)

    def test_names_that_are_unusual_but_right(self, bus: EventBus) -> None:
        for topic in ("a", "bus", "busy/x", "A b/ü", "a/b/c/d/e/f", "0", " ", "other"):
            with bus.on(topic, lambda payload: payload):
                assert bus.emit(topic, topic).wait(BOUND).results() == [topic]


class TestHandlers:
    @pytest.mark.parametrize("handler", [None, 7, "text", object(), [listen]], ids=repr)
    def test_what_is_not_callable(self, bus: EventBus, handler: Any) -> None:
        for call in (lambda: bus.on("t", handler), lambda: bus.sync_on("t", handler)):
            assert "callable" in unchanged(bus, call, HandlerTypeError, TypeError)

    @pytest.mark.parametrize("handler", [None, 7, "text"], ids=repr)
    def test_what_is_not_callable_in_a_scope(self, bus: EventBus, handler: Any) -> None:
        """``None`` is no handler there either, and makes no decorator."""
        with bus.scope() as scope:
            unchanged(bus, lambda: scope.on("t", handler), HandlerTypeError, TypeError)

    def test_a_decorator_checks_as_well(self, bus: EventBus) -> None:
        unchanged(bus, lambda: bus.on("t")(7), HandlerTypeError, TypeError)  # type: ignore[type-var]

    def test_a_decorator_gives_the_function_itself_back(self, bus: EventBus) -> None:
        assert bus.on("t")(listen) is listen
        assert bus.handlers("t") == (listen,)

    def test_a_second_one_under_unique(self, bus: EventBus) -> None:
        bus.on(["a", "t"], listen)
        text = unchanged(bus, lambda: bus.on("t", listen, unique=True), SubscriptionError, ValueError)
        assert "listen" in text


SUBSCRIPTION_OPTIONS: list[tuple[dict[str, Any], type[Exception], type[Exception]]] = [
    ({"concurrency": 0}, OptionError, ValueError),
    ({"concurrency": -1}, OptionError, ValueError),
    ({"concurrency": 1.5}, OptionTypeError, TypeError),
    ({"concurrency": True}, OptionTypeError, TypeError),
    ({"concurrency": None}, OptionTypeError, TypeError),
    ({"max_pending": 0}, OptionError, ValueError),
    ({"max_pending": "many"}, OptionTypeError, TypeError),
    ({"overflow": "explode"}, OptionError, ValueError),
    ({"overflow": 5}, OptionTypeError, TypeError),
    ({"timeout": 0}, OptionError, ValueError),
    ({"timeout": -1}, OptionError, ValueError),
    ({"timeout": math.nan}, OptionError, ValueError),
    ({"timeout": "1"}, OptionTypeError, TypeError),
    ({"timeout": True}, OptionTypeError, TypeError),
    ({"block_timeout": -0.1}, OptionError, ValueError),
    ({"block_timeout": math.nan}, OptionError, ValueError),
    ({"block_timeout": 1, "overflow": "error"}, OptionError, ValueError),
    ({"max_waiting": -1}, OptionError, ValueError),
    ({"max_waiting": 1, "overflow": "latest"}, OptionError, ValueError),
    ({"key": 5}, OptionTypeError, TypeError),
    ({"lane": ""}, OptionError, ValueError),
    ({"lane": 5}, OptionTypeError, TypeError),
    ({"name": ""}, OptionError, ValueError),
    ({"name": 5}, OptionTypeError, TypeError),
    ({"inline": "yes"}, OptionTypeError, TypeError),
    ({"unique": 1}, OptionTypeError, TypeError),
    ({"observer": None}, OptionTypeError, TypeError),
    ({"inline": True, "concurrency": 2}, OptionError, ValueError),
    ({"inline": True, "key": lambda event: 1}, OptionError, ValueError),
    ({"inline": True, "lane": "db"}, OptionError, ValueError),
    ({"inline": True, "timeout": 1}, OptionError, ValueError),
    ({"inline": True, "overflow": "latest"}, OptionError, ValueError),
    ({"concurency": 2}, OptionTypeError, TypeError),
    ({"nonsense": 2}, OptionTypeError, TypeError),
]


@pytest.mark.parametrize(("options", "error", "builtin"), SUBSCRIPTION_OPTIONS, ids=lambda value: str(value)[:40])
def test_options_of_a_subscription(
    bus: EventBus, options: dict[str, Any], error: type[Exception], builtin: type[Exception]
) -> None:
    text = unchanged(bus, lambda: bus.on("t", listen, **options), error, builtin)
    assert any(name in text for name in options)
    unchanged(bus, lambda: bus.on("t", **options)(listen), error, builtin)


def test_a_misspelt_option_gets_a_hint(bus: EventBus) -> None:
    assert "concurrency" in unchanged(bus, lambda: bus.on("t", listen, concurency=2), OptionTypeError, TypeError)  # type: ignore[call-overload]


BUS_OPTIONS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"workers": 0}, OptionError),
    ({"workers": -3}, OptionError),
    ({"workers": 2.0}, OptionTypeError),
    ({"max_workers": 0}, OptionError),
    ({"max_workers": None}, OptionTypeError),
    ({"workers": 5, "max_workers": 4}, OptionError),
    ({"handler_timeout": 0}, OptionError),
    ({"handler_timeout": math.nan}, OptionError),
    ({"close_timeout": -1}, OptionError),
    ({"exit_timeout": -1}, OptionError),
    ({"exit_timeout": "5"}, OptionTypeError),
    ({"propagate_errors": 1}, OptionTypeError),
    ({"on_error": "log"}, OptionTypeError),
    ({"max_depth": -1}, OptionError),
    ({"max_depth": 1.5}, OptionTypeError),
    ({"max_pending": 0}, OptionError),
    ({"overflow": "nonsense"}, OptionError),
    ({"lane": "db"}, OptionTypeError),
    ({"worker": 1}, OptionTypeError),
    ({"name": 5}, OptionTypeError),
]


@pytest.mark.parametrize(("options", "error"), BUS_OPTIONS, ids=lambda value: str(value)[:40])
def test_options_of_a_bus(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        EventBus(**options)
    assert isinstance(caught.value, EventBusError)
    assert isinstance(caught.value, TypeError if error is OptionTypeError else ValueError)


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, -math.inf])
def test_time_outs_that_cannot_be(bus: EventBus, timeout: float) -> None:
    receipt = bus.emit("t")
    subscription = bus.on("t", listen)
    stream = bus.stream("s")
    scope = bus.scope()
    for call in (
        lambda: receipt.wait(timeout), lambda: bus.drain(timeout), lambda: bus.close(timeout),
        lambda: bus.request("t", 1, timeout), lambda: subscription.cancel(True, timeout), lambda: stream.get(timeout),
        lambda: scope.cancel(True, timeout), lambda: stream.cancel(True, timeout),
    ):  # fmt: skip
        unchanged(bus, call, OptionError, ValueError)
    assert subscription.active
    assert stream.active
    assert scope.active


@pytest.mark.parametrize("timeout", ["1", b"1", [1], True, 1j], ids=repr)
def test_time_outs_that_are_no_numbers(bus: EventBus, timeout: Any) -> None:
    receipt = bus.emit("t")
    for call in (
        lambda: receipt.wait(timeout), lambda: bus.drain(timeout), lambda: bus.close(timeout),
        lambda: bus.request("t", 1, timeout),
    ):  # fmt: skip
        unchanged(bus, call, OptionTypeError, TypeError)


def test_time_outs_that_are_fine(bus: EventBus) -> None:
    from fractions import Fraction

    for timeout in (None, 0, 0.0, 5, 1e300, math.inf, Fraction(1, 2), 10**400):
        bus.emit("t").wait(timeout)  # type: ignore[arg-type]
        bus.drain(timeout)  # type: ignore[arg-type]


def test_the_rarer_arguments_of_an_emit(bus: EventBus) -> None:
    bus.on("t", listen)
    emit: Any = bus.emit
    unchanged(bus, lambda: emit("t", headers=5), OptionTypeError, TypeError)
    unchanged(bus, lambda: emit("t", headers={5: 1}), OptionTypeError, TypeError)
    unchanged(bus, lambda: emit("t", require=-1), OptionError, ValueError)
    unchanged(bus, lambda: emit("t", require="1"), OptionTypeError, TypeError)
    unchanged(bus, lambda: emit("t", follow="yes"), OptionTypeError, TypeError)
    unchanged(bus, lambda: emit("t", follow=0), OptionTypeError, TypeError)
    unchanged(bus, lambda: emit("t", propagate_errors="yes"), OptionTypeError, TypeError)


def test_lookups_that_find_nothing(bus: EventBus) -> None:
    unchanged(bus, lambda: bus.off("t"), NotRegisteredError, LookupError)
    unchanged(bus, lambda: bus.off("t", listen), NotRegisteredError, LookupError)
    unchanged(bus, lambda: bus.verify_subscriptions({"t": listen}), NotRegisteredError, LookupError)
    unchanged(bus, lambda: bus.emit("t", require=1), NoHandlerError, LookupError)
    unchanged(bus, lambda: bus.request("t", 1, BOUND), NoHandlerError, LookupError)


def test_a_closed_bus(bus: EventBus) -> None:
    bus.close(BOUND)
    for call in (
        lambda: bus.emit("t"), lambda: bus.on("t", listen), lambda: bus.stream("t"), lambda: bus.request("t"),
        lambda: bus.register(type("Marked", (), {"method": handles("t")(lambda self, payload: None)})()),
    ):  # fmt: skip
        unchanged(bus, call, BusClosedError, RuntimeError)


def test_an_ended_scope(bus: EventBus) -> None:
    with bus.scope() as scope:
        pass
    for call in (
        lambda: scope.on("t", listen), lambda: scope.stream("t"), lambda: scope.register(object()), scope.scope,
    ):  # fmt: skip
        unchanged(bus, call, BusClosedError, RuntimeError)


BUILTINS = (TypeError, ValueError, TimeoutError, LookupError, RuntimeError)


def test_every_public_error_has_one_root_and_one_fitting_builtin() -> None:
    errors = [
        each
        for name in dir(eventbus)
        if isinstance(each := getattr(eventbus, name), type)
        and issubclass(each, BaseException)
        and each is not EventBusError
    ]
    assert len(errors) >= 15
    for each in errors:
        assert issubclass(each, EventBusError)
        assert sum(issubclass(each, builtin) for builtin in BUILTINS) == 1, each
        wanted: type[Exception]
        if "Type" in each.__name__:
            wanted = TypeError
        elif "Timeout" in each.__name__:
            wanted = TimeoutError
        elif each in (NotRegisteredError, NoHandlerError):
            wanted = LookupError
        else:
            wanted = next(builtin for builtin in BUILTINS if issubclass(each, builtin))
            assert wanted in (ValueError, RuntimeError)
        assert issubclass(each, wanted)
