"""Whose cases they are: told by a pattern, a table or the list itself, else by names of which that is known, else each its own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medssl.errors import ConfigError
from medssl.volumes.cases.case import OWN, Case
from medssl.volumes.cases.datalists import Listed
from medssl.volumes.patients import by_pattern, by_table

_KNOWN = {
    "BIDS names (sub-01_...)": re.compile(r"(sub-[A-Za-z0-9]+)(?![A-Za-z0-9])"),
    "names that begin with a patient (patient001_...)": re.compile(r"((?:patient|subject)[-_ ]?[0-9]+)(?![A-Za-z0-9])", re.IGNORECASE),
    "TCGA barcodes (TCGA-02-0006-...)": re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?![A-Za-z0-9])", re.IGNORECASE),
    "BraTS names (BraTS-GLI-00001-000)": re.compile(r"(BraTS-[A-Za-z]+-[0-9]{5})-[0-9]{3}(?![0-9])", re.IGNORECASE),
}
"""Names whose form says what the patient is. A number alone may be a site, a visit or a scan: such names are left to `data.patient`."""


@dataclass(frozen=True)
class Whose:
    """The patient of a case, and how that is known."""

    patient: str
    by: str


def patients_of(items: Iterable[Listed], pattern: str | None, table: str | None) -> dict[str, Whose]:
    """Case -> patient: what was told counts for all cases, and a case that it does not name is a `DataError`."""
    cases = {item.name: item for item in items}
    if pattern is not None:
        found = by_pattern(list(cases), pattern, "data.patient")
        return {name: Whose(patient, f"data.patient {pattern!r}") for name, patient in found.items()}
    if table is not None:
        listed = by_table(list(cases), Path(table), "data.patients")
        return {name: Whose(patient, Path(table).name) for name, patient in listed.items()}
    return {name: _by_list_or_name(item) for name, item in cases.items()}


def _by_list_or_name(item: Listed) -> Whose:
    if item.patient is not None:
        return Whose(item.patient, "the list of cases")
    for by, form in _KNOWN.items():
        match = form.match(item.name) or form.match(item.images[0].name)
        if match:
            return Whose(match[1].lower(), by)
    return Whose(item.name, OWN)


def refuse_divided(training: Sequence[Case], validation: Sequence[Case]) -> None:
    """`ConfigError` where cases of one patient are trained on and validated with."""
    trained = {case.patient: case for case in training}
    both = [(trained[case.patient], case) for case in validation if case.patient in trained]
    if both:
        seen, held = both[0]
        count, by = len({case.patient for _, case in both}), held.patient_by or "name"
        raise ConfigError(
            f"the split divides {count} patient{'s' * (count > 1)}, such as {held.patient} (by {by}): "
            f"'{seen.name}' is trained on and '{held.name}' validates, so the Dice would be too good. Correct the split, "
            "or say by data.patient or data.patients whose cases they are."
        )


def describe_patients(training: Sequence[Case], validation: Sequence[Case]) -> str:
    """A line: how many cases of how many patients are trained on and validated with, and how the patients are known."""
    cases = [*training, *validation]
    ways = Counter(case.patient_by for case in cases)
    own = ways.pop(OWN, 0)
    known = ", ".join(f"{by}: {count} cases" for by, count in ways.items()) if own or len(ways) > 1 else next(iter(ways), "")
    parts = [f"{_counted(training)} to train on, {_counted(validation)} to validate with"]
    parts += [f"patients are known by {known}"] if known else []
    if own:
        alike = _alike([case.name for case in cases if case.patient_by == OWN])
        whose = f"{own} cases" if known else "names do not say whose cases they are: each"
        parts.append(f"{whose} count{'' if known else 's'} as a patient of {'their' if known else 'its'} own (data.patient says otherwise)")
        parts += [f"'{alike[0]}' and '{alike[1]}' begin alike" if alike else ""]
    if not validation and len(cases) > 1 and len({case.patient for case in cases}) == 1:
        parts.append("nothing is validated, since all cases are of one patient")
    return "; ".join(part for part in parts if part)


def _counted(cases: Sequence[Case]) -> str:
    patients = len({case.patient for case in cases})
    return f"{len(cases)} case{'s' * (len(cases) != 1)} of {patients} patient{'s' * (patients != 1)}" if cases else "none"


def _alike(names: Sequence[str]) -> tuple[str, str] | None:
    """Two names that differ in their last part alone, where others differ in more: they may well be of one patient."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.split(r"[_.\- ](?=[^_.\- ]*$)", name)[0], []).append(name)
    several = [group for group in groups.values() if len(group) > 1]
    return (several[0][0], several[0][1]) if len(groups) > 1 and several else None
