"""NRRD label maps: where SimpleITK says that the voxels lie, with Slicer's own extent, names and layers."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
import SimpleITK
from archive.labels.made import ball

from medssl.archive.labels.nrrd import as_object, read_nrrd
from medssl.archive.labels.placing import Grid, LabelProblem, OtherGrid
from medssl.errors import MissingInput

SHAPE = (20, 16, 12)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
AFFINE = LPS @ np.array([[0.8, 0, 0, -8.0], [0, 0.9, 0, 5.0], [0, 0, 2.0, -20.0], [0, 0, 0, 1]])
GRID = Grid(SHAPE, AFFINE)
LIVER, TUMOUR = ball(SHAPE, (8, 7, 5), 4), ball(SHAPE, (9, 7, 5), 2)


def write_slicer(file: Path, layers: list[np.ndarray], affine: np.ndarray, segments: list[dict[str, Any]], **header: Any) -> Path:
    """As Slicer writes: one layer (X, Y, Z) or several (L, X, Y, Z), with its keys."""
    geometry = LPS @ affine
    directions = [list(column) for column in geometry[:3, :3].T]
    several = len(layers) > 1
    said = {
        "space": "left-posterior-superior",
        "space directions": np.array([[np.nan] * 3, *directions] if several else directions),
        "space origin": geometry[:3, 3],
        "kinds": ["list"] * several + ["domain"] * 3,
        "encoding": "gzip",
    }
    for number, segment in enumerate(segments):
        said |= {f"Segment{number}_{key}": str(value) for key, value in segment.items()}
    nrrd.write(str(file), np.stack(layers) if several else layers[0], said | header)
    return file


def test_a_plain_label_map_lies_where_simpleitk_writes_it(tmp_path: Path) -> None:
    """Oblique, and on a grid of its own."""
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1.0]])
    array = np.random.default_rng(0).integers(0, 5, (9, 8, 7)).astype(np.uint8)
    image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((12.0, -7.0, 30.0))
    image.SetDirection(turn.ravel().tolist())
    for name, compress in (("a.nrrd", True), ("b.nrrd", False)):
        SimpleITK.WriteImage(image, str(tmp_path / name), compress)
        found = read_nrrd(tmp_path / name)
        np.testing.assert_array_equal(found.array, array[None])
        assert found.segments == ()
        for index in ((0, 0, 0), (8, 0, 0), (3, 5, 6)):
            world = LPS[:3, :3] @ np.array(image.TransformIndexToPhysicalPoint(index))
            np.testing.assert_allclose(found.grid.affine[:3] @ [*index, 1], world, atol=1e-4)


def test_slicers_extent_names_and_values(tmp_path: Path) -> None:
    """The file holds the box around the segments alone, on voxels of the image."""
    values = np.where(TUMOUR, 7, np.where(LIVER, 2, 0)).astype(np.uint8)
    box = (slice(3, 14), slice(2, 13), slice(1, 11))
    corner = AFFINE.copy()
    corner[:3, 3] = (AFFINE @ [3, 2, 1, 1])[:3]
    segments = [{"Name": "Liver", "LabelValue": 2, "Layer": 0}, {"Name": "Lxsion 1", "LabelValue": 7, "Layer": 0}]
    file = write_slicer(tmp_path / "a.seg.nrrd", [values[box]], corner, segments)
    # Slicer writes UTF-8, pynrrd ASCII.
    file.write_bytes(file.read_bytes().replace(b"Lxsion", "Läsion".encode()))
    found = read_nrrd(file)
    assert [(one.number, one.name) for one in found.segments] == [(2, "Liver"), (7, "Läsion 1")]
    one = as_object(found)
    for segment, expected in zip(one.segments, (LIVER & ~TUMOUR, TUMOUR), strict=True):
        mask = one.mask(segment, GRID, False)
        np.testing.assert_array_equal(mask.inside, expected)
        assert mask.outside == 0
    header = read_nrrd(tmp_path / "a.seg.nrrd", voxels=False)
    assert header.segments == found.segments and header.array.size == 0


@pytest.mark.parametrize("old", [False, True])
def test_overlapping_segments_in_layers(tmp_path: Path, old: bool) -> None:
    """Older files have a layer a segment, without numbers."""
    segments: list[dict[str, Any]] = [{"Name": "Liver"}, {"Name": "tumour"}]
    if not old:
        segments = [one | {"LabelValue": 1, "Layer": layer} for layer, one in enumerate(segments)]
    one = as_object(read_nrrd(write_slicer(tmp_path / "a.seg.nrrd", [LIVER.astype(np.uint8), TUMOUR.astype(np.uint8)], AFFINE, segments)))
    for segment, expected in zip(one.segments, (LIVER, TUMOUR), strict=True):
        np.testing.assert_array_equal(one.mask(segment, GRID, False).inside, expected)


def test_another_grid(tmp_path: Path) -> None:
    affine = AFFINE @ np.diag([0.9, 1, 1, 1])
    one = as_object(
        read_nrrd(write_slicer(tmp_path / "a.seg.nrrd", [LIVER.astype(np.uint8)], affine, [{"Name": "Liver", "LabelValue": 1}]))
    )
    with pytest.raises(OtherGrid, match="resample_labels=true"):
        one.mask(one.segments[0], GRID, False)
    assert one.mask(one.segments[0], GRID, True).inside.sum() > 50


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"space": "scanner-xyz"}, "where its voxels lie"),
        ({"space directions": np.zeros((3, 3))}, "affine"),
        ({"space directions": np.full((3, 3), np.nan)}, "no NRRD file"),
    ],
)
def test_files_without_a_place(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    file = write_slicer(tmp_path / "a.seg.nrrd", [LIVER.astype(np.uint8)], AFFINE, [{"Name": "Jane", "LabelValue": 1}], **change)
    with pytest.raises(LabelProblem, match=said) as caught:
        read_nrrd(file)
    assert "Jane" not in str(caught.value)


def test_cut_noisy_and_hostile_files(tmp_path: Path) -> None:
    good = write_slicer(tmp_path / "a.seg.nrrd", [LIVER.astype(np.uint8)], AFFINE, [{"Name": "Liver", "LabelValue": 1}]).read_bytes()
    stream = np.random.default_rng(0)
    file = tmp_path / "b.nrrd"
    for turn in range(120):
        noisy = bytearray(good[: int(stream.integers(len(good)))] if turn % 2 else good)
        for at in stream.integers(0, len(noisy), 4).tolist() if len(noisy) else ():
            noisy[at] = int(stream.integers(256))
        file.write_bytes(noisy)
        with suppress(LabelProblem):
            read_nrrd(file)
    for change, said in (
        ((b"sizes: 20 16 12", b"sizes: 99999 99999 99999"), "bytes"),
        ((b"sizes: 20 16 12", b"sizes: 20 16 13"), "too early"),
        ((b"encoding: gzip", b"encoding: hex"), "neither raw"),
        ((b"type: uint8", b"type: block"), "no numbers"),
        ((b"\n\n", b"\ndata file: /etc/passwd\n\n"), "another file"),
    ):
        assert change[0] in good
        file.write_bytes(good.replace(*change, 1))
        with pytest.raises(LabelProblem, match=said):
            read_nrrd(file)
    with pytest.raises(MissingInput):
        read_nrrd(tmp_path / "none.nrrd")
