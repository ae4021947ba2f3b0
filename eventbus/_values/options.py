"""The options of a subscription and of a bus, checked together (G17)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, cast, final, get_args

from .._errors import OptionError, OptionTypeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

__all__ = [
    "UNSET",
    "BusOptions",
    "Options",
    "Overflow",
    "check_bus_options",
    "check_count",
    "check_options",
    "check_plain",
    "check_timeout",
    "is_type_form",
]

Overflow = Literal["block", "drop_oldest", "drop_newest", "latest", "error"]


class _Unset:
    def __repr__(self) -> str:
        return "<unset>"


UNSET: Final = _Unset()


@final
class Options:
    """The options of one subscription. Never changed, for many share one; a dataclass is slow to make."""

    __slots__ = (  # noqa: RUF023 - as the documentation has them
        "inline",
        "concurrency",
        "key",
        "lane",
        "timeout",
        "max_pending",
        "overflow",
        "block_timeout",
        "max_waiting",
        "payload",
        "unique",
        "observer",
        "name",
    )

    def __init__(
        self,
        inline: bool = False,
        concurrency: int = 1,
        key: Callable[[Any], Any] | None = None,
        lane: str | None = None,
        timeout: float | None = None,
        max_pending: int | None = 10_000,
        overflow: Overflow = "block",
        block_timeout: float | None = None,
        max_waiting: int | None = None,
        payload: Any = UNSET,
        unique: bool = False,
        observer: bool = False,
        name: str | None = None,
    ) -> None:
        self.inline = inline
        self.concurrency = concurrency
        self.key = key
        self.lane = lane
        self.timeout = timeout
        self.max_pending = max_pending
        self.overflow: Overflow = overflow
        self.block_timeout = block_timeout
        self.max_waiting = max_waiting
        self.payload = payload
        self.unique = unique
        self.observer = observer
        self.name = name

    def but(self, **changes: Any) -> Self:
        """A copy with other values."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        return type(self)(**(values | changes))


@final
class BusOptions:
    """The options of one bus, its subscriptions' defaults apart. Never changed."""

    __slots__ = (  # noqa: RUF023 - as the documentation has them
        "workers",
        "max_workers",
        "handler_timeout",
        "propagate_errors",
        "on_error",
        "max_depth",
        "close_timeout",
        "exit_timeout",
    )

    def __init__(
        self,
        workers: int | None = None,
        max_workers: int = 64,
        handler_timeout: float | None = None,
        propagate_errors: bool = False,
        on_error: Callable[[Any], Any] | None = None,
        max_depth: int | None = None,
        close_timeout: float | None = 10.0,
        exit_timeout: float = 5.0,
    ) -> None:
        self.workers = workers
        self.max_workers = max_workers
        self.handler_timeout = handler_timeout
        self.propagate_errors = propagate_errors
        self.on_error = on_error
        self.max_depth = max_depth
        self.close_timeout = close_timeout
        self.exit_timeout = exit_timeout


_NAMES = Options.__slots__
_BUS_NAMES = BusOptions.__slots__
_DEFAULTABLE = ("concurrency", "max_pending", "overflow", "block_timeout", "max_waiting")
# What has no meaning for a handler that runs in the emitter's own thread.
_QUEUED_ONLY = ("concurrency", "key", "lane", "timeout", "max_pending", "overflow", "block_timeout", "max_waiting")


def is_type_form(value: object) -> bool:
    """Whether this can stand for a type: a class, None, or something made by ``typing``."""
    if value is None or value is UNSET or isinstance(value, type):
        return True
    return type(value).__module__ in ("typing", "types", "typing_extensions")


def check_timeout(value: object, name: str = "timeout") -> float | None:
    """A time in seconds: None is without end, 0 polls. Raises OptionError (OptionTypeError for a wrong type)."""
    if value is None:
        return None
    if type(value) is not float:
        if isinstance(value, bool) or not hasattr(type(value), "__float__") or isinstance(value, (str, complex)):
            raise OptionTypeError(f"{name} must be a number of seconds or None, not {value!r}")
        try:
            value = float(cast("Any", value))
        except OverflowError:
            if cast("Any", value) > 0:
                return None
            raise _negative(value, name) from None
        except (TypeError, ValueError):
            raise OptionTypeError(f"{name} must be a number of seconds or None, not {value!r}") from None
    number: float = value
    if number != number or number < 0:
        raise _negative(number, name)
    return None if number == float("inf") else number


def _negative(value: object, name: str) -> OptionError:
    return OptionError(f"{name} must not be {value!r}; give seconds from 0 (poll) upwards, or None to wait without end")


