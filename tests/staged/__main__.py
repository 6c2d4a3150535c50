"""`python -m staged FILE`: stage every case, let each reader read it, and write the table into FILE between its marks."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path

from staged.cases import CASES
from staged.readers import READERS, Verdict, verdict

BEGIN, END = "<!-- begin of the table of staged cases -->", "<!-- end of the table of staged cases -->"


def main(file: Path) -> int:
    """Write the table; 1 where medssl is not right on a case."""
    logging.disable(logging.CRITICAL)
    rows: dict[str, dict[str, Verdict]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, make) in enumerate(CASES.items()):
            folder = Path(scratch) / str(number) / "archive"
            wanted = make(folder)
            rows[name] = {reader: verdict(read, folder, Path(scratch) / str(number) / reader, wanted) for reader, read in READERS.items()}
            sys.stderr.write(f"{name}: {rows[name]}\n")
    text = file.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    file.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")
    return int(any(row["medssl"] != "right" for row in rows.values()))


def table(rows: dict[str, dict[str, Verdict]]) -> str:
    """In Markdown, with the sums first."""
    lines = [f"| case | {' | '.join(READERS)} |", f"|---|{'---|' * len(READERS)}"]
    sums = {reader: Counter(row[reader] for row in rows.values()) for reader in READERS}
    counts = (f"**{sums[reader]['right']} right, {sums[reader]['wrong']} wrong, {sums[reader]['refused']} refused**" for reader in READERS)
    lines.append(f"| **all {len(rows)}** | {' | '.join(counts)} |")
    lines += [f"| {name} | {' | '.join(row[reader] for reader in READERS)} |" for name, row in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
