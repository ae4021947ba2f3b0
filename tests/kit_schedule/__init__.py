"""A deterministic scheduler for the bus: see ``baton`` for how, ``world`` for what is proved of each schedule."""

from .baton import Abort as Abort
from .baton import Deadlock as Deadlock
from .baton import Diverged as Diverged
from .baton import Livelock as Livelock
from .baton import Scheduler as Scheduler
from .baton import Stuck as Stuck
from .baton import here as here
from .explore import Failed as Failed
from .explore import Program as Program
from .explore import Result as Result
from .explore import explore as explore
from .explore import replay as replay
from .strategies import DepthFirst as DepthFirst
from .strategies import Pct as Pct
from .strategies import Replay as Replay
from .strategies import Uniform as Uniform
