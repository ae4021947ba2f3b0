"""The one door for those who build on the core: the asyncio facade first. Not stable beyond the repository.

It re-exports, and has no logic.
"""

import typing as _typing

from ._bus import check_emit as check_emit
from ._bus import check_extras as check_extras
from ._bus import core_of as core_of
from ._bus import default as default
from ._bus import first_answer as first_answer
from ._bus import stream_options as stream_options
from ._engine import hot as hot
from ._engine import primitives as primitives
from ._engine.buffer import StreamMailbox as StreamMailbox
from ._engine.call import TooLate as TooLate
from ._engine.call import argument as argument
from ._engine.call import context_of as context_of
from ._engine.call import enter as enter
from ._engine.call import strip as strip
from ._engine.closing import CLOSED as CLOSED
from ._engine.closing import close_soon as close_soon
from ._engine.closing import closed_waiter as closed_waiter
from ._engine.delivery import PENDING as PENDING
from ._engine.delivery import RUNNING as RUNNING
from ._engine.delivery import SETTLED as SETTLED
from ._engine.delivery import Delivery as Delivery
from ._engine.delivery import current as current
from ._engine.delivery import held as held
from ._engine.dispatcher import Executor as Executor
from ._engine.draining import drain_waiter as drain_waiter
from ._engine.draining import overdue as overdue
from ._engine.engine import Engine as Engine
from ._engine.flow import Call as Call
from ._engine.flow import Flow as Flow
from ._engine.flow import Pause as Pause
from ._engine.mailbox import ACTIVE as ACTIVE
from ._engine.mailbox import DRAINING as DRAINING
from ._engine.mailbox import ENDED as ENDED
from ._engine.mailbox import Mailbox as Mailbox
from ._engine.monitor import Interrupted as Interrupted
from ._engine.process import living as living
from ._engine.reporting import report as report
from ._engine.subscription import Handle as Handle
from ._engine.subscription import quiet_waiter as quiet_waiter
from ._engine.turn import REFUSED as REFUSED
from ._engine.turn import turn as turn
from ._engine.waits import ALL as ALL
from ._engine.waits import Waiter as Waiter
from ._engine.waits import begin as begin
from ._engine.waits import end as end
from ._engine.waits import notify as notify
from ._later import later as later
from ._scope import BusScope as BusScope
from ._scope import ScopeCore as ScopeCore
from ._scope import methods_to_register as methods_to_register
from ._values.handler import HandlerSpec as HandlerSpec
from ._values.options import check_timeout as check_timeout
from ._values.topic import refuse_bare as refuse_bare

if _typing.TYPE_CHECKING:
    from ._bus import BusArguments as BusArguments
    from ._bus import OptionArguments as OptionArguments
    from ._services.group import GroupCore as GroupCore
    from ._services.service import ServiceCore as ServiceCore
    from ._services.status import ACCEPTING as ACCEPTING
    from ._services.turns import Turn as Turn
    from ._testing.synchronizer import SynchronizerCore as SynchronizerCore
else:
    __getattr__, __dir__ = later(
        globals(),
        {
            "GroupCore": "._services.group",
            "ACCEPTING": "._services.status",
            "ServiceCore": "._services.service",
            "Turn": "._services.turns",
            "SynchronizerCore": "._testing.synchronizer",
        },
    )
