"""A series that is settled from its columns is the volume that its slices make one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.archive.instance import Acquisition, Instance, to_table
from medssl.archive.series import splitting
from medssl.archive.series.splitting import split_volumes
from medssl.archive.series.uniform import _SAME, Uniform, uniform_series

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
ASKED = ("model", "echo_time", "series_number")
CHANGES: list[dict[str, Any]] = [
    {"rows": 9},
    {"pixel_spacing": (1.0, 1.1)},
    {"pixel_spacing": (1.00001, 1.0)},
    {"orientation": (0.0, 1.0, 0.0, 0.0, 0.0, 1.0)},
    {"orientation": (1.0, 0.0005, 0.0, 0.0, 1.0, 0.0)},
    {"echo": "2/3.00"},
    {"component": "P"},
    {"frame_of_reference": "other"},
    {"photometric": "MONOCHROME1"},
    {"modality": "MR"},
    {"warnings": ("PixelSpacing is written with a decimal comma",)},
    {"between_slices": (7.0,)},
    {"between_slices": (2.0, 7.0)},
    {"between_slices": (float("nan"),)},
    {"padding": (-2000.0,)},
    {"padding": ()},
    {"decimals": -1},
    {"decimals": 0},
    {"frames": 1},
    {"position": (0.0, 0.0)},
    {"acquired": "20200101"},
    {"slope": 2.0},
    {"taken": Acquisition(model="Vida", echo_time=(3.0,))},
    {"taken": Acquisition(echo_time=(3.0, 4.0))},
]


def slices(series: str, count: int, step: float, moved: dict[int, float], changes: list[tuple[int, int]]) -> list[Instance]:
    found = []
    for z in range(count):
        position = (-10.0, 5.0, round(z * step + moved.get(z, 0.0), 4))
        one = Instance(
            0, f"{series}-{z * 7 % count:03d}".encode(), kind="dicom", series=series, study="s", patient="p", uid=f"{series}.{z}"
        )
        found.append(
            replace(
                one,
                modality="CT",
                photometric="MONOCHROME2",
                rows=8,
                columns=6,
                position=position,
                decimals=4,
                orientation=AXIAL,
                pixel_spacing=(1.0, 1.0),
                between_slices=(2.0,),
                padding=(-2000.0, -1000.0),
            )
        )
    for z, number in changes:
        if z < count:
            found[z] = replace(found[z], **CHANGES[number])
    return sorted(found, key=lambda one: one.key)


def uniform(instances: list[Instance]) -> dict[str, tuple[Uniform, list[Instance]]]:
    instances = sorted(instances, key=lambda one: (one.series, one.key))
    begins = [row for row, one in enumerate(instances) if row == 0 or one.series != instances[row - 1].series]
    usable = np.array([len(one.position) == 3 for one in instances])
    found = uniform_series(to_table(instances), np.array(begins), usable, ASKED)
    return {one.first.series: (one, [instances[row] for row in one.rows]) for one in found}


SERIES = st.tuples(
    st.integers(1, 9),
    st.sampled_from([2.0, -1.5, 0.005, 0.625, 2000.0]),
    st.dictionaries(st.integers(0, 8), st.sampled_from([0.004, 0.05, 0.15, 0.7, 2.0, -2.0]), max_size=2),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, len(CHANGES) - 1)), max_size=2),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(SERIES, min_size=1, max_size=4))
def test_what_is_found_is_what_the_slices_make(given_series: list[tuple[int, float, dict[int, float], list[tuple[int, int]]]]) -> None:
    check({f"1.{number}": slices(f"1.{number}", *one) for number, one in enumerate(given_series)})


@pytest.mark.parametrize("change", range(len(CHANGES)), ids=lambda number: "-".join(CHANGES[number]))
def test_one_slice_that_differs(change: int) -> None:
    check({f"1.{count}{z}": slices(f"1.{count}{z}", count, 2.0, {}, [(z, change)]) for count in (3, 5) for z in range(count)})
    check({"1.1": slices("1.1", 4, 2.0, {}, [(0, change), (1, change)])})


def test_all_that_parts_slices_is_looked_at() -> None:
    class Asked:
        def __init__(self) -> None:
            self.names: set[str] = set()

        def __getattr__(self, name: str) -> tuple[()]:
            self.names.add(name)
            return ()

    asked = Asked()
    for _, value in splitting._ALWAYS:
        value(asked)  # type: ignore[arg-type]
    assert asked.names <= set(_SAME)


def check(every: dict[str, list[Instance]]) -> None:
    """All that is found of these series is what `split_volumes` makes of them."""
    found = uniform([one for members in every.values() for one in members])
    for series, (one, members) in found.items():
        (stack,), left = split_volumes(every[series])
        assert left == [] and stack.split_by == ()
        assert members == list(stack.slices)
        assert np.array_equal(one.affine, stack.affine) and one.shape == stack.shape
        assert (one.warnings, one.deviation) == (stack.warnings, stack.deviation)
        for name in ASKED:
            assert (name in one.differ) == (len({getattr(each.taken, name) for each in members}) > 1)


def test_what_does_not_tell_slices_apart_leaves_a_series_uniform() -> None:
    series = {
        "1.1": slices("1.1", 5, 2.0, {}, []),
        "1.2": slices("1.2", 5, -1.5, {2: 0.05}, [(1, 20), (3, 21), (2, 22)]),
        "1.3": slices("1.3", 5, 2.0, {}, [(4, 3)]),
        "1.4": slices("1.4", 2, 2.0, {}, []),
        "1.5": slices("1.5", 3, 2.0, {1: 2.0}, []),
        "1.6": slices("1.6", 6, 2.0, {3: 0.7}, []),
    }
    found = uniform([one for members in series.values() for one in members])
    assert set(found) == {"1.1", "1.2"}
    assert found["1.1"][0].differ == frozenset() and found["1.2"][0].differ == {"model", "echo_time"}
