"""``emit`` may be written in C (see ``hot.quicken``): whoever looks at it sees the function, and no tool breaks on it.

Everything here holds with the extension and without it.
"""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import pydoc
import types
import weakref
from typing import Any, get_overloads
from unittest import mock

import pytest

from eventbus import EventBus, HandlerTypeError
from eventbus_async import AsyncEventBus

FACES = pytest.mark.parametrize("face", [EventBus, AsyncEventBus])


@FACES
def test_it_looks_like_a_function(face: type[Any]) -> None:
    emit = face.emit
    assert inspect.isfunction(emit)
    assert isinstance(emit, types.FunctionType)
    assert "emit" in dict(inspect.getmembers(face, inspect.isfunction))
    assert (emit.__name__, emit.__qualname__, emit.__module__) == ("emit", f"{face.__name__}.emit", face.__module__)
    assert next(iter(inspect.signature(emit).parameters)) == "self"
    assert next(iter(inspect.signature(face().emit).parameters)) == "topic"
    for each in (emit, face().emit, face):  # as help() shows it
        assert "Emit an event" in pydoc.plain(pydoc.render_doc(each))
    assert inspect.getsource(emit).lstrip().startswith("def emit(")
    assert len(get_overloads(emit)) == 2


@FACES
def test_it_binds_as_a_function_does(face: type[Any]) -> None:
    class Shouting(face):  # type: ignore[misc]
        first = functools.partialmethod(face.emit, "first")
        say = face.emit

        def emit(self, topic: Any, payload: Any = None, **options: Any) -> Any:
            return super().emit(topic, str(payload).upper(), **options)

    bus = Shouting()
    heard: list[Any] = []
    bus.on("*", heard.append, inline=True)
    bus.emit("word", "a")
    bus.first("b")
    bus.say("word", "c")
    face.emit(bus, "word", "d")
    face.__dict__["emit"].__get__(bus, Shouting)("word", "e")
    Shouting.first(bus, "f")
    assert heard == ["A", "b", "c", "d", "e", "f"]
    assert face.__dict__["emit"].__get__(None, face) is face.emit
    assert bus.say == bus.say
    assert bus.say.__self__ is bus


@FACES
def test_wrong_calls_are_refused_in_the_same_words(face: type[Any]) -> None:
    """G17: the method's name stands in the message, and nothing is emitted."""
    bus = face()
    for arguments, options in (((), {}), (("a", 1, 2), {}), (("a",), {"nothing": 1}), (("a",), {"topic": "b"})):
        with pytest.raises(TypeError, match=rf"^{face.__name__}\.emit\(\)"):
            bus.emit(*arguments, **options)
    with pytest.raises(AttributeError):
        face.emit(object(), "a")
    assert bus.stats().events == 0


@FACES
def test_it_can_be_mocked_with_its_signature(face: type[Any]) -> None:
    stand_in = mock.create_autospec(face, instance=True)
    stand_in.emit("topic", 1)
    stand_in.emit.assert_called_once_with("topic", 1)
    with pytest.raises(TypeError):
        stand_in.emit()
    bus = face()
    before = face.__dict__["emit"]
    with mock.patch.object(face, "emit", autospec=True) as emit:
        bus.emit("topic", 2)
    emit.assert_called_once_with(bus, "topic", 2)
    assert face.__dict__["emit"] is before


@FACES
def test_it_is_copied_and_pickled_by_name(face: type[Any]) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(face.emit, protocol)) is face.emit
    assert copy.copy(face.emit) is face.emit
    assert copy.deepcopy(face.emit) is face.emit


@FACES
def test_it_can_be_referenced_weakly(face: type[Any]) -> None:
    """As libraries of signals do with the methods that are connected to them."""
    bus = face()
    assert weakref.ref(face.emit)() is face.emit
    method = weakref.WeakMethod(bus.emit)
    assert method() == bus.emit
    del bus
    assert method() is None


@FACES
def test_it_takes_attributes_as_a_function_does(face: type[Any]) -> None:
    face.emit.note = "kept"
    try:
        assert face.emit.note == face().emit.note == "kept"
        assert vars(face.emit) == {"note": "kept"}
    finally:
        del face.emit.note
    assert not hasattr(face.emit, "note")


def test_it_can_be_a_handler() -> None:
    """An emit as a handler passes on what it is told, as a topic."""
    bus = EventBus()
    heard: list[Any] = []
    bus.on("news", heard.append, inline=True)
    subscription = bus.on("relay", bus.emit, inline=True)
    assert subscription.name == "EventBus.emit"
    bus.emit("relay", "news")
    assert heard == [{}]
    with pytest.raises(HandlerTypeError):
        bus.on("relay", EventBus.emit)
