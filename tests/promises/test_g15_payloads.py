"""G15: what a handler gets goes by what it declares for its payload."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Annotated, Any, Literal, Optional, Union

import pytest
from kit import BOUND
from pydantic import BaseModel, ConfigDict, PrivateAttr, computed_field, field_validator

from eventbus import Event, EventBus, HandlerError, HandlerTypeError, PayloadError, Status


class Inner(BaseModel):
    tags: list[str] = []


class Order(BaseModel):
    id: int
    inner: Inner = Inner()


class Refund(BaseModel):
    amount: float


def given(bus: EventBus, handler: Callable[..., Any], emitted: Any, **options: Any) -> Any:
    """What the handler gets when that is emitted."""
    with bus.on("t", handler, **options):
        (outcome,) = bus.emit("t", emitted).wait(BOUND).outcomes
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


# Handlers that give back what they get, each with another declaration.


def as_model(payload: Order) -> Any:
    return payload


def as_optional(payload: Optional[Order]) -> Any:  # noqa: UP045 - both spellings are meant
    return payload


def as_new_optional(payload: Order | None) -> Any:
    return payload


def as_union(payload: Union[Order, Refund]) -> Any:  # noqa: UP007
    return payload


def as_event(payload: Event) -> Any:
    return payload


def as_dict(payload: dict) -> Any:  # type: ignore[type-arg]
    return payload


def as_typed_dict(payload: dict[str, Any]) -> Any:
    return payload


def as_mapping(payload: Mapping[str, Any]) -> Any:
    return payload


def as_mutable_mapping(payload: MutableMapping[str, int]) -> Any:
    return payload


def as_any(payload: Any) -> Any:
    return payload


def as_object(payload: object) -> Any:
    return payload


def as_undeclared(payload):  # type: ignore[no-untyped-def]
    return payload


def as_int(payload: int) -> Any:
    return payload


def as_list(payload: list[int]) -> Any:
    return payload


PLAIN = [as_dict, as_typed_dict, as_mapping, as_mutable_mapping, as_any, as_object, as_undeclared]
MODELS = [as_model, as_optional, as_new_optional, as_union]


@pytest.mark.parametrize("handler", PLAIN)
class TestPlain:
    def test_a_model_comes_as_a_dict(self, bus: EventBus, handler: Any) -> None:
        assert given(bus, handler, Order(id=1)) == {"id": 1, "inner": {"tags": []}}

    @pytest.mark.parametrize("payload", [None])
    def test_no_payload_comes_as_an_empty_dict(self, bus: EventBus, handler: Any, payload: Any) -> None:
        assert given(bus, handler, payload) == {}
        with bus.on("t", handler):
            assert bus.emit("t").wait(BOUND).results() == [{}]

    def test_anything_else_comes_as_it_is(self, bus: EventBus, handler: Any) -> None:
        for payload in ({"a": 1}, [1], "text", 7, object(), (), 0, False):
            assert given(bus, handler, payload) is payload

    def test_a_dict_made_from_a_model_belongs_to_that_handler_alone_deeply(self, bus: EventBus, handler: Any) -> None:
        order = Order(id=1, inner=Inner(tags=["a"]))
        first, second = given(bus, handler, order), given(bus, handler, order)
        first["inner"]["tags"].append("b")
        first["id"] = 2
        assert second == {"id": 1, "inner": {"tags": ["a"]}}
        assert order.inner.tags == ["a"]


@pytest.mark.parametrize("handler", MODELS)
class TestModels:
    def test_the_very_instance_if_it_is_one_already(self, bus: EventBus, handler: Any) -> None:
        order = Order(id=1)
        assert given(bus, handler, order) is order

    def test_a_dict_is_validated(self, bus: EventBus, handler: Any) -> None:
        assert given(bus, handler, {"id": "7"}) == Order(id=7)

    def test_a_wrong_payload_is_that_deliverys_clear_error(self, bus: EventBus, handler: Any) -> None:
        with pytest.raises(PayloadError, match="nonsense") as caught:
            given(bus, handler, {"nonsense": 1})
        assert handler.__name__ in str(caught.value)
        assert caught.value.__cause__ is not None


def test_a_subclass_of_the_model_is_the_very_instance(bus: EventBus) -> None:
    class Special(Order):
        pass

    special = Special(id=1)
    assert given(bus, as_model, special) is special


def test_another_model_is_converted_by_its_fields(bus: EventBus) -> None:
    class Wire(BaseModel):
        id: int
        extra: str = "ignored"

    assert given(bus, as_model, Wire(id=3)) == Order(id=3)


def test_an_optional_model_takes_no_payload_as_none_and_a_plain_one_refuses_it(bus: EventBus) -> None:
    assert given(bus, as_optional, None) is None
    with pytest.raises(PayloadError):
        given(bus, as_model, None)


def test_a_union_takes_each_of_its_members(bus: EventBus) -> None:
    refund = Refund(amount=1)
    assert given(bus, as_union, refund) is refund
    assert given(bus, as_union, {"amount": 2}) == Refund(amount=2)
    assert given(bus, as_union, {"id": 2}) == Order(id=2)


def test_an_event_handler_gets_the_event_with_the_payload_as_emitted(bus: EventBus) -> None:
    order = Order(id=1)
    event = given(bus, as_event, order)
    assert isinstance(event, Event)
    assert event.payload is order
    assert event.topic == "t"


@pytest.mark.parametrize("handler", [as_int, as_list])
def test_any_other_annotation_gets_the_payload_as_it_is(bus: EventBus, handler: Any) -> None:
    for payload in (None, "text", {"a": 1}):
        assert given(bus, handler, payload) is payload
    order = Order(id=1)
    assert given(bus, handler, order) is order


def test_the_option_overrides_the_declaration(bus: EventBus) -> None:
    assert given(bus, as_any, {"id": 1}, payload=Order) == Order(id=1)
    assert isinstance(given(bus, as_model, 1, payload=Event), Event)
    assert given(bus, as_model, 5, payload=int) == 5


def test_unconverted_payloads_are_shared(bus: EventBus) -> None:
    payload = {"list": [1]}
    got: list[Any] = []
    bus.on("t", got.append)
    bus.on("t", as_any)
    assert bus.emit("t", payload).wait(BOUND).results()[1] is payload
    assert got[0] is payload


def test_conversion_happens_at_the_delivery(bus: EventBus) -> None:
    """The emitter is not the one to pay, or to fail."""
    validated: list[int] = []

    class Watched(BaseModel):
        id: int

        @field_validator("id")
        @classmethod
        def note(cls, value: int) -> int:
            validated.append(value)
            return value

    def handler(payload: Watched) -> Any:
        return isinstance(payload, Watched)  # it sees the class, so its annotation can be resolved

    bus.on("t", handler)
    other = bus.on("t", as_any)
    receipt = bus.emit("t", {"id": "no number"}).wait(BOUND)
    assert [each.status for each in receipt.outcomes] == [Status.FAILED, Status.DELIVERED]
    assert receipt.outcomes[1].value == {"id": "no number"}
    assert other.active
    model = Watched(id=1)
    validated.clear()
    bus.emit("t", model).wait(BOUND)
    assert validated == []  # an instance is not validated again


def test_payloads_that_do_not_validate_give_their_places_back(bus: EventBus) -> None:
    """F28: ten times as many as the mailbox holds."""
    subscription = bus.on("t", as_model, max_pending=3)
    receipts = [bus.emit("t", "nonsense") for _ in range(30)]
    bus.drain(BOUND)
    assert {each.status for receipt in receipts for each in receipt.outcomes} == {Status.FAILED}
    assert subscription.stats().failed == 30


def test_models_with_extras_and_arbitrary_parts_are_copied_deeply_too(bus: EventBus) -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
        anything: Any = None

    model = Open(anything=[1], more=[2])  # type: ignore[call-arg]
    first = given(bus, as_dict, model)
    first["anything"].append(9)
    first["more"].append(9)
    assert given(bus, as_dict, model) == {"anything": [1], "more": [2]}


def test_computed_fields_and_free_objects_are_copied_deeply_too(bus: EventBus) -> None:
    """Whatever part of a dump the model may hold itself."""

    class Bag:
        def __init__(self) -> None:
            self.items: list[int] = []

    class Computed(BaseModel):
        _parts: list[int] = PrivateAttr(default_factory=lambda: [1])

        @computed_field  # type: ignore[prop-decorator]
        @property
        def parts(self) -> Any:
            return self._parts

    class Free(BaseModel):
        bag: Any = None

    computed, free = Computed(), Free(bag=Bag())
    given(bus, as_dict, computed)["parts"].append(9)
    assert computed._parts == [1]
    given(bus, as_dict, free)["bag"].items.append(9)
    assert free.bag.items == []


class Node(BaseModel):
    """With fields of each form that a dump never shares with the model."""

    next: Node | None = None
    kind: Literal["node"] = "node"
    tags: list[Annotated[str, "a note"]] = []
    free: list = []  # type: ignore[type-arg]
    nothing: None = None


def test_the_dict_of_a_recursive_model_is_the_handlers_own(bus: EventBus) -> None:
    model = Node(next=Node(tags=["inner"]), tags=["outer"])
    got = given(bus, as_dict, model)
    assert got == model.model_dump()
    got["tags"].append("more")
    got["next"]["tags"].append("more")
    assert (model.tags, model.next and model.next.tags) == (["outer"], ["inner"])


def test_an_optional_event_an_optional_dict_and_none(bus: EventBus) -> None:
    def event(payload: Event | None) -> Any:
        return payload

    def optional(payload: dict[str, Any] | None) -> Any:
        return payload

    def nothing(payload: Any) -> Any:
        return payload

    nothing.__annotations__["payload"] = None
    assert given(bus, event, 7).payload == 7
    assert given(bus, optional, None) is None
    assert given(bus, optional, {"a": 1}) == {"a": 1}
    assert given(bus, nothing, None) is None


def test_a_payload_that_cannot_be_shown_is_refused_with_its_type(bus: EventBus) -> None:
    class Hidden:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    bus.on("t", as_model)
    (outcome,) = bus.emit("t", Hidden()).wait(BOUND).outcomes
    assert "<test_a_payload_that_cannot_be_shown_is_refused_with_its_type.<locals>.Hidden>" in str(outcome.error)


# Registration


def test_a_function_may_call_its_payload_self_and_have_keywords_with_defaults(bus: EventBus) -> None:
    def handler(self: Order) -> Any:
        return self

    def keyword(payload: Order, *, other: int = 1) -> Any:
        return payload, other

    assert given(bus, handler, {"id": 1}) == Order(id=1)
    assert given(bus, keyword, {"id": 1}) == (Order(id=1), 1)


def test_an_annotation_that_is_quoted_ever_so_often_is_resolved_too(bus: EventBus) -> None:
    def handler(payload: Any) -> Any:
        return payload

    handler.__annotations__["payload"] = repr(repr(repr("Order")))
    assert given(bus, handler, {"id": 1}) == Order(id=1)


def test_only_the_payload_parameters_annotation_is_resolved(bus: EventBus) -> None:
    def handler(payload: Order, other: "Missing" = None) -> "AlsoMissing":  # type: ignore[name-defined]  # noqa: F821, UP037
        return payload

    assert given(bus, handler, {"id": 1}) == Order(id=1)


def test_an_annotation_that_cannot_be_resolved_is_refused_with_the_remedy(bus: EventBus) -> None:
    def handler(payload: Missing) -> Any:  # type: ignore[name-defined]  # noqa: F821
        return payload

    with pytest.raises(HandlerTypeError, match=r"Missing.*payload=Model"):
        bus.on("t", handler)
    assert bus.subscriptions() == ()
    assert given(bus, handler, {"id": 1}, payload=Order) == Order(id=1)


def test_an_annotation_may_be_quoted_twice(bus: EventBus) -> None:
    def handler(payload: "Order") -> Any:  # noqa: UP037
        return payload

    assert given(bus, handler, {"id": 1}) == Order(id=1)


@pytest.mark.parametrize("form", ["Order", Optional["Order"], "Optional['Order']", Annotated["Order", "note"]], ids=str)
def test_names_may_be_quoted_within_an_annotation(bus: EventBus, form: Any) -> None:
    """With and without postponed evaluation."""

    def handler(payload: Any) -> Any:
        return payload

    handler.__annotations__["payload"] = form
    assert given(bus, handler, {"id": 1}) == Order(id=1)


@pytest.mark.parametrize("form", ["'Missing'", Optional["Missing"], list["Missing"], "some text", "1 +"], ids=str)  # type: ignore[name-defined]  # noqa: F821
def test_names_within_an_annotation_that_cannot_be_resolved_are_refused_too(bus: EventBus, form: Any) -> None:
    def handler(payload: Any) -> Any:
        return payload

    handler.__annotations__["payload"] = form
    with pytest.raises(HandlerTypeError, match="payload=Model"):
        bus.on("t", handler)
    assert bus.subscriptions() == ()


def test_a_model_of_an_enclosing_function_is_resolved_where_the_handler_can_see_it(bus: EventBus) -> None:
    class Local(BaseModel):
        id: int

    def handler(payload: Local) -> Any:
        return Local, payload

    assert given(bus, handler, {"id": 1})[1] == Local(id=1)


class Owner:
    def method(self, payload: Order) -> Any:
        return payload

    @classmethod
    def of_class(cls, payload: Order) -> Any:
        return payload

    @staticmethod
    def static(payload: Order) -> Any:
        return payload

    def __call__(self, payload: Order) -> Any:
        return payload


def with_more(prefix: str, payload: Order, suffix: str = "") -> Any:
    return payload


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    "handler",
    [
        Owner().method,
        Owner.of_class,
        Owner.static,
        Owner(),
        functools.partial(with_more, "prefix"),
        functools.partial(Owner().method),
        decorated(as_model),
    ],
    ids=["method", "class method", "static method", "object", "partial", "partial of a method", "decorated"],
)
def test_every_kind_of_callable_declares(bus: EventBus, handler: Any) -> None:
    assert given(bus, handler, {"id": 1}) == Order(id=1)


def test_a_class_and_builtins_can_be_handlers(bus: EventBus) -> None:
    class Taker:
        def __init__(self, payload: Any) -> None:
            self.payload = payload

    assert given(bus, Taker, 5).payload == 5
    got: list[Any] = []
    given(bus, got.append, 6)
    assert got == [6]
    assert given(bus, str, 7) == "7"
    store: dict[str, int] = {}
    given(bus, store.update, {"a": 1})
    assert store == {"a": 1}


@pytest.mark.parametrize(
    ("handler", "hint"),
    [
        (lambda: None, "no argument"),
        (lambda a, b: None, "2 arguments"),
        (lambda a, *, b: None, "keyword"),
        (Owner.method, "@handles"),
        (functools.partial(with_more), "partial"),
        (lambda payload: (yield), "generator"),
    ],
    ids=["none", "two", "keyword only", "self", "partial", "generator"],
)
def test_what_cannot_be_called_with_one_payload_is_refused(bus: EventBus, handler: Any, hint: str) -> None:
    with pytest.raises(HandlerTypeError, match=hint):
        bus.on("t", handler)
    assert bus.subscriptions() == ()


def test_a_coroutine_handler_is_refused_by_the_core_naming_the_facade(bus: EventBus) -> None:
    async def handler(payload: Any) -> None:
        """Never run."""

    class Callable_:
        async def __call__(self, payload: Any) -> None:
            """Never run."""

    async def generator(payload: Any) -> Any:
        yield payload

    for each in (handler, Callable_(), functools.partial(handler), Callable_().__call__):
        with pytest.raises(HandlerTypeError, match="eventbus_async"):
            bus.on("t", each)
    with pytest.raises(HandlerTypeError):
        bus.on("t", generator)
    assert bus.subscriptions() == ()


def test_a_plain_function_that_returns_an_awaitable_fails_its_delivery(bus: EventBus) -> None:
    async def coroutine() -> None:
        """Never run."""

    with pytest.raises(HandlerTypeError, match="awaitable"):
        given(bus, lambda payload: coroutine(), 1)


@pytest.mark.parametrize("options", [{}, {"concurrency": 2}, {"inline": True}], ids=str)
@pytest.mark.parametrize("alone", [True, False])
def test_g15_its_error_says_all_that_there_is_to_know_each_time(options: dict[str, Any], alone: bool) -> None:
    told: list[HandlerError] = []

    async def coroutine() -> None:
        """Never run."""

    with EventBus(on_error=told.append) as bus:
        bus.on("t", lambda payload: coroutine(), name="forgetful", **options)
        if not alone:
            bus.on("t", lambda payload: None)
        for _ in range(3):  # the first ones are made in steps
            outcome = bus.emit("t").wait(BOUND).outcomes[0]
        assert (outcome.status, outcome.value) == (Status.FAILED, None)
        assert str(outcome.error) == (
            "the plain function forgetful returned an awaitable (coroutine), which nobody awaits; make the handler"
            " `async def` and register it on eventbus_async.AsyncEventBus"
        )
    assert len(told) == 3
    assert told[2].error is outcome.error


def test_a_plain_function_that_returns_an_awaitable_that_cannot_be_closed_fails_too(bus: EventBus) -> None:
    class Awaitable:
        def __await__(self) -> Any:
            yield

    bus.on("t", lambda payload: Awaitable())
    (outcome,) = bus.emit("t").wait(BOUND).outcomes
    assert isinstance(outcome.error, HandlerTypeError)


def test_a_handler_may_return_a_receipt(bus: EventBus) -> None:
    receipt = given(bus, lambda payload: bus.emit("other"), 1)
    assert receipt.deliveries == 0


def test_g15_all_handlers_of_an_emit_get_one_and_the_same_event_with_what_it_was_made_of(bus: EventBus) -> None:
    events: list[Event] = []

    def handler(event: Event) -> None:
        events.append(event)

    for inline in (True, False, True):
        bus.on("a", handler, inline=inline)
    before = time.time()
    receipt = bus.emit("a", [1], headers={"h": 2}).wait(BOUND)
    after = time.time()
    assert len(events) == 3
    assert len({id(event) for event in events}) == 1
    event = events[0]
    assert (event.topic, event.payload, event.headers) == ("a", [1], {"h": 2})
    assert event.id == receipt.event_id
    assert before <= event.timestamp <= after


def test_g15_an_event_without_headers_has_an_empty_mapping(bus: EventBus) -> None:
    events: list[Event] = []

    def handler(event: Event) -> None:
        events.append(event)

    bus.on("a", handler, inline=True)
    for _ in range(2):
        bus.emit("a")
    assert [event.headers for event in events] == [{}, {}]
