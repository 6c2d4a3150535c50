"""The location of a PACS: its address, and the conditions that its series must meet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from pydicom.datadict import tag_for_keyword

from medssl.errors import UsageError

EXAMPLE = "dicomweb+https://pacs.example.org/dicom-web?Modality=CT"
_SCHEME = "dicomweb+"
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_PATH = re.compile(r"[A-Za-z0-9._~/-]*")
_TAG = re.compile(r"[0-9A-Fa-f]{8}")


@dataclass(frozen=True)
class Place:
    """One server."""

    url: str
    """Where its DICOMweb services begin, without a slash at the end."""
    conditions: tuple[tuple[str, str], ...] = ()
    """Attribute (keyword or tag) and value, as QIDO-RS matches them."""

    @property
    def server(self) -> str:
        """What messages call it: host and port, no path and no condition, which may name a patient."""
        return urlsplit(self.url).netloc

    @property
    def encrypted(self) -> bool:
        """Is it asked over TLS?"""
        return self.url.startswith("https:")


def place_of(location: str) -> Place:
    """The server and the conditions of a location; raises `UsageError`, which shows neither the location nor a value of it."""
    scheme, found, rest = location.partition("+")
    try:
        parts = urlsplit(rest)
        port = parts.port
    except ValueError:
        raise UsageError(f"the address of the PACS cannot be read. Write it as {EXAMPLE}") from None
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise UsageError(
            "the address of the PACS holds a user name or password; the index would keep it. "
            "Leave it out, and set MEDSSL_DICOMWEB_USER and MEDSSL_DICOMWEB_PASSWORD."
        )
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    sound = scheme + found == _SCHEME and parts.scheme in ("http", "https") and _HOST.fullmatch(host) and _PATH.fullmatch(parts.path)
    if not sound or parts.fragment:
        raise UsageError(f"the address of the PACS cannot be read. Write it as {EXAMPLE}")
    netloc = host if port is None else f"{host}:{port}"
    return Place(f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}", _conditions(parts.query))


def _conditions(query: str) -> tuple[tuple[str, str], ...]:
    pairs = parse_qsl(query, keep_blank_values=True)
    for number, (name, value) in enumerate(pairs, 1):
        # Neither is shown where it is unknown: whoever writes a token here has written a secret.
        if not (_TAG.fullmatch(name) or tag_for_keyword(name) is not None):
            raise UsageError(
                f"condition {number} of the PACS's address is no DICOM attribute. Write keywords as in {EXAMPLE}; "
                "everything else is set in the environment (MEDSSL_DICOMWEB_...)."
            )
        if not value:
            raise UsageError(f"the condition {name} of the PACS's address has no value. Write it as in {EXAMPLE}")
    if len({name for name, _ in pairs}) < len(pairs):
        raise UsageError(
            "two conditions of the PACS's address are on one attribute. Join their values as QIDO-RS does (UID,UID or DATE-DATE)."
        )
    return tuple(pairs)
