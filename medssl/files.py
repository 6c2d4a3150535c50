"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4


def write_atomically(path: Path, content: bytes, *, private: bool = False) -> None:
    """All of `content` under `path`, or what was there before: temporary name beside it, synced, renamed.

    A `private` file can be read by its owner alone (mode 0600), any other by whom the umask lets. Raises `OSError`, which the
    caller turns into an error that says what could not be written.
    """
    waiting = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    descriptor = os.open(waiting, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600 if private else 0o666)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        waiting.replace(path)
    finally:
        # Gone after the rename; still there after a fault or an interruption.
        waiting.unlink(missing_ok=True)
