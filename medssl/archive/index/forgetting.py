"""Patients who have withdrawn: nothing of them stays in an index, and later scans pass over them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medssl.archive.index.compacting import rewrite
from medssl.archive.index.contents import Contents
from medssl.archive.index.folder import IndexFolder
from medssl.archive.index.pseudonyms import Pseudonyms
from medssl.archive.index.selecting import forgotten_name, patient_id, read_forgotten, write_forgotten
from medssl.errors import ArchiveError, MedsslError
from medssl.faults import fault


@dataclass(frozen=True)
class Forgotten:
    """What of an index was removed."""

    patients: frozenset[str]
    """Pseudonyms, by which stores know them."""
    volumes: frozenset[str]
    files: int
    unknown: int
    """Patients of whom the index held nothing."""


def forget_in_index(folder: str | Path, patients: Iterable[str]) -> Forgotten:
    """Remove the patients of these PatientIDs from an index, its private part too. What is scanned later of them is not kept.

    Raises `MissingInput` or `ArchiveError`.
    """
    place = Path(folder)
    IndexFolder.opened(place)
    wanted = frozenset(patients)
    try:
        with IndexFolder.held(place) as root:
            found = _found(Contents.of(root), wanted, Pseudonyms.of(root.key))
            before = read_forgotten(root)
            called = {name: found.called.get(name, frozenset()) | before.get(name, frozenset()) for name in found.names}
            # First of all: whatever is interrupted after this does not bring them back.
            write_forgotten(before | called, root)
            for shard in root.scan.glob("*") if root.scan.is_dir() else ():
                shard.unlink()
            if found.files:
                rewrite(root, found.files)
            unknown = sum(not found.called.get(name) for name in found.names)
            return Forgotten(frozenset().union(*called.values()), frozenset(found.volumes), len(found.files), unknown)
    except MedsslError:
        raise
    except OSError as error:
        raise ArchiveError(fault(error, f"the index {place} cannot be written")) from error


@dataclass
class _Found:
    """What an index holds of patients."""

    names: set[str]
    """`forgotten_name` of each."""
    called: dict[str, frozenset[str]] = field(default_factory=dict)
    """That name -> pseudonyms."""
    volumes: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)


def _found(contents: Contents, wanted: frozenset[str], names: Pseudonyms) -> _Found:
    found = _Found({forgotten_name(one, names) for one in wanted})
    for table in contents.private():
        theirs = [one for one in pc.unique(table["patient"]).to_pylist() if patient_id(one) in wanted]
        table = table.filter(pc.is_in(table["patient"], pa.array(theirs, pa.string())))
        for row in table.select(["file", "volume", "kind", "patient"]).to_pylist():
            name = forgotten_name(patient_id(row["patient"]), names)
            called = names.name("patient", f"{row['kind']}\n{row['patient']}")
            found.called[name] = found.called.get(name, frozenset()) | {called}
            found.files.add(row["file"])
            found.volumes |= {row["volume"]} - {None}
    return found
