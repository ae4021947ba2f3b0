"""The blocking part: a plain function that writes every event to a file, one JSON object a line.

It blocks in ``write``, so it belongs on the dispatcher's threads, never on a loop. Its subscription runs
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
        # Unbuffered: what a full disk refuses is that event's error, and not once more at every later one.
        if path is None:
            self._file: Any = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed by close()
                "wb", buffering=0, prefix="eventbus-demo-", suffix=".jsonl", delete=False
            )
        else:
            self._file = path.open("wb", buffering=0)
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
        line = (json.dumps(row, default=str) + "\n").encode()
        if self._file.write(line) != len(line):
            raise OSError(f"only a part of a line could be written to {self.path}")
        self.lines += 1

    def close(self) -> None:
        """Close the file; a temporary one goes."""
        try:
            self._file.close()
        finally:
            if self.temporary:
                self.path.unlink(missing_ok=True)
