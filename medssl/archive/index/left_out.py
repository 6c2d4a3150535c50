"""Which series are in no volume, and what would mend that: for whoever misses a scan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medssl.archive.outcomes import Reason, ending, remedy


@dataclass(frozen=True)
class LeftOut:
    """Files of one series that were rejected for one reason. Names are the index's pseudonyms."""

    series: str
    """Empty where not even that could be read."""
    modality: str
    rows: int
    """Of the matrix; 0 where it is unknown or differs."""
    columns: int
    manufacturer: str
    files: int
    reason: str
    remedy: str
    """What would make volumes of them."""

    def document(self) -> dict[str, Any]:
        """As `medssl volumes --left-out --json` prints it."""
        return asdict(self)


def left_out_of(parts: Iterable[pa.Table]) -> list[LeftOut]:
    """Of the public instance table, part by part; the largest first. What is no image, and duplicates, are not missed by anybody."""
    groups: dict[tuple[str, str], list[Any]] = {}
    reasons = [reason for reason in Reason if ending(reason) == "rejected"]
    for table in parts:
        rows = table.filter(pc.is_in(table["reason"], pa.array([reason.value for reason in reasons])))
        per_file = rows.group_by(["series", "reason", "modality", "rows", "columns", "manufacturer"])
        for row in per_file.aggregate([("file", "count_distinct")]).to_pylist():
            # What no series is known of may be in several parts.
            known = groups.setdefault((row["series"], row["reason"]), [set() for _ in _SAID] + [0])
            for values, name in zip(known, _SAID, strict=False):
                values.add(row[name])
            known[-1] += row["file_count_distinct"]
    found = [_left_out(series, reason, said, files) for (series, reason), (*said, files) in groups.items()]
    return sorted(found, key=lambda one: (-one.files, one.reason, one.series))


_SAID = ("modality", "rows", "columns", "manufacturer")


def _left_out(series: str, reason: str, said: Sequence[set[Any]], files: int) -> LeftOut:
    def common(name: str, otherwise: Any) -> Any:
        values = said[_SAID.index(name)]
        return next(iter(values)) if len(values) == 1 else otherwise

    matrix = common("rows", 0), common("columns", 0)
    return LeftOut(series, common("modality", ""), *matrix, common("manufacturer", ""), files, reason, remedy(Reason(reason)))
