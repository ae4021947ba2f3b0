"""The event bus for programs that mix threads and asyncio: the thread-safe core. See the README."""

import typing as _typing

from ._bus import EventBus as EventBus
from ._engine.receipt import Receipt as Receipt
from ._engine.subscription import Subscription as Subscription
from ._errors import BusClosedError as BusClosedError
from ._errors import DeadlockError as DeadlockError
from ._errors import DispatcherError as DispatcherError
from ._errors import EventBusError as EventBusError
from ._errors import EventCycleError as EventCycleError
from ._errors import EventTimeoutError as EventTimeoutError
from ._errors import HandlerTypeError as HandlerTypeError
from ._errors import MailboxFullError as MailboxFullError
from ._errors import NoHandlerError as NoHandlerError
from ._errors import NotRegisteredError as NotRegisteredError
from ._errors import OptionError as OptionError
from ._errors import OptionTypeError as OptionTypeError
from ._errors import PayloadError as PayloadError
from ._errors import ServiceError as ServiceError
from ._errors import SubscriptionError as SubscriptionError
from ._errors import TopicError as TopicError
from ._errors import TopicTypeError as TopicTypeError
from ._errors import UnexpectedEventError as UnexpectedEventError
from ._later import later as _later
from ._values.event import Event as Event
from ._values.stats import BusStats as BusStats
from ._values.stats import CloseReport as CloseReport
from ._values.stats import HandlerError as HandlerError
from ._values.stats import Latency as Latency
from ._values.stats import Outcome as Outcome
from ._values.stats import PoolStats as PoolStats
from ._values.stats import Status as Status
from ._values.stats import SubscriptionStats as SubscriptionStats
from ._values.topic import Topic as Topic

if _typing.TYPE_CHECKING:
    from ._scope import Scope as Scope
    from ._scope import handles as handles
    from ._services.group import ServiceGroup as ServiceGroup
    from ._services.payload import ServiceStatusPayload as ServiceStatusPayload
    from ._services.service import BaseService as BaseService
    from ._services.status import Restart as Restart
    from ._services.status import ServiceStatus as ServiceStatus
    from ._stream import Stream as Stream
    from ._testing.synchronizer import EventSynchronizer as EventSynchronizer
    from ._testing.synchronizer import RecordedEvents as RecordedEvents
else:  # or type checkers would take any name for one of ours
    __getattr__, __dir__ = _later(
        globals(),
        {
            "BaseService": "._services.service",
            "EventSynchronizer": "._testing.synchronizer",
            "RecordedEvents": "._testing.synchronizer",
            "Restart": "._services.status",
            "Scope": "._scope",
            "ServiceGroup": "._services.group",
            "ServiceStatus": "._services.status",
            "ServiceStatusPayload": "._services.payload",
            "Stream": "._stream",
            "handles": "._scope",
        },
    )
    __all__ = [each for each in __dir__() if each[0].isalpha()]  # pytest puts in "@py_builtins"

__version__ = "0.1.0"  # the only place
