"""``python -m eventbus demo``: a small monitor of the machine that it runs on, and a real program for the bus.

Sampler threads (``samplers``) read figures (``figures``) and emit typed events (``events``); services on an event loop
(``services``) make digests and alarms of them; a blocking handler on the dispatcher (``writer``) writes everything to a
file; ``table`` shows it, ``summary`` accounts for every delivery, ``app`` puts it together.
"""

from .app import Settings as Settings
from .app import run as run
