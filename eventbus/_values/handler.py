"""What a callable is: its kind, whether it can be called with one payload, what it wants the payload to be.

Looked at once, at registration. ``inspect.signature`` costs 17 µs, so ``__code__`` decides for plain functions and
methods, and the signature only for the rest.
"""

from __future__ import annotations

import builtins
import functools
import sys
from types import FunctionType, MethodType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast, final, get_type_hints

from .._errors import HandlerTypeError
from .options import UNSET
from .payload import UNDECLARED, admits, choose, to_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from .topic import Topic

__all__ = ["HandlerSpec", "describe", "same_handler"]

_GENERATOR = 0x20
_COROUTINE = 0x80 | 0x100
_ASYNC_GENERATOR = 0x200
_VARARGS = 0x04
_QUOTES = 3  # how often an annotation may be quoted; postponed evaluation is one of them


@final
class HandlerSpec:
    """What is known of a handler."""

    __slots__ = ("convert", "function", "is_async", "name", "takes_event")

    def __init__(
        self,
        function: Callable[[Any], Any],
        name: str,
        is_async: bool,
        takes_event: bool,
        convert: Callable[[Any], Any] | None,
    ) -> None:
        self.function = function
        self.name = name
        self.is_async = is_async
        self.takes_event = takes_event
        self.convert = convert  # None: the payload as it is


def describe(handler: Any, *, payload: Any = UNSET, topics: tuple[Topic[Any], ...] = ()) -> HandlerSpec:
    """Look at a handler.

    Args:
        handler: The callable.
        payload: What the payload is to be converted to, instead of what the handler declares; None: as it declares.
        topics: Typed topics that it is registered for; what it declares must fit them.

    Raises:
        HandlerTypeError: It cannot be a handler; says why, and what to do.
    """
    if not callable(handler):
        raise HandlerTypeError(f"a handler must be callable with one payload, not {handler!r}")
    if payload is UNSET and not topics and type(handler) is FunctionType:
        spec = _describe_plain(handler)
        if spec is not None:
            return spec
    name = name_of(handler)
    function, skip, bound = _unwrap(handler)
    flags = _flags(function)
    if flags & (_GENERATOR | _ASYNC_GENERATOR) and not flags & 0x100:
        raise HandlerTypeError(
            f"{name} is a generator function, which runs nothing when it is called; let it return instead"
        )
    is_async = bool(flags & _COROUTINE) or _is_marked(handler) or _is_marked(function)
    if isinstance(function, FunctionType) and not hasattr(function, "__wrapped__") and not bound:
        parameter, owner = _by_code(handler, function, skip, name), function
    else:
        parameter, owner = _by_signature(handler, name)
    if payload is not UNSET and payload is not None:
        declared = payload
    elif parameter is None or owner is None:
        declared = UNDECLARED
    else:
        declared = _annotation(owner, parameter, name)
    for topic in topics:
        if not admits(declared, topic.model):
            raise HandlerTypeError(
                f"{name} wants its payload as {getattr(declared, '__qualname__', declared)}, but the topic"
                f" {topic.name!r} carries {getattr(topic.model, '__qualname__', topic.model)}; let them agree"
            )
    takes_event, convert = choose(declared, name)
    return HandlerSpec(handler, name, is_async, takes_event, convert)


def _describe_plain(handler: FunctionType) -> HandlerSpec | None:
    """What :func:`describe` says of a function with one parameter and nothing else to it, but sooner."""
    code = handler.__code__
    if code.co_argcount != 1 or code.co_kwonlyargcount or code.co_flags & (_GENERATOR | _COROUTINE | _ASYNC_GENERATOR):
        return None
    parameter, name = code.co_varnames[0], handler.__qualname__
    if parameter == "self" or not name or hasattr(handler, "__wrapped__") or hasattr(handler, "_is_coroutine_marker"):
        return None
    declared = _annotation(handler, parameter, name)
    if declared is UNDECLARED:
        return HandlerSpec(handler, name, False, False, to_plain)
    return HandlerSpec(handler, name, False, *choose(declared, name))


def same_handler(one: Any, other: Any) -> bool:
    """Whether two callables are one handler: the same object, or the same method of the same object."""
    if one is other:
        return True
    if isinstance(one, MethodType) and isinstance(other, MethodType):
        return one.__self__ is other.__self__ and one.__func__ is other.__func__
    # Methods of built-in types (``list.append`` of one list) are made anew at each access, too.
    kind = type(one)  # pyright: ignore[reportUnknownVariableType]
    if kind is type(other) and kind.__name__ in ("builtin_function_or_method", "method-wrapper"):
        return getattr(one, "__self__", one) is getattr(other, "__self__", other) and one.__name__ == other.__name__
    return False


def name_of(handler: Any) -> str:
    """A name for messages."""
    while isinstance(handler, functools.partial):
        handler = handler.func  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    name = getattr(handler, "__qualname__", None) or getattr(handler, "__name__", None)  # pyright: ignore[reportUnknownArgumentType]
    return name if isinstance(name, str) else type(handler).__qualname__  # pyright: ignore[reportUnknownArgumentType]


