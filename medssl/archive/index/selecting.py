"""Which files of an archive are taken: those of a list of studies, and never those of patients who have withdrawn."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medssl.archive.index.folder import IndexFolder
from medssl.archive.index.pseudonyms import Pseudonyms
from medssl.archive.instance import SCHEMA, Instance, to_table
from medssl.archive.outcomes import Reason
from medssl.archive.tables import from_parquet, read_table, to_parquet, write_table
from medssl.errors import UsageError
from medssl.faults import faults_as
from medssl.files import holds_file, open_regular

_LARGEST = 2**28
_HEADERS = {
    **dict.fromkeys(("studyinstanceuid", "study", "studyuid"), "study"),
    **dict.fromkeys(("accessionnumber", "accession"), "accession"),
    **dict.fromkeys(("patientid", "patient"), "patient"),
}
"""What a column may be called -> the column of instances that it lists; of several the first of these counts."""
FORGOTTEN = pa.schema({"patient": pa.string(), "called": pa.string()})


@dataclass(frozen=True)
class Listed:
    """Studies of which a list was given."""

    columns: tuple[str, ...]
    """Where their values may stand."""
    values: frozenset[str]

    @property
    def digest(self) -> str:
        """Another one for another list."""
        return blake2b(repr((self.columns, sorted(self.values))).encode(), digest_size=8).hexdigest()


def read_list(file: str | Path) -> Listed:
    """The studies of a CSV file, one a line: of a column that its first line names StudyInstanceUID, AccessionNumber or PatientID (the
    first of these that is there), or of the only column, whichever of the three its values are. Raises `UsageError`."""
    path = Path(file)
    with faults_as(UsageError, f"the list {path} cannot be read"):
        if not holds_file(path):
            raise UsageError(f"there is no list at {path}. Give a CSV file with accession numbers, study UIDs or patient ids.")
        with open_regular(path) as stream:
            content = stream.read(_LARGEST)
    text = content.decode("utf-8-sig", "surrogateescape")
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=";" if ";" in text.partition("\n")[0] else ",") if any(row)]
    names = [_HEADERS.get("".join(cell.split()).replace("_", "").lower()) for cell in rows[0]] if rows else []
    known = [column for column in dict.fromkeys(_HEADERS.values()) if column in names]
    if not known and any(len(row) > 1 for row in rows):
        raise UsageError(
            f"the list {path} has several columns and names none of them StudyInstanceUID, AccessionNumber or PatientID in its first line."
        )
    place = names.index(known[0]) if known else 0
    values = frozenset(row[place].strip() for row in rows[1 if known else 0 :] if len(row) > place and row[place].strip())
    if not values:
        raise UsageError(f"the list {path} names no study. Put one accession number, study UID or patient id on each line.")
    return Listed(tuple(known[:1]) or ("study", "accession", "patient"), values)


def patient_id(patient: str) -> str:
    """The PatientID of an instance's `patient`, which may be followed by who gave it."""
    return patient.partition("\n")[0]


def forgotten_name(patient: str, names: Pseudonyms) -> str:
    """What a patient is called who is not to be indexed any more: it needs the number alone."""
    return names.name("patient", f"forgotten\n{patient}")


def read_forgotten(root: IndexFolder) -> dict[str, frozenset[str]]:
    """The names of `write_forgotten`; raises `ArchiveError`."""
    found: dict[str, set[str]] = {}
    for row in read_table(root.forgotten, FORGOTTEN).to_pylist() if holds_file(root.forgotten) else ():
        found.setdefault(row["patient"], set()).update(filter(None, [row["called"]]))
    return {patient: frozenset(called) for patient, called in found.items()}


def write_forgotten(names: Mapping[str, frozenset[str]], root: IndexFolder) -> None:
    """`forgotten_name` of each patient, and what they were called, by which stores know them."""
    rows = [{"patient": patient, "called": one} for patient in sorted(names) for one in sorted(names[patient]) or [""]]
    write_table(pa.Table.from_pylist(rows, schema=FORGOTTEN), root.forgotten)


@dataclass(frozen=True)
class Selection:
    """What is kept of the rows that were read."""

    listed: Listed | None
    forgotten: Collection[str]
    names: Pseudonyms

    def keep(self, shard: bytes) -> bytes:
        """Rows of a shard: none of patients who have withdrawn, and of studies that are not listed no more than which file it was."""
        if self.listed is None and not self.forgotten:
            return shard
        table = from_parquet(shard, SCHEMA)
        patients = table["patient"].to_pylist()
        gone = {one for one in set(patients) if one and forgotten_name(patient_id(one), self.names) in self.forgotten}
        table = table.filter(pc.invert(pc.is_in(table["patient"], pa.array(sorted(gone), pa.string()))))
        return to_parquet(table if self.listed is None else _of_listed(table, self.listed))


def _of_listed(table: pa.Table, listed: Listed) -> pa.Table:
    values = pa.array(sorted(listed.values), pa.string())
    taken = pc.equal(table["kind"], "")
    for column in listed.columns:
        ids = [patient_id(one) if column == "patient" else one for one in table[column].to_pylist()]
        taken = pc.or_(taken, pc.is_in(pa.chunked_array([pa.array(ids, pa.string())]), values))
    return pa.concat_tables([table.filter(taken), to_table(_stubs(table.filter(pc.invert(taken))))])


def _stubs(table: pa.Table) -> Sequence[Instance]:
    """One row a file, to know it again."""
    files = dict.fromkeys(zip(*(table[name].to_pylist() for name in ("source", "key", "size", "version")), strict=True))
    return [Instance(source, key, size=size, version=version, reason=Reason.NOT_LISTED.value) for source, key, size, version in files]
