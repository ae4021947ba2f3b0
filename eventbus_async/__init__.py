"""The event bus seen from asyncio: every public name of ``eventbus``, in its own flavour where there is one."""

import typing as _typing

from eventbus import BusClosedError as BusClosedError
from eventbus import BusStats as BusStats
from eventbus import CloseReport as CloseReport
from eventbus import DeadlockError as DeadlockError
from eventbus import DispatcherError as DispatcherError
from eventbus import Event as Event
from eventbus import EventBus as EventBus
from eventbus import EventBusError as EventBusError
from eventbus import EventCycleError as EventCycleError
from eventbus import EventTimeoutError as EventTimeoutError
from eventbus import HandlerError as HandlerError
from eventbus import HandlerTypeError as HandlerTypeError
from eventbus import Latency as Latency
from eventbus import MailboxFullError as MailboxFullError
from eventbus import NoHandlerError as NoHandlerError
from eventbus import NotRegisteredError as NotRegisteredError
from eventbus import OptionError as OptionError
from eventbus import OptionTypeError as OptionTypeError
from eventbus import Outcome as Outcome
from eventbus import PayloadError as PayloadError
from eventbus import PoolStats as PoolStats
from eventbus import ServiceError as ServiceError
from eventbus import Status as Status
from eventbus import SubscriptionError as SubscriptionError
from eventbus import SubscriptionStats as SubscriptionStats
from eventbus import Topic as Topic
from eventbus import TopicError as TopicError
from eventbus import TopicTypeError as TopicTypeError
from eventbus import UnexpectedEventError as UnexpectedEventError
from eventbus import __version__ as __version__
from eventbus import handles as handles
from eventbus.lowlevel import later as _later

from ._await import Receipt as Receipt
from ._bus import AsyncEventBus as AsyncEventBus
from ._bus import SyncEventBus as SyncEventBus
from ._scope import Scope as Scope
from ._stream import Stream as Stream
from ._subscription import Subscription as Subscription

if _typing.TYPE_CHECKING:
    from eventbus import RecordedEvents as RecordedEvents
    from eventbus import Restart as Restart
    from eventbus import ServiceStatus as ServiceStatus
    from eventbus import ServiceStatusPayload as ServiceStatusPayload

    from ._group import ServiceGroup as ServiceGroup
    from ._service import BaseService as BaseService
    from ._synchronizer import EventSynchronizer as EventSynchronizer
else:  # or type checkers would take any name for one of ours
    __getattr__, __dir__ = _later(
        globals(),
        {
            "BaseService": "._service",
            "EventSynchronizer": "._synchronizer",
            "RecordedEvents": "eventbus",
            "Restart": "eventbus",
            "ServiceGroup": "._group",
            "ServiceStatus": "eventbus",
            "ServiceStatusPayload": "eventbus",
        },
    )
    __all__ = [each for each in __dir__() if each[0].isalpha()]  # pytest puts in "@py_builtins"