def _unwrap(handler: Any) -> tuple[Any, int, bool]:
    """The function behind a callable, how many of its first arguments are bound, whether a partial binds some."""
    function, skip, bound = handler, 0, False
    while True:
        if isinstance(function, functools.partial):
            bound = True
            function = function.func  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        elif isinstance(function, MethodType):
            skip += 1
            function = function.__func__
        elif not isinstance(function, (FunctionType, type)) and isinstance(
            getattr(cast("type", type(function)), "__call__", None),  # noqa: B004 - the function itself is wanted
            FunctionType,
        ):
            function = type(function).__call__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            skip += 1
        else:
            return function, skip, bound


def _flags(function: Any) -> int:
    code = getattr(function, "__code__", None)
    flags = getattr(code, "co_flags", 0)
    return flags if isinstance(flags, int) else 0


def _is_marked(function: Any) -> bool:
    # inspect.markcoroutinefunction (3.12) leaves a mark of its own; asyncio's of 3.11 is another.
    if getattr(function, "_is_coroutine_marker", None) is None:
        return False
    import inspect

    return inspect.iscoroutinefunction(function)


def _by_code(handler: Any, function: FunctionType, skip: int, name: str) -> str | None:
    """The name of the payload's parameter of a plain function or method."""
    code = function.__code__
    positional = code.co_argcount - skip
    names = code.co_varnames
    defaults = len(function.__defaults__ or ())
    required = positional - min(defaults, positional)
    if code.co_kwonlyargcount:
        given = function.__kwdefaults__ or {}
        keywords = names[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        missing = [each for each in keywords if each not in given]
        if missing:
            raise HandlerTypeError(
                f"{name} needs the keyword argument {missing[0]!r}, but a handler is called with one payload; give it a"
                " default or wrap it in functools.partial"
            )
    if handler is function and positional and names[0] == "self" and _in_class_body(function):
        raise HandlerTypeError(
            f"{name} is a function of a class body that wants 'self'; mark it with @handles(topic) and subscribe the"
            " object with bus.register(obj), or register the bound method"
        )
    if required > 1:
        wanted = ", ".join(names[skip : skip + required])
        raise HandlerTypeError(
            f"{name} needs {required} arguments ({wanted}), but a handler is called with one payload; give the others"
            " defaults or wrap it in functools.partial"
        )
    if positional > 0:
        return names[skip]
    if code.co_flags & _VARARGS:
        return names[code.co_argcount + code.co_kwonlyargcount]
    raise HandlerTypeError(
        f"{name} takes no argument, but a handler is called with one payload; add a parameter for it"
    )


def _in_class_body(function: FunctionType) -> bool:
    path = function.__qualname__.split(".")
    return len(path) > 1 and path[-2] != "<locals>"


def _by_signature(handler: Any, name: str) -> tuple[str | None, Any]:
    """The payload's parameter, and the function that declares it, of any other callable."""
    import inspect

    try:
        signature = inspect.signature(handler)
    except (ValueError, TypeError):
        return None, None  # a built-in that does not tell: it is taken at its word
    try:
        bound = signature.bind(None)
    except TypeError as error:
        raise HandlerTypeError(
            f"{name}{signature} cannot be called with one payload ({error}); give the other parameters defaults or wrap"
            " it in functools.partial"
        ) from None
    parameter = next(iter(bound.arguments), None)
    return parameter, _owner_of(handler, inspect)


def _owner_of(handler: Any, inspect: Any) -> Any:
    function, _skip, _bound = _unwrap(handler)
    if isinstance(function, type):
        function = vars(type).get("__init__") if function is type else getattr(function, "__init__", None)
    function = inspect.unwrap(function)
    return function if isinstance(function, FunctionType) else None


def _annotation(function: FunctionType, parameter: str, name: str) -> Any:
    """What the function declares for the parameter; only this one annotation is resolved."""
    if sys.version_info >= (3, 14):  # pragma: no cover - annotations are lazy there
        import annotationlib

        declared = annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF)
    else:
        declared = function.__annotations__
    if not declared:
        return UNDECLARED
    wanted = declared.get(parameter, UNDECLARED)
    if isinstance(wanted, type) or wanted is UNDECLARED or wanted is None:
        return None.__class__ if wanted is None else wanted
    if isinstance(wanted, str) and not function.__code__.co_freevars:
        # A lone name, the common case under postponed evaluation: no need to compile it.
        names = function.__globals__
        lone = names[wanted] if wanted in names else vars(builtins).get(wanted)
        if isinstance(lone, type):
            return lone
    local: dict[str, Any] = {}
    for free, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            local[free] = cell.cell_contents
        except ValueError:
            pass  # not assigned yet
    try:
        for _ in range(_QUOTES):
            if not isinstance(wanted, str):
                break
            wanted = eval(wanted, function.__globals__, local)
        if not isinstance(wanted, type):
            # Names may be quoted within it too, as in Optional["Model"].
            holder = SimpleNamespace(__annotations__={parameter: wanted})
            wanted = get_type_hints(holder, function.__globals__, local, include_extras=True)[parameter]
    except Exception as error:
        raise _unresolved(name, parameter, wanted, error) from error
    return None.__class__ if wanted is None else wanted


def _unresolved(name: str, parameter: str, wanted: Any, error: Exception) -> HandlerTypeError:
    return HandlerTypeError(
        f"the annotation {wanted!r} of {parameter!r} of {name} cannot be resolved ({error}); import that name in"
        " its module, or register with payload=Model"
    )
