"""What `_hot.c` offers; see there."""

from collections.abc import Mapping
from typing import Any, TypeVar

from .delivery import Delivery
from .dispatcher import Dispatcher, Worker
from .engine import Engine
from .mailbox import Mailbox
from .receipt import Receipt

R = TypeVar("R", bound=Receipt)

def bind(names: Mapping[str, Any], /) -> None: ...
def bind_loops(names: Mapping[str, Any], /) -> None: ...
def use(on: bool, /) -> bool: ...
def emit(
    engine: Engine,
    make: type[R],
    topic: Any,
    payload: Any,
    headers: Any,
    require: Any,
    follow: Any,
    propagate_errors: Any,
    binding: Any = ...,
    /,
) -> R | None: ...
def flow(
    engine: Engine, worker: Worker, delivery: Delivery, box: Mailbox, until: float, /
) -> tuple[Delivery, Any, BaseException | None, float] | Delivery | None: ...
def resume(engine: Engine, pool: Dispatcher, worker: Worker, /) -> Delivery | None: ...
def drain(
    slot: Any, delivery: Delivery, until: float, /
) -> tuple[Delivery, Any, BaseException | None] | bool | Mailbox | Delivery | None: ...
def serve(executor: Any, slot: Any, loop: Any, task: Any, until: float, /) -> bool: ...
def attend(binding: Any, receipt: Receipt, /) -> bool: ...
def track(delivery: Any, receipt: Receipt = ..., /) -> None: ...
