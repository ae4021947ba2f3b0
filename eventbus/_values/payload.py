"""Conversion of payloads to what a handler declares (G15): chosen at registration, done at delivery.

The only place that meets pydantic, and only once a model is in sight: a class can be a model only if its program has
imported pydantic already.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Mapping, MutableMapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from .._errors import PayloadError
from .event import Event

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PLAIN", "UNDECLARED", "admits", "choose", "to_plain"]

UNDECLARED = object()

# Payloads that are never models, looked at first because they are the most.
PLAIN = frozenset((dict, str, int, float, bool, bytes, list, tuple, set))
_DICTS = (dict, Mapping, MutableMapping)

# Whether a dump of this model class must be copied once more. A race computes the same answer twice; no lock is needed.
_shares: WeakKeyDictionary[type, bool] = WeakKeyDictionary()


def choose(declared: Any, name: str) -> tuple[bool, Callable[[Any], Any] | None]:
    """Whether the handler takes the event itself, and how its payload is converted (None: not at all)."""
    if declared is UNDECLARED or declared is Any or declared is object:
        return False, to_plain
    if declared is Event:
        return True, None
    if _is_dict(declared):
        return False, to_plain
    members = _members(declared)
    if members and all(member is type(None) or _is_model(member) for member in members):
        models = tuple(member for member in members if member is not type(None))
        if models:
            return False, _to_model(declared, models, type(None) in members, name)
    if Event in members and all(member in (Event, type(None)) for member in members):
        return True, None
    if members and all(member is type(None) or _is_dict(member) or member is Any for member in members):
        return False, None if type(None) in members else to_plain
    return False, None


def admits(declared: Any, model: Any) -> bool:
    """Whether a handler that declares this can be fed by a topic that carries that type."""
    if declared is UNDECLARED or declared is Any or declared is object or declared is Event or _is_dict(declared):
        return True
    members = _members(declared)
    if not isinstance(model, type) or not members or not all(isinstance(member, type) for member in members):
        return True  # typing forms: the type checker sees them, and delivery checks
    return any(_related(model, member) for member in members if member is not type(None))


def _related(one: type, other: type) -> bool:
    try:
        return issubclass(one, other) or issubclass(other, one)
    except TypeError:
        return True  # typed dictionaries and most protocols: as for typing forms


def to_plain(payload: Any) -> Any:
    """What a handler gets that declares a dict, or nothing: a dict of a model, ``{}`` for no payload, else as it is."""
    if payload is None:
        return {}
    kind = type(payload)  # pyright: ignore[reportUnknownVariableType]
    if kind in PLAIN or not _is_model(kind):
        return payload
    dump = payload.model_dump()
    shares = _shares.get(kind)  # pyright: ignore[reportUnknownArgumentType]
    if shares is None:
        shares = _shares[kind] = _shares_parts(kind, set())
    return deepcopy(dump) if shares else dump


def _to_model(declared: Any, models: tuple[type, ...], optional: bool, name: str) -> Callable[[Any], Any]:
    wanted = " | ".join(model.__qualname__ for model in models)
    validate: Callable[[Any], Any] | None = None

    def convert(payload: Any) -> Any:
        nonlocal validate
        if isinstance(payload, models) or (payload is None and optional):
            return payload
        if validate is None:
            from pydantic import TypeAdapter

            validate = TypeAdapter[Any](declared).validate_python
        if _is_model(type(payload)):
            payload = cast("Any", payload).model_dump()
        try:
            return validate(payload)
        except Exception as error:
            raise PayloadError(
                f"the payload {_brief(payload)} is no valid {wanted} for {name}: {_first(error)}"
            ) from error

    return convert


def _is_model(cls: Any) -> bool:
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not isinstance(cls, type):
        return False
    base = getattr(pydantic, "BaseModel", None)
    return base is not None and issubclass(cls, base)


def _is_dict(declared: Any) -> bool:
    origin = typing.get_origin(declared) or declared
    return origin in _DICTS if isinstance(origin, type) else False


def _members(declared: Any) -> tuple[Any, ...]:
    """The classes of a union, or the one class, through ``Annotated``."""
    origin = typing.get_origin(declared)
    if origin is typing.Annotated:
        return _members(typing.get_args(declared)[0])
    if origin is typing.Union or origin is types.UnionType:
        return tuple(member for each in typing.get_args(declared) for member in _members(each))
    return (declared,)


def _shares_parts(model: Any, seen: set[Any]) -> bool:
    """Whether a dump may hold something mutable that the model holds too."""
    if model in seen:
        return False
    seen.add(model)
    if model.model_config.get("extra") == "allow" or model.__pydantic_decorators__.field_serializers:
        return True
    if model.__pydantic_decorators__.model_serializers or model.model_computed_fields:
        return True
    return any(_shares_form(field.annotation, seen) for field in model.model_fields.values())


def _shares_form(form: Any, seen: set[Any]) -> bool:
    from datetime import date, datetime, time, timedelta
    from decimal import Decimal
    from enum import Enum
    from uuid import UUID

    if form is None or form is type(None):
        return False
    origin = typing.get_origin(form)
    if origin is typing.Literal:
        return False
    if origin is typing.Annotated:
        return _shares_form(typing.get_args(form)[0], seen)
    if origin is typing.Union or origin is types.UnionType or origin in (list, dict, set, frozenset, tuple):
        return any(_shares_form(each, seen) for each in typing.get_args(form) if each is not Ellipsis)
    if not isinstance(form, type) or form in (list, dict, set, tuple):
        return True
    if _is_model(form):
        return _shares_parts(form, seen)
    return not issubclass(
        form, (str, int, float, bool, bytes, complex, date, datetime, time, timedelta, Decimal, Enum, UUID)
    )


def _brief(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= 80 else text[:77] + "..."


def _first(error: Exception) -> str:
    if not hasattr(error, "errors"):
        return str(error)
    problems: list[Any] = cast("Any", error).errors(include_url=False, include_input=False)
    shown = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'payload'}: {each['msg']}" for each in problems[:3])
    return shown if len(problems) <= 3 else f"{shown} (and {len(problems) - 3} more)"
