"""The main output among what a network returns, and what segmentation asks of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medssl.errors import NetworkError
from medssl.networks import dense_output, main_output

SIZE = (4, 5, 6)
WHOLE = torch.arange(2 * 3 * 120, dtype=torch.float32).reshape(2, 3, *SIZE)
HALF = WHOLE[..., ::2]


@pytest.mark.parametrize(
    "returned",
    [WHOLE, [WHOLE, HALF], (HALF, WHOLE), {"aux": HALF, "out": WHOLE}, (WHOLE, torch.zeros(())), torch.stack([WHOLE, -WHOLE], 1)],
    ids=["a tensor", "a list", "smaller ones first", "a mapping", "with a loss", "stacked"],
)
def test_the_full_size_answer_is_found(returned: Any) -> None:
    assert torch.equal(main_output(returned, SIZE), WHOLE)
    assert torch.equal(dense_output(returned, SIZE), WHOLE)


def test_one_tensor_comes_back_as_the_same_object() -> None:
    assert main_output(WHOLE, SIZE) is WHOLE


@pytest.mark.parametrize("returned", [torch.zeros(2, 3), HALF, [HALF, torch.zeros(2, 3)]], ids=["classes", "half size", "several"])
def test_where_none_is_of_full_size_the_first_is_the_main_one_and_segmentation_refuses(returned: Any) -> None:
    assert main_output(returned, SIZE) is (returned[0] if isinstance(returned, list) else returned)
    with pytest.raises(NetworkError, match=r"crops of 4x5x6; segmentation needs one value a class and voxel.*such as SegResNet"):
        dense_output(returned, SIZE)


@pytest.mark.parametrize("returned", [{"out": 1}, [], None])
def test_no_tensor_at_all_is_refused(returned: Any) -> None:
    with pytest.raises(NetworkError, match=f"returns {type(returned).__name__} without a tensor"):
        main_output(returned, SIZE)
