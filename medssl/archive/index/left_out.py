"""Which series are in no volume, and what would mend that: for whoever misses a scan."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

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


def left_out_of(instances: pa.Table) -> list[LeftOut]:
    """Of the public instance table; the largest first. What is no image, and duplicates, are not missed by anybody."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in instances.to_pylist():
        if row["reason"] and ending(Reason(row["reason"])) == "rejected":
            groups[row["series"], row["reason"]].append(row)
    found = [_left_out(series, reason, rows) for (series, reason), rows in groups.items()]
    return sorted(found, key=lambda one: (-one.files, one.reason, one.series))


def _left_out(series: str, reason: str, rows: list[dict[str, Any]]) -> LeftOut:
    def common(name: str, otherwise: Any) -> Any:
        values = {row[name] for row in rows}
        return values.pop() if len(values) == 1 else otherwise

    return LeftOut(
        series,
        common("modality", ""),
        common("rows", 0),
        common("columns", 0),
        common("manufacturer", ""),
        len({row["file"] for row in rows}),
        reason,
        remedy(Reason(reason)),
    )
