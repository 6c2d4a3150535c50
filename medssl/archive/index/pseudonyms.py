"""Names that tell nothing: HMAC with a secret key that never leaves the index's private folder."""

from __future__ import annotations

import hmac
import re
import secrets
from pathlib import Path
from typing import Literal

from medssl.errors import ArchiveError
from medssl.files import open_regular, write_atomically

Kind = Literal["volume", "patient", "study", "series", "instance"]
_LETTER: dict[Kind, str] = {"volume": "v", "patient": "p", "study": "s", "series": "r", "instance": "i"}
_PATTERN = re.compile(r"[vpsri][0-9a-f]{20}")


def is_pseudonym(name: object) -> bool:
    """Has this the form of a name that `Pseudonyms` gives? What a table calls a volume becomes the name of a file."""
    return isinstance(name, str) and _PATTERN.fullmatch(name) is not None


class Pseudonyms:
    """The same name for the same thing, for whoever holds the key; for everybody else no way back."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def of(cls, file: Path) -> Pseudonyms:
        """With the key of `file`, which is made on first use, by who holds the index's lock."""
        if not file.exists():
            write_atomically(file, secrets.token_hex(32).encode())
        with open_regular(file) as stream:
            key = stream.read(4096).strip()
        if len(key) != 64:
            raise ArchiveError("the index's key file is damaged. Restore it, or remove the index folder and index the archive again.")
        return cls(key)

    def name(self, kind: Kind, identity: str) -> str:
        """A letter for the kind and 20 hexadecimal digits."""
        digest = hmac.digest(self._key, f"{kind}\0{identity}".encode("utf-8", "surrogateescape"), "sha256")
        return _LETTER[kind] + digest[:10].hex()
