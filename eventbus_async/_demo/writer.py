"""The blocking part: a plain function that writes every event to a file, one JSON object a line.

It blocks in ``write`` and ``flush``, so it belongs on the dispatcher's threads, never on a loop. Its subscription runs
one call at a time, in order, so the file needs no lock.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from eventbus import Event  # at run time: the bus reads the handler's annotation

__all__ = ["Writer"]


class Writer:
    """A file of events. Without a path it is a temporary one, removed at ``close()``."""

    def __init__(self, path: Path | None) -> None:
        self.lines = 0
        self.temporary = path is None
        if path is None:
            self._file: Any = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed by close()
                "w", encoding="utf-8", prefix="eventbus-demo-", suffix=".jsonl", delete=False
            )
        else:
            self._file = path.open("w", encoding="utf-8")
        self.path = Path(self._file.name)

    def write(self, event: Event) -> None:
        """The handler."""
        payload = event.payload
        row = {
            "seq": event.seq,
            "time": event.timestamp,
            "topic": event.topic,
            "parent": event.parent_id,
            "payload": payload.model_dump(mode="json") if isinstance(payload, BaseModel) else payload,
        }
        self._file.write(json.dumps(row, default=str) + "\n")
        self._file.flush()
        self.lines += 1

    def close(self) -> None:
        """Close the file; a temporary one goes."""
        try:
            self._file.close()
        finally:
            if self.temporary:
                self.path.unlink(missing_ok=True)
