"""A PACS as an archive: series are searched by QIDO-RS, headers read as WADO-RS metadata, pixels fetched when a store is made.

location   what stands after `medssl index`: the server and the conditions of the search
settings   what comes from the environment: who asks, how fast, when, how often again
gate       how many requests are under way, how many a second, at which hours: over all processes of a machine
asking     one question to the server, with everything that may go wrong
source     the archive
"""

from __future__ import annotations

from medssl import hookimpl
from medssl.archive import ArchiveSource
from medssl_dicomweb.settings import Settings
from medssl_dicomweb.source import DicomwebSource

__all__ = ["DicomwebSource", "Settings"]


@hookimpl
def medssl_archive_sources() -> list[type[ArchiveSource]]:
    """The source that opens `dicomweb+https://...`."""
    return [DicomwebSource]
