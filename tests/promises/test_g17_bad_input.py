"""G17: bad input is one clear error at the call, nothing changed; each is an EventBusError and a fitting built-in."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from decimal import Decimal
from enum import StrEnum
from typing import Any

import pytest
from kit import BOUND, Log, Team
from pydantic import BaseModel, field_validator

import eventbus
from eventbus import (
    BaseService,
    BusClosedError,
    EventBus,
    EventBusError,
    EventCycleError,
    HandlerTypeError,
    NoHandlerError,
    NotRegisteredError,
    OptionError,
    OptionTypeError,
    PayloadError,
    Scope,
    ServiceError,
    Status,
    SubscriptionError,
    Topic,
    TopicError,
    TopicTypeError,
    handles,
)


class Order(BaseModel):
    id: int


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

    def test_a_reserved_topic_is_none_to_be_emitted_where_the_bus_has_emitted_it_before(self, bus: EventBus) -> None:
        heard: list[Any] = []
        bus.on("bus/error", heard.append, inline=True)
        bus.on("a", lambda payload: 1 // 0)
        bus.emit("a").wait(BOUND)
        bus.drain(BOUND)
        assert "bus/error" in bus._engine.registry.routes
        with pytest.raises(TopicError, match="reserved"):
            bus.emit("bus/error", "forged")
        assert len(heard) == 1

    def test_names_that_are_unusual_but_right(self, bus: EventBus) -> None:
        for topic in ("a", "bus", "busy/x", "A b/ü", "a/b/c/d/e/f", "0", " ", "other"):
            with bus.on(topic, lambda payload: payload):
                assert bus.emit(topic, topic).wait(BOUND).results() == [topic]


async def asynchronous_generator(payload: Any) -> Any:
    yield payload


def generator(payload: Any) -> Any:
    yield payload


class Unbound:
    def method(self, payload: Any) -> None:
        """It wants a self."""

    def nothing(self) -> None:
        """Bound, it takes no argument."""

    def __call__(self, one: Any, two: Any) -> None:
        """It takes two."""


UNCALLABLE: dict[str, Any] = {
    "no argument": lambda: None,
    "two arguments": lambda one, two: None,
    "a keyword that has no default": lambda payload, *, other: None,
    "keywords alone": lambda *, payload: None,
    "a method that was not bound": Unbound.method,
    "a bound method without an argument": Unbound().nothing,
    "an object whose call takes two": Unbound(),
    "a partial that leaves none": functools.partial(listen, 1),
    "a class whose constructor takes none": type("Empty", (), {"__init__": lambda self: None}),
    "a generator function": generator,
    "an asynchronous generator function": asynchronous_generator,
}


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

    @pytest.mark.parametrize("handler", UNCALLABLE.values(), ids=UNCALLABLE)
    def test_what_cannot_take_one_argument(self, bus: EventBus, handler: Any) -> None:
        with bus.scope() as scope:
            for call in (
                lambda: bus.on("t", handler), lambda: bus.on("t")(handler), lambda: bus.on(["t", "u/*"], handler),
                lambda: bus.on("t", handler, inline=True), lambda: scope.on("t", handler),
                lambda: bus.on(Topic("t", int), handler),
            ):  # fmt: skip
                unchanged(bus, call, HandlerTypeError, TypeError)

    def test_a_coroutine_handler_on_the_core_names_the_facade(self, bus: EventBus) -> None:
        async def handler(payload: Any) -> None: ...

        assert "AsyncEventBus" in unchanged(bus, lambda: bus.on("t", handler), HandlerTypeError, TypeError)

    @pytest.mark.parametrize("marked", [None, 7, "text", len], ids=repr)
    def test_marks_on_what_is_no_function(self, marked: Any) -> None:
        with pytest.raises(HandlerTypeError, match="handles"):
            handles("t")(marked)

    def test_an_object_with_a_bad_handler_is_not_registered_at_all(self, bus: EventBus) -> None:
        class Half:
            @handles("a")
            def good(self, payload: Any) -> None: ...

            @handles("b")
            def bad(self) -> None: ...

        unchanged(bus, lambda: bus.register(Half()), HandlerTypeError, TypeError)

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
    ({"payload": 5}, OptionTypeError, TypeError),
    ({"payload": "Model"}, OptionTypeError, TypeError),
    ({"payload": {}}, OptionTypeError, TypeError),
]


@pytest.mark.parametrize(("options", "error", "builtin"), SUBSCRIPTION_OPTIONS, ids=lambda value: str(value)[:40])
def test_options_of_a_subscription(
    bus: EventBus, options: dict[str, Any], error: type[Exception], builtin: type[Exception]
) -> None:
    text = unchanged(bus, lambda: bus.on("t", listen, **options), error, builtin)
    assert any(name in text for name in options)
    unchanged(bus, lambda: bus.on("t", **options)(listen), error, builtin)
    with bus.scope() as scope:
        unchanged(bus, lambda: scope.on("t", listen, **options), error, builtin)
    unchanged(bus, lambda: handles("t", **options), error, builtin)  # where the mark is made


STREAM_OPTIONS: list[tuple[dict[str, Any], type[Exception], type[Exception]]] = [
    ({"max_pending": 0}, OptionError, ValueError),
    ({"max_pending": "1"}, OptionTypeError, TypeError),
    ({"overflow": "explode"}, OptionError, ValueError),
    ({"overflow": None}, OptionTypeError, TypeError),
    ({"block_timeout": -1}, OptionError, ValueError),
    ({"block_timeout": math.nan}, OptionError, ValueError),
    ({"block_timeout": 1, "overflow": "latest"}, OptionError, ValueError),
    ({"max_waiting": -1}, OptionError, ValueError),
    ({"name": ""}, OptionError, ValueError),
    ({"name": 5}, OptionTypeError, TypeError),
]


@pytest.mark.parametrize(("options", "error", "builtin"), STREAM_OPTIONS, ids=lambda value: str(value)[:40])
def test_options_of_a_stream(
    bus: EventBus, options: dict[str, Any], error: type[Exception], builtin: type[Exception]
) -> None:
    text = unchanged(bus, lambda: bus.stream("t", **options), error, builtin)
    assert any(name in text for name in options)


def test_without_a_model_of_its_own_the_annotation_counts(bus: EventBus) -> None:
    """``payload=None`` is the default of the option, and not a payload that is to be None."""

    def handler(order: Order) -> int:
        return order.id

    bus.on("t", handler, payload=None)
    assert bus.emit("t", {"id": 7}).wait(BOUND).results() == [7]


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
    ({"exit_timeout": None}, OptionError),
    ({"exit_timeout": math.inf}, OptionError),
    ({"overflow": "error", "block_timeout": 1}, OptionError),
    ({"concurrency": 0}, OptionError),
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


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, -math.inf, -(10**400)])
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


@pytest.mark.parametrize("timeout", ["1", b"1", [1], True, 1j, Decimal("sNaN")], ids=repr)
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


class TestPayloads:
    @pytest.mark.parametrize("model", [5, "Order", {}, [int]], ids=repr)
    def test_a_topic_of_no_type(self, model: Any) -> None:
        with pytest.raises(TopicTypeError, match="orders/new"):
            Topic("orders/new", model)

    @pytest.mark.parametrize(
        "payload", [None, 5, {}, {"id": "many"}, {"id": [1] * 10_000}], ids=lambda each: repr(each)[:20]
    )
    def test_what_does_not_fit_a_typed_topic_is_refused_at_the_emit(self, bus: EventBus, payload: Any) -> None:
        log = Log()
        bus.on("orders/new", log)
        topic = Topic("orders/new", Order)
        for call in (lambda: bus.emit(topic, payload), lambda: bus.request(topic, payload)):
            text = unchanged(bus, call, PayloadError, ValueError)
            assert "orders/new" in text
            assert "Order" in text
            assert len(text) < 1000
        bus.drain(BOUND)
        assert log.items == []

    def test_one_that_refers_to_itself_or_cannot_be_printed(self, bus: EventBus) -> None:
        class Unprintable:
            def __repr__(self) -> str:
                raise ValueError("no repr")

        endless: dict[str, Any] = {}
        endless["id"] = endless
        for payload in (endless, Unprintable()):
            unchanged(bus, lambda payload=payload: bus.emit(Topic("t", Order), payload), PayloadError, ValueError)

    def test_a_validator_of_the_users_that_raises_what_it_likes(self, bus: EventBus) -> None:
        class Picky(BaseModel):
            id: int

            @field_validator("id")
            @classmethod
            def pick(cls, value: int) -> int:
                raise KeyError("of the user's")

        text = unchanged(bus, lambda: bus.emit(Topic("t", Picky), {"id": 1}), PayloadError, ValueError)
        assert "of the user's" in text

        bus.on("t", listen, payload=Picky)
        (outcome,) = bus.emit("t", {"id": 1}).wait(BOUND).outcomes
        assert isinstance(outcome.error, PayloadError)

    def test_what_does_not_fit_a_handler_is_that_deliverys_error_alone(self, bus: EventBus) -> None:
        def handler(order: Order) -> int:
            return order.id

        log = Log()
        bus.on("t", handler)
        bus.on("t", log)
        receipt = bus.emit("t", {"id": "many"}).wait(BOUND)
        assert [each.status for each in receipt.outcomes] == [Status.FAILED, Status.DELIVERED]
        assert isinstance(receipt.outcomes[0].error, PayloadError)
        assert log.items == [{"id": "many"}]
        assert bus.emit("t", {"id": 1}).wait(BOUND).results() == [1, None]


def test_nothing_is_lost_by_bad_calls_in_between(bus: EventBus) -> None:
    """Every kind of bad call between the good ones, in two threads: each good one is delivered, once, in order."""
    log = Log()
    bus.on("t/*", log)
    emit: Any = bus.emit

    def work(number: int) -> int:
        refused = 0
        for n in range(50):
            bus.emit(f"t/{number}", (number, n))
            for call in (
                lambda: emit(""), lambda: emit("t/*"), lambda: emit(None), lambda: emit("t/x", headers=5),
                lambda: emit("t/x", require=99), lambda: emit(Topic("t/x", Order), 5), lambda: bus.on("t/**/x", listen),
                lambda: bus.on("t/x", None), lambda: bus.on("t/x", listen, concurrency=0), lambda: bus.drain(-1),
                lambda: bus.off("nobody"), lambda: bus.close(math.nan),
            ):  # fmt: skip
                try:
                    call()
                except EventBusError:
                    refused += 1
        return refused

    with Team() as team:
        for number in range(2):
            team.add(work, number)
    assert team.results == [600, 600]
    bus.drain(BOUND)
    for number in range(2):
        assert [n for who, n in log.items if who == number] == list(range(50))
    assert bus.stats().events == len(log.items) == 100
    assert bus.topics() == ("t/*",)


def test_what_is_expected_must_be_a_mapping(bus: EventBus) -> None:
    verify: Any = bus.verify_subscriptions
    for wrong in (None, 5, "t", ["t"]):
        unchanged(bus, lambda wrong=wrong: verify(wrong), OptionTypeError, TypeError)
    unchanged(bus, lambda: verify({5: listen}), TopicTypeError, TypeError)


def test_a_depth_that_is_exceeded_emits_nothing() -> None:
    errors: list[EventCycleError] = []

    def again(payload: Any) -> None:
        try:
            bus.emit("t")
        except EventCycleError as error:
            errors.append(error)

    with EventBus(max_depth=3) as bus:
        bus.on("t", again)
        bus.emit("t", follow=True).wait(BOUND)
        assert bus.stats().events == 4
    assert [type(each).__mro__[1] for each in errors] == [EventBusError]
    assert isinstance(errors[0], RuntimeError)


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


def test_a_decorator_without_a_topic(bus: EventBus) -> None:
    def bare(decorator: Any) -> str:
        def nothing(self: Any) -> None: ...

        return unchanged(bus, lambda: decorator(nothing), TopicTypeError, TypeError)

    with bus.scope() as scope:
        texts = [bare(bus.on), bare(scope.on), bare(handles)]
    for text, decorator in zip(texts, ("@bus.on(", "@scope.on(", "@handles("), strict=True):
        assert decorator in text
        assert "nothing" in text


def test_an_object_without_marked_methods(bus: EventBus) -> None:
    class Marked:
        @handles("t")
        def note(self, payload: Any) -> None: ...

    assert "object of it" in unchanged(bus, lambda: bus.register(Marked), HandlerTypeError, TypeError)
    assert "@handles" in unchanged(bus, lambda: bus.register(object()), HandlerTypeError, TypeError)
    with bus.scope() as scope:
        unchanged(bus, lambda: scope.register(Marked), HandlerTypeError, TypeError)
    with bus.register(Marked()):
        assert bus.subscriptions() != ()


def test_on_error_that_nobody_would_await() -> None:
    async def told(error: Any) -> None: ...

    class Told:
        async def __call__(self, error: Any) -> None: ...

        async def method(self, error: Any) -> None: ...

    for hook in (told, Told(), Told().method, functools.partial(told)):
        with pytest.raises(OptionTypeError, match="bus/error"):
            EventBus(on_error=hook)
    EventBus(on_error=lambda error: None)


def test_a_service_that_was_not_initialised() -> None:
    class Forgetful(BaseService):
        def __init__(self, bus: EventBus) -> None:
            self.mine = bus

    with EventBus() as bus:
        service = Forgetful(bus)
        for call in (service.start, service.stop, lambda: service.status):
            with pytest.raises(ServiceError, match=r"Forgetful.__init__ .* super\(\).__init__"):
                call()


def test_messages_tell_the_remedy() -> None:
    """What a newcomer meets first: each names the value, and what to do."""
    bus = EventBus()
    for call, wanted in (
        (lambda: bus.on("orders.*", listen), "'orders/*'"),
        (lambda: bus.on(b"t", listen), "decode"),
        (lambda: bus.emit("t", require=1), "register before"),
        (lambda: bus.stream("a/*").get(0), "stream (a/*)"),
        (lambda: bus.close() and bus.emit("t"), "another bus"),
    ):
        with pytest.raises(EventBusError) as caught:
            call()
        assert wanted in str(caught.value)


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


def test_signatures_show_what_is_left_out_when_nothing_is_given() -> None:
    assert "handler: 'Any' = <default>" in str(inspect.signature(EventBus.on))
    assert "handler: 'Any' = <unset>" in str(inspect.signature(Scope.on))


def test_options_of_another_overflow_that_the_bus_sets_are_left_out(bus: EventBus) -> None:
    """Defaults are for those subscriptions that they can be for; given at the subscription they are refused."""
    with EventBus(block_timeout=1.0, max_waiting=3) as other:
        assert other.name != bus.name
        subscription = other.on("t", listen, overflow="drop_oldest", max_pending=1)
        assert other.emit("t", 1).wait(BOUND).deliveries == 1
        assert subscription.active
        with pytest.raises(OptionError, match="block_timeout"):
            other.on("t", listen, overflow="drop_oldest", block_timeout=2.0)


def test_a_string_of_ones_own_kind_is_a_topic(bus: EventBus) -> None:
    class Names(StrEnum):
        PAID = "orders/paid"

    log = Log()
    bus.on(Names.PAID, log)
    bus.emit(Names.PAID, 1).wait(BOUND)
    bus.emit("orders/paid", 2).wait(BOUND)
    assert log.items == [1, 2]
