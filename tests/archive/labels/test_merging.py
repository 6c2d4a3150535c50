"""Segments become the classes that the user names; overlaps are decided or refused, and no other name is kept."""

from __future__ import annotations

import numpy as np
import pytest

from medssl.archive.labels.merging import Classes, class_map
from medssl.archive.labels.objects import LabelObject, Mask, Refers, Segment
from medssl.archive.labels.placing import Grid, LabelProblem

GRID = Grid((4, 3, 2), np.eye(4))


def made(segments: dict[str, list[int]], outside: int = 0) -> LabelObject:
    """Name -> flat voxels."""

    def mask(segment: Segment, grid: Grid, resample: bool) -> Mask:
        inside = np.zeros(24, bool)
        inside[segments[segment.name]] = True
        return Mask(inside.reshape(grid.shape), outside)

    return LabelObject("SEG", tuple(Segment(number, name) for number, name in enumerate(segments, 1)), Refers(), mask)


def test_names_in_any_case_by_pattern_and_by_number_over_several_objects() -> None:
    objects = [made({" LIVER  right": [0, 1], "Doe^Jane": [5]}), made({"hepar": [2], "GTV-1": [8], "GTV-2": [9], "bone": [11]})]
    found = class_map(objects, Classes({"liver": ("liver right", "Hepar"), "tumour": ("gtv*",), "third": (4,)}), GRID)
    assert found.array.dtype == np.uint8
    assert {value: np.flatnonzero(found.array == value).tolist() for value in (1, 2, 3)} == {1: [0, 1, 2], 2: [8, 9], 3: [11]}
    assert dict(found.voxels) == {"liver": 3, "tumour": 2, "third": 1}
    assert "Doe" not in str(found.notes)


def test_overlaps_are_refused_with_both_names_or_go_to_the_later() -> None:
    objects = [made({"Liver": [0, 1, 2, 3], "GTV": [2, 3, 4]})]
    named = {"liver": ("Liver",), "tumour": ("GTV",)}
    with pytest.raises(LabelProblem, match=r"'liver' and 'tumour' share 2 voxels.*data.label_overlaps=later"):
        class_map(objects, Classes(named), GRID)
    assert class_map(objects, Classes(named, "later"), GRID).array.ravel()[:6].tolist() == [1, 1, 2, 2, 2, 0]
    turned = class_map(objects, Classes(dict(reversed(named.items())), "later"), GRID)
    assert turned.array.ravel()[:6].tolist() == [2, 2, 2, 2, 1, 0]


def test_ignored_voxels() -> None:
    found = class_map([made({"Liver": [0, 1], "unclear": [1, 2]})], Classes({"ignore": ("unclear",), "liver": ("Liver",)}, "later"), GRID)
    assert found.array.dtype == np.int16 and found.array.ravel()[:4].tolist() == [1, 1, -1, 0]


def test_what_is_missing_is_told() -> None:
    with pytest.raises(LabelProblem, match=r"none of the label's 2 segments.*liver.*medssl labels") as caught:
        class_map([made({"Doe^Jane": [0], "b": [1]})], Classes({"liver": ("Liver",)}), GRID)
    assert "Doe" not in str(caught.value)
    found = class_map([made({"Liver": [0]})], Classes({"liver": ("Liver",), "tumour": ("GTV",)}), GRID)
    assert any("tumour" in note for note in found.notes) and "tumour" not in found.voxels


def test_labels_beyond_the_image() -> None:
    found = class_map([made({"Liver": [0]}, outside=7)], Classes({"liver": ("Liver",)}), GRID)
    assert any("7 voxels of 'liver' lie outside" in note for note in found.notes)
    with pytest.raises(LabelProblem, match="drawn on another one"):
        class_map([made({"Liver": []}, outside=7)], Classes({"liver": ("Liver",)}), GRID)
