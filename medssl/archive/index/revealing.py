"""The way back from a volume to the files that it was made of, for whoever may read the private part; each time is written down there."""

from __future__ import annotations

import getpass
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medssl.archive.index.folder import IndexFolder
from medssl.archive.index.reading import Index
from medssl.errors import UsageError
from medssl.faults import faults_as
from medssl.files import append_to


@dataclass(frozen=True)
class Revealed:
    """Private: where a volume comes from."""

    volume: str
    patient: str
    """PatientID."""
    study: str
    """StudyInstanceUID."""
    accession: str
    series: str
    """SeriesInstanceUID."""
    files: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """As `medssl volumes --reveal --json` prints it."""
        return asdict(self) | {"files": list(self.files)}


def reveal(folder: str | Path, volume: str) -> Revealed:
    """The files and real UIDs of a volume. When, who and which is first added to `private/revealed.log`.

    Raises `UsageError` for an unknown volume and where that cannot be written: then nothing is revealed.
    """
    index = Index(folder)
    slices = index.slices(volume)
    if not slices:
        raise UsageError(f"the index has no volume '{volume}'. List them with: medssl volumes {folder}")
    root = IndexFolder(Path(folder))
    entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "user": _user(), "volume": volume}
    with faults_as(UsageError, f"that a volume was revealed cannot be written to {root.revealed}"), append_to(root.revealed) as log:
        log.write(json.dumps(entry).encode() + b"\n")
        os.fsync(log.fileno())
    first = slices[0]
    places = index.places
    files = dict.fromkeys(os.path.join(places[one.source], os.fsdecode(one.key)) for one in slices)  # noqa: PTH118 - any encoding
    return Revealed(volume, first.patient, first.study, first.accession, first.series, tuple(files))


def _user() -> str:
    """Of the operating system, whatever the environment says."""
    if not hasattr(os, "getuid"):
        return getpass.getuser()
    import pwd

    try:
        return f"{pwd.getpwuid(os.getuid()).pw_name} ({os.getuid()})"
    except KeyError:
        return str(os.getuid())
