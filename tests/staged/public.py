"""`python -m staged.public FOLDER`: how many volumes medssl and dcm2niix make of a folder, and how many are equal."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from medssl.archive import Index, build_index
from staged.cases import Volume
from staged.readers import canonical, dcm2niix, same

NEAR = 0.02
"""Millimetres by which a voxel may lie off."""


def stacks(folder: Path, scratch: Path) -> list[Volume]:
    """The volumes made of DICOM: a set may hold pictures, and NIfTI files that dcm2niix made of it once."""
    build_index([folder], scratch, workers=1)
    index = Index(scratch)
    volumes = [index.read(record.volume) for record in index.volumes("kind = 'dicom' AND dimensions = 3")]
    return [(volume.array, volume.affine) for volume in volumes]


def main(folder: Path) -> None:
    """Print the row of the table in docs/dicom.md; each volume of one reader is the equal of one of the other at most."""
    with tempfile.TemporaryDirectory() as scratch:
        ours = stacks(folder, Path(scratch) / "index")
        # Both rescale by the standard elements.
        theirs = dcm2niix(folder, Path(scratch) / "dcm2niix", "-p", "n")
    left, equal = [canonical(one) for one in theirs], 0
    for one in map(canonical, ours):
        place = next((index for index, other in enumerate(left) if same(one, other, NEAR)), None)
        if place is not None:
            del left[place]
            equal += 1
    files = sum(1 for path in folder.rglob("*") if path.is_file())
    sys.stdout.write(f"| {folder.name} | {files} | {len(ours)} | {len(theirs)} | {equal} |\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
