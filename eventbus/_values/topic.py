"""Topics and patterns: their syntax, what matches what, and topics that carry a payload type."""

from __future__ import annotations

import sys
from typing import Any, Generic, TypeVar, cast, final

from .._errors import PayloadError, TopicError, TopicTypeError
from .options import is_type_form

__all__ = [
    "Topic",
    "check_pattern",
    "check_patterns",
    "check_topic",
    "is_pattern",
    "matches",
    "refuse_bare",
    "topic_models",
]

T = TypeVar("T")


@final
class Topic(Generic[T]):
    """A topic with the type of its payloads; stands wherever a topic's name can. Immutable, so safe in any thread.

    Emits through it are validated at the emitter and travel as the model; handlers are checked at registration.

    Args:
        name: The topic's name; a topic, no pattern.
        model: A pydantic model, any other class (checked by ``isinstance``), or a typing form (checked by pydantic).

    Raises:
        TopicError: The name is not a topic. (TopicTypeError for what is no string, and for a model that is no type.)

    Example:
        >>> from eventbus import EventBus, Topic
        >>> count = Topic("count", int)
        >>> with EventBus() as bus:
        ...     double = bus.on(count, lambda n: 2 * n)
        ...     bus.emit(count, 21).wait(1).results()
        [42]
    """

    __slots__ = ("_model", "_name", "_validate")

    def __init__(self, name: str, model: type[T]) -> None:
        self._name = check_topic(name)
        if not is_type_form(model):
            raise TopicTypeError(
                f"the payloads of topic {name!r} need a model class, a type or a typing form, not {model!r}"
            )
        self._model = model
        self._validate: Any = None

    @property
    def name(self) -> str:
        """The topic's name."""
        return self._name

    @property
    def model(self) -> type[T]:
        """The type of its payloads."""
        return self._model

    def validate(self, payload: object) -> T:
        """The payload as the model: the very instance if it is one already.

        Raises:
            PayloadError: It does not validate; pydantic's error is the cause.
        """
        validate = self._validate
        if validate is None:
            validate = self._validate = _validator(self._name, self._model)
        return cast("T", validate(payload))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Topic):
            return NotImplemented
        return self._name == other._name and self._model == other._model  # pyright: ignore[reportUnknownMemberType]

    def __hash__(self) -> int:
        return hash(self._name)

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"Topic({self._name!r}, {getattr(self._model, '__qualname__', self._model)})"


def _validator(name: str, model: Any) -> Any:
    if _tells_instances(model) and not _is_model(model) and model not in (int, float, str, bool, bytes):

        def check(payload: object) -> object:
            if isinstance(payload, model):
                return payload
            raise PayloadError(f"the topic {name!r} takes {model.__qualname__}, not {_brief(payload)}")

        return check

    from pydantic import TypeAdapter

    try:
        adapter = TypeAdapter[Any](model)
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise TopicTypeError(
            f"the topic {name!r} cannot check payloads against {model!r} ({why}); give it a model, a class or another"
            " typing form"
        ) from error

    def validate(payload: object) -> object:
        if type(payload) is model:
            return payload
        try:
            return adapter.validate_python(payload)
        except Exception as error:  # a user's validator may raise anything
            raise PayloadError(
                f"the payload {_brief(payload)} does not fit the topic {name!r}, which takes"
                f" {getattr(model, '__qualname__', model)}: {_first(error)}"
            ) from error

    return validate


def _tells_instances(model: Any) -> bool:
    """Whether it is a class that ``isinstance`` takes: typed dictionaries, most protocols and Any are not."""
    try:
        return isinstance(model, type) and isinstance(None, model) in (True, False)
    except TypeError:
        return False


def _is_model(cls: type) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(cls, pydantic.BaseModel)


def _brief(value: object) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= 80 else text[:77] + "..."


