"""Whose images are, told by a pattern in their names or by a table."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from medssl.errors import DataError, MissingInput
from medssl.faults import faults_as


def check_pattern(pattern: str) -> None:
    """Raises `ValueError` for what is no regular expression with a group."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"patient: {pattern!r} is no regular expression: {error}") from error
    if not groups:
        raise ValueError(f"patient: {pattern!r} has no group that is the patient, as in '(p[0-9]+)_'")


def by_pattern(names: Sequence[str], pattern: str, option: str, shown: bool = True) -> dict[str, str]:
    """Name -> the group `patient` of the pattern, else its first; `DataError` where it finds none in a name, which is `shown` or not."""
    compiled = re.compile(pattern)
    group = "patient" if "patient" in compiled.groupindex else 1
    found = {name: match[group] for name in names if (match := compiled.search(name)) and match[group]}
    _all_named(names, found, f"{option} {pattern!r} finds no patient in", shown)
    return found


def by_table(names: Sequence[str], path: Path, option: str, shown: bool = True) -> dict[str, str]:
    """Name -> patient, of a CSV file with the columns case and patient; `DataError` where it lacks a name, which is `shown` or not."""
    if not path.is_file():
        raise MissingInput(f"there is no file {path}. Give {option} the path of a CSV file with the columns case and patient.")
    try:
        with faults_as(DataError, f"{path} cannot be read"), path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from error
    if rows and not {"case", "patient"} <= rows[0].keys():
        raise DataError(f"{path} has the columns {', '.join(map(str, rows[0]))}; {option} needs case and patient.")
    found: dict[str, str] = {}
    for row in rows:
        case, patient = (row["case"] or "").strip(), (row["patient"] or "").strip()
        if patient and found.setdefault(case, patient) != patient:
            raise DataError(f"{path} names two patients of the case '{case}': {found[case]} and {patient}. Correct one.")
    _all_named(names, found, f"{path} names no patient of", shown)
    return {name: found[name] for name in names}


def _all_named(names: Sequence[str], found: Mapping[str, str], what: str, shown: bool) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        such = f", such as '{missing[0]}'" if shown else ""
        raise DataError(f"{what} {len(missing)} of {len(names)} cases{such}. Every case needs its patient.")
