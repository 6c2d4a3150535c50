"""Names that tell nothing: HMAC with a secret key that never leaves the index's private folder."""

from __future__ import annotations

import re
import secrets
from hashlib import sha256
from pathlib import Path
from typing import Literal

from medssl.errors import ArchiveError
from medssl.files import open_regular, write_atomically

Kind = Literal["volume", "patient", "study", "series", "instance"]
_LETTER: dict[Kind, str] = {"volume": "v", "patient": "p", "study": "s", "series": "r", "instance": "i"}
_BLOCK = 64
"""Bytes that SHA-256 takes at once."""
_PATTERN = re.compile(r"[vpsri][0-9a-f]{20}")


def is_pseudonym(name: object) -> bool:
    """Has this the form of a name that `Pseudonyms` gives? What a table calls a volume becomes the name of a file."""
    return isinstance(name, str) and _PATTERN.fullmatch(name) is not None


class Pseudonyms:
    """The same name for the same thing, for whoever holds the key; for everybody else no way back."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        # An HMAC (RFC 2104) with the halves of the key already hashed: that of `hmac` takes twice as long, and each file has a name.
        padded = (key if len(key) <= _BLOCK else sha256(key).digest()).ljust(_BLOCK, b"\0")
        self._inner, self._outer = (sha256(padded.translate(bytes(byte ^ mask for byte in range(256)))) for mask in (0x36, 0x5C))

    def __reduce__(self) -> tuple[type[Pseudonyms], tuple[bytes]]:
        return Pseudonyms, (self._key,)

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
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(f"{kind}\0{identity}".encode("utf-8", "surrogateescape"))
        outer.update(inner.digest())
        return _LETTER[kind] + outer.digest()[:10].hex()