def _first(error: Any) -> str:
    if not hasattr(error, "errors"):
        return repr(error)
    problems = error.errors(include_url=False, include_input=False)
    shown = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'payload'}: {each['msg']}" for each in problems[:3])
    return shown if len(problems) <= 3 else f"{shown} (and {len(problems) - 3} more)"


def check_topic(topic: object) -> str:
    """The name of a topic. Raises TopicError (TopicTypeError for a wrong type) if it is none."""
    name = _levels(topic, "topic")
    if "*" in name:
        raise TopicError(f"{name!r} is a pattern, and a topic is needed here; name one topic, without '*'")
    return name


def check_pattern(pattern: object) -> str:
    """The name of a topic or pattern. Raises TopicError (TopicTypeError for a wrong type) if it is none."""
    name = _levels(pattern, "topic or pattern")
    if "*" in name:
        *path, last = name.split("/")
        for level in path:
            if level == "**":
                raise TopicError(f"'**' may only be the last level of a pattern: {name!r}")
            if "*" in level and level != "*":
                raise _part_of_level(level, name)
        if "*" in last and last not in ("*", "**"):
            raise _part_of_level(last, name)
    return name


def _part_of_level(level: str, name: str) -> TopicError:
    return TopicError(
        f"'*' stands for a whole level, which {level!r} in {name!r} is not; divide levels by '/', as in 'orders/*'"
    )


def _levels(topic: object, what: str) -> str:
    if isinstance(topic, Topic):
        return topic.name  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if not isinstance(topic, str):
        raise TopicTypeError(f"a {what} must be a string such as 'orders/created' or a Topic, not {topic!r}")
    if not topic:
        raise TopicError(f"a {what} must not be empty; name it like 'orders/created'")
    if topic[0] == "/" or topic[-1] == "/" or "//" in topic:
        raise TopicError(f"{topic!r} has an empty level; write the levels with single '/' between them")
    return topic if type(topic) is str else str.__str__(topic)  # of an Enum its own one would give another text


def check_patterns(topics: object) -> tuple[str, ...]:
    """The names of one topic, pattern or Topic, or of an iterable of them, each once, in order."""
    if isinstance(topics, (str, Topic)):
        return (check_pattern(cast("object", topics)),)
    try:
        several = list(cast("Any", topics))
    except TypeError:
        raise TopicTypeError(f"a topic must be a string, a Topic, or a list of these, not {topics!r}") from None
    if isinstance(topics, (bytes, bytearray)):
        raise TopicTypeError(f"a topic must be a string, a Topic, or a list of these, not {topics!r}; decode it")
    if not several:
        raise TopicError(f"at least one topic is needed, each a string or a Topic, not {topics!r}")
    return tuple(dict.fromkeys(check_pattern(each) for each in several))


def refuse_bare(topic: object, decorator: str) -> None:
    """Raise TopicTypeError if a decorator that needs a topic was written without one."""
    if callable(topic):
        name = getattr(topic, "__qualname__", None) or repr(topic)
        raise TopicTypeError(f"@{decorator} needs a topic; write @{decorator}('orders/created') above {name}")


def topic_models(topics: object) -> tuple[Topic[Any], ...]:
    """The typed ones among the topics of a registration that is checked already."""
    if isinstance(topics, Topic):
        return (topics,)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(topics, str):
        return ()
    several: Any = topics
    return tuple(each for each in several if isinstance(each, Topic))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def is_pattern(name: str) -> bool:
    """Whether a checked name is a pattern."""
    return "*" in name


def matches(pattern: str, topic: str) -> bool:
    """Whether a checked pattern matches a checked topic: the plain definition that the registry's trie has to meet."""
    wanted, given = pattern.split("/"), topic.split("/")
    if given[0] == "bus" and len(given) > 1 and wanted[0] != "bus":
        return False
    if wanted[-1] == "**":
        wanted.pop()
        given = given[: len(wanted)] if len(given) >= len(wanted) else []
        if len(given) != len(wanted):
            return False
    return len(wanted) == len(given) and all(a in ("*", b) for a, b in zip(wanted, given, strict=True))
