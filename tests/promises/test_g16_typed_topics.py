"""G16: ``Topic(name, Model)`` wherever a topic's name can stand."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kit import BOUND
from pydantic import BaseModel

from eventbus import Event, EventBus, HandlerTypeError, PayloadError, Topic, TopicError, TopicTypeError, handles


class Order(BaseModel):
    id: int


class Refund(BaseModel):
    amount: float


@dataclass
class Plain:
    n: int


CREATED = Topic("orders/created", Order)


def echo(payload: Any) -> Any:
    return payload


def echo_model(order: Order) -> Order:
    return order


def test_an_emit_is_validated_at_the_emitter_and_travels_as_the_model(bus: EventBus) -> None:
    stream = bus.stream(CREATED)
    bus.on(CREATED, echo_model)
    receipt = bus.emit(CREATED, {"id": "7"}).wait(BOUND)  # type: ignore[call-overload]
    assert receipt.results()[-1] == Order(id=7)
    assert stream.get(BOUND).payload == Order(id=7)


def test_the_very_instance_travels(bus: EventBus) -> None:
    order = Order(id=1)
    bus.on(CREATED, echo_model)
    assert bus.emit(CREATED, order).wait(BOUND).results()[0] is order


@pytest.mark.parametrize("payload", [None, {"nonsense": 1}, "text", Refund(amount=1)])
def test_a_wrong_payload_raises_at_the_emit_and_delivers_nothing(bus: EventBus, payload: Any) -> None:
    subscription = bus.on(CREATED, echo_model)
    with pytest.raises(PayloadError, match="orders/created"):
        bus.emit(CREATED, payload)
    with pytest.raises(PayloadError):
        bus.request(CREATED, payload, BOUND)
    assert subscription.stats().deliveries == 0
    assert bus.stats().events == 0


def test_it_is_the_same_topic_as_its_name(bus: EventBus) -> None:
    subscription = bus.on(CREATED, echo_model)
    assert subscription.topics == ("orders/created",)
    assert bus.emit("orders/created", {"id": 1}).wait(BOUND).results() == [Order(id=1)]
    assert bus.handlers(CREATED) == bus.handlers("orders/created") == (echo_model,)
    assert bus.subscriptions(CREATED) == (subscription,)
    bus.verify_subscriptions({CREATED: echo_model})
    assert bus.off(CREATED, echo_model) == 1


def test_it_stands_in_lists_scopes_streams_and_handles(bus: EventBus) -> None:
    class Shop:
        @handles(CREATED)
        def note(self, order: Order) -> Order:
            return order

    with bus.scope() as scope:
        scope.on([CREATED, "other"], echo)
        scope.register(Shop())
        receipt = bus.emit(CREATED, Order(id=1)).wait(BOUND)
        assert receipt.results() == [{"id": 1}, Order(id=1)]


@pytest.mark.parametrize("handler", [echo, echo_model, lambda payload: payload])
def test_handlers_that_fit_are_registered(bus: EventBus, handler: Any) -> None:
    assert bus.on(CREATED, handler).active


def test_handlers_that_do_not_fit_are_refused_at_registration(bus: EventBus) -> None:
    def wants_refund(refund: Refund) -> None:
        """Never registered."""

    with pytest.raises(HandlerTypeError, match=r"Refund.*orders/created.*Order"):
        bus.on(CREATED, wants_refund)
    with pytest.raises(HandlerTypeError):
        bus.on(["other", CREATED], wants_refund)
    with pytest.raises(HandlerTypeError):
        bus.on(CREATED, echo, payload=Refund)
    assert bus.subscriptions() == ()


def test_handlers_of_events_and_of_base_classes_fit(bus: EventBus) -> None:
    def of_event(event: Event) -> Any:
        return event.payload

    def of_base(payload: BaseModel) -> Any:
        return payload

    bus.on(CREATED, of_event)
    bus.on(CREATED, of_base)
    order = Order(id=1)
    assert all(each is order for each in bus.emit(CREATED, order).wait(BOUND).results())


@pytest.mark.parametrize(
    ("model", "good", "bad"),
    [
        (int, 3, "three"),
        (Plain, Plain(1), {"n": 1}),
        (list[int], [1, 2], ["one"]),
        (dict[str, int], {"a": 1}, {"a": "b"}),
    ],
    ids=["int", "dataclass", "list", "dict"],
)
def test_any_type_can_be_the_payloads(bus: EventBus, model: Any, good: Any, bad: Any) -> None:
    topic = Topic("t", model)
    bus.on(topic, echo)
    assert bus.emit(topic, good).wait(BOUND).results() == [good]
    with pytest.raises(PayloadError):
        bus.emit(topic, bad)


def test_its_name_must_be_a_topics() -> None:
    with pytest.raises(TopicError):
        Topic("orders/*", Order)
    with pytest.raises(TopicError):
        Topic("", Order)
    with pytest.raises(TopicTypeError):
        Topic(7, Order)  # type: ignore[arg-type]


def test_topics_compare_by_name_and_model() -> None:
    assert Topic("t", Order) == Topic("t", Order)
    assert Topic("t", Order) != Topic("t", Refund)
    assert len({Topic("t", Order), Topic("t", Order), Topic("u", Order)}) == 2
    assert str(CREATED) == "orders/created"
    assert "orders/created" in repr(CREATED)
    assert "Order" in repr(CREATED)


def test_a_type_checker_sees_both(tmp_path: Path) -> None:
    """A wrong payload and a wrong handler are errors for mypy; right ones are none."""
    pytest.importorskip("mypy")
    source = tmp_path / "program.py"
    source.write_text(
        textwrap.dedent(
            """
            from eventbus import Event, EventBus, Topic

            class Order: ...
            class Refund: ...

            def wants_order(order: Order) -> None: ...
            def wants_event(event: Event) -> None: ...
            def wants_refund(refund: Refund) -> None: ...

            created = Topic("orders/created", Order)
            bus = EventBus()
            bus.emit(created, Order())
            bus.on(created, wants_order)
            bus.on(created, wants_event)
            bus.emit("orders/created", 5)
            bus.emit(created, Refund())  # wrong
            bus.on(created, wants_refund)  # wrong
            """
        )
    )
    lines = source.read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache"),
         "--no-error-summary", "--config-file=", str(source)],
        cwd=root, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    found = {int(line.split(":")[1]) for line in result.stdout.splitlines() if ": error:" in line}
    assert found == wrong, result.stdout + result.stderr


def test_a_topic_may_carry_a_typing_form(bus: EventBus) -> None:
    """What a handler declares is not compared with it at the registration: that is for type checkers."""
    numbers = Topic("numbers", list[int])

    def total(payload: list[int]) -> int:
        return sum(payload)

    bus.on(numbers, total)
    assert bus.emit(numbers, [1, 2]).wait(BOUND).results() == [3]