def check_count(value: object, name: str, minimum: int) -> int:
    """A whole number from ``minimum`` upwards. Raises OptionError (OptionTypeError for a wrong type)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionTypeError(f"{name} must be a whole number, not {value!r}")
    if value < minimum:
        raise OptionError(f"{name} must be {minimum} or more, not {value!r}")
    return value


def check_options(defaults: Options, given: Mapping[str, Any], *, is_async: bool = False) -> Options:
    """A subscription's options: what was given over the bus's defaults.

    Raises:
        OptionError: An unknown option, a value that cannot be, options that exclude each other. (OptionTypeError for
            a wrong type.)
    """
    if not given:
        return defaults
    for name, value in given.items():
        check = _CHECKS.get(name)
        if check is None:
            raise OptionTypeError(f"there is no option {name!r}{_hint(name, _NAMES)}")
        check(name, value)
    timeout = given.get("timeout")
    if timeout is not None:
        given = {**given, "timeout": check_timeout(timeout)}
    if given.get("block_timeout") is not None:
        given = {**given, "block_timeout": check_timeout(given["block_timeout"], "block_timeout")}
    if given.get("inline"):
        if is_async:
            raise OptionError("inline=True is for plain functions; a coroutine handler cannot run inside emit()")
        clash = [name for name in _QUEUED_ONLY if name in given and given[name] != getattr(Options(), name)]
        if clash:
            raise OptionError(
                f"inline=True excludes {', '.join(clash)}: an inline handler has no mailbox; drop one of them"
            )
        return Options(**given)
    options = defaults.but(**given)
    if options.overflow != "block":
        for name in ("block_timeout", "max_waiting"):
            if given.get(name) is not None:
                raise OptionError(
                    f"{name} is for overflow='block', not for overflow={options.overflow!r}; drop one of them"
                )
        if options.block_timeout is not None or options.max_waiting is not None:
            options = options.but(block_timeout=None, max_waiting=None)
    return options


def check_bus_options(**given: Any) -> tuple[BusOptions, Options]:
    """A bus's options, and the defaults of its subscriptions."""
    for name in given:
        if name not in _BUS_NAMES and name not in _DEFAULTABLE:
            raise OptionTypeError(f"there is no bus option {name!r}{_hint(name, (*_BUS_NAMES, *_DEFAULTABLE))}")
    own = {name: value for name, value in given.items() if name in _BUS_NAMES}
    if own.get("workers") is not None:
        check_count(own["workers"], "workers", 1)
    most = check_count(own.get("max_workers", 64), "max_workers", 1)
    if (own.get("workers") or 1) > most:
        raise OptionError(f"workers={own['workers']} must not exceed max_workers={most}")
    if own.get("max_depth") is not None:
        check_count(own["max_depth"], "max_depth", 0)
    for name in ("handler_timeout", "close_timeout", "exit_timeout"):
        if name in own:
            own[name] = check_timeout(own[name], name)
    if "exit_timeout" in own and own["exit_timeout"] is None:
        raise OptionError("exit_timeout must have an end, or a stuck handler would keep the interpreter from exiting")
    if own.get("handler_timeout") == 0:
        raise OptionError("handler_timeout must be more than 0 seconds, or None")
    _check_flag("propagate_errors", own.get("propagate_errors", False))
    _check_callable("on_error", own.get("on_error"))
    if _makes_coroutine(own.get("on_error")):
        raise OptionTypeError(
            f"on_error must be a plain function, and {own['on_error']!r} is `async def`, which nobody would await;"
            " for that, register it for the topic 'bus/error'"
        )
    options = BusOptions(**own)
    defaults = check_options(Options(), {name: value for name, value in given.items() if name in _DEFAULTABLE})
    return options, defaults if options.handler_timeout is None else defaults.but(timeout=options.handler_timeout)


def _hint(name: str, known: tuple[str, ...]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise OptionTypeError(f"{name} must be True or False, not {value!r}")


def _check_callable(name: str, value: object) -> None:
    if value is not None and not callable(value):
        raise OptionTypeError(f"{name} must be callable or None, not {value!r}")


def _makes_coroutine(value: Any) -> bool:
    """Whether calling it makes a coroutine, as far as its code tells (``inspect`` would cost every import)."""
    value = getattr(value, "func", value)  # of a functools.partial
    for function in (getattr(value, "__func__", value), getattr(value, "__call__", None)):  # noqa: B004
        if getattr(getattr(function, "__code__", None), "co_flags", 0) & 0x80:
            return True
    return False


def check_plain(name: str, value: object) -> None:
    """A callable that makes no coroutine, or None. Raises OptionTypeError."""
    _check_callable(name, value)
    if _makes_coroutine(value):
        raise OptionTypeError(f"{name} must be a plain function, not {value!r}, whose answer nobody would await")


def _check_text(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise OptionTypeError(f"{name} must be a string or None, not {value!r}")
    if not value:
        raise OptionError(f"{name} must not be empty; leave it out to have none")


def _check_positive_time(name: str, value: object) -> None:
    if check_timeout(value, name) == 0:
        raise OptionError(f"{name} must be more than 0 seconds, or None, not {value!r}")


def _check_time(name: str, value: object) -> None:
    check_timeout(value, name)


def _check_overflow(name: str, value: object) -> None:
    if value not in get_args(Overflow):
        kind = OptionError if isinstance(value, str) else OptionTypeError
        raise kind(f"{name} must be one of {', '.join(get_args(Overflow))}, not {value!r}")


def _at_least(minimum: int, optional: bool) -> Callable[[str, Any], None]:
    def check(name: str, value: object) -> None:
        if value is not None or not optional:
            check_count(value, name, minimum)

    return check


def _check_model(name: str, value: object) -> None:
    if not is_type_form(value):
        raise OptionTypeError(f"{name} must be a model class, another type or a typing form, not {value!r}")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "inline": _check_flag,
    "concurrency": _at_least(1, optional=False),
    "key": check_plain,
    "lane": _check_text,
    "timeout": _check_positive_time,
    "max_pending": _at_least(1, optional=True),
    "overflow": _check_overflow,
    "block_timeout": _check_time,
    "max_waiting": _at_least(0, optional=True),
    "payload": _check_model,
    "unique": _check_flag,
    "observer": _check_flag,
    "name": _check_text,
}
