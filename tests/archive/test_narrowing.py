"""int16 where nothing is lost by it, else float32."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medssl.archive import narrow


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.array([-32768.0, 32767.0]), np.int16),
        (np.array([-32769.0, 0.0]), np.float32),
        (np.array([0.0, 32768.0]), np.float32),
        (np.array([0.0, 0.5]), np.float32),
        (np.array([0.0, np.nan]), np.float32),
        (np.array([0.0, np.inf]), np.float32),
        (np.array([0, 32768], np.uint16), np.float32),
        (np.array([0, 255], np.uint8), np.int16),
        (np.array([-5, 2**40]), np.float32),
        (np.array([True, False]), np.int16),
        (np.array(3.0), np.int16),
        (np.array([[]]), np.int16),
    ],
)
def test_values_stay_and_the_type_is_the_smallest(array: NDArray[Any], kind: type) -> None:
    found = narrow(array)
    assert found.dtype == kind and np.array_equal(found, array.astype(found.dtype), equal_nan=array.dtype.kind == "f")
    assert np.allclose(found, array, equal_nan=True)


@pytest.mark.parametrize("turned", [False, True])
def test_one_fraction_anywhere_is_found(turned: bool) -> None:
    array = np.zeros((5, 6, 7), np.float32)
    for place in ((0, 0, 0), (4, 5, 6), (2, 3, 4)):
        one = array.copy()
        one[place] = 0.25
        assert narrow(one.T if turned else one).dtype == np.float32


def test_what_has_its_type_is_not_copied() -> None:
    for array in (np.zeros(4, np.int16), np.full(4, 0.5, np.float32)):
        assert narrow(array) is array or np.shares_memory(narrow(array), array)


@pytest.mark.parametrize("turned", [False, True])
def test_little_is_held_beside_the_result(turned: bool) -> None:
    array = np.ones((64, 128, 128), np.float32)
    given = array.T if turned else array
    tracemalloc.start()
    try:
        narrow(given)
        assert tracemalloc.get_traced_memory()[1] < 0.6 * array.nbytes
    finally:
        tracemalloc.stop()
