"""Whose the files of an index are, where nothing in them says it: by their names, which stay in the index's private part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medssl.archive.nifti.names import stem
from medssl.errors import ConfigError
from medssl.volumes.patients import by_pattern, by_table, check_pattern

if TYPE_CHECKING:
    from medssl.archive import Index, VolumeRecord


def regrouped(index: Index, records: Sequence[VolumeRecord], pattern: str | None, table: str | Path | None) -> list[VolumeRecord]:
    """The same records; those of NIfTI files and pictures that the pattern or table gives to one patient share a pseudonym.

    The pattern is searched in the file's name with its folders, a case of the table is its name without ending. Raises `ConfigError` for
    what is no pattern and `DataError` where a file has no patient; no name of a file is shown.
    """
    if pattern is None and table is None:
        return list(records)
    if pattern is not None and table is not None:
        raise ConfigError("give patient or patients, not both")
    names = {record.volume: Path(index.file(record.volume)[1]).as_posix() for record in records if record.kind != "dicom"}
    if pattern is not None:
        try:
            check_pattern(pattern)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        found = by_pattern(list(names.values()), pattern, "patient", shown=False)
    else:
        names = {volume: stem(name) for volume, name in names.items()}
        found = by_table(list(names.values()), Path(str(table)), "patients", shown=False)
    shared = {patient: index.pseudonym(patient) for patient in set(found.values())}
    return [replace(one, patient=shared[found[names[one.volume]]]) if one.volume in names else one for one in records]
