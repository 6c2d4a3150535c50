"""Files that are there whole or not at all, and files of others: read only where they are regular files of a bearable size."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

JSON_LIMIT = 2**28
"""Bytes of a JSON file that is read: a row of a store with many labels has some megabytes."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


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


def open_regular(path: str | Path) -> BinaryIO:
    """The file opened for reading; a pipe, a socket or a device raises `OSError` at once, where opening it would wait or act."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return os.fdopen(descriptor, "rb")


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises `OSError`, or `ValueError` for what is no JSON, too large or nested too deeply."""
    with open_regular(path) as file:
        content = file.read(JSON_LIMIT + 1)
    if len(content) > JSON_LIMIT:
        raise ValueError(f"it is larger than {JSON_LIMIT} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_plain_name(name: object) -> bool:
    """Is this a name of one file and nothing else: letters, digits, dot, dash and underscore, no path and not hidden?"""
    return isinstance(name, str) and _PLAIN_NAME.fullmatch(name) is not None


ROWS_SHOWN = 20


def html_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """What a notebook shows of something with rows: its title and the first of them."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows[:ROWS_SHOWN])
    more = f"<p>and {len(rows) - ROWS_SHOWN} more</p>" if len(rows) > ROWS_SHOWN else ""
    return f"<p>{escape(title)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
