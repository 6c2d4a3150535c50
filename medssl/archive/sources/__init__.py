"""Where files come from: read-only access to folders (`folder`), zip and tar files (`packed`, `tar_members`).

`locations` finds the source of a location, and brings medssl's own in by the hook that plugins use.
"""

from medssl.archive.sources.locations import medssl_archive_sources

__all__ = ["medssl_archive_sources"]
