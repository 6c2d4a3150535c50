"""Windows over a volume: exact for a network that sees one voxel, on any shape, in 2D and 3D; networks that do not segment are refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medssl.errors import NetworkError
from medssl.transfer.segment import Windows


class Voxelwise(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, 2 * inputs, -inputs], 1)


class Edge(nn.Module):
    """Says the smallest value that its window shows."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.amin(dim=(2, 3, 4), keepdim=True).expand_as(inputs).clone()


@settings(max_examples=20, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 13)] * 3), overlap=st.sampled_from([0.0, 0.25, 0.5]), dims=st.sampled_from([2, 3]))
def test_blending_changes_nothing_where_windows_agree(shape: tuple[int, ...], overlap: float, dims: int) -> None:
    inputs = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    logits = Windows((8, 6, 4)[:dims], overlap)(inputs, Voxelwise())
    torch.testing.assert_close(logits, Voxelwise()(inputs), atol=1e-4, rtol=1e-4)


def test_small_volumes_are_padded_with_their_darkest_value() -> None:
    inputs = torch.rand(1, 1, 3, 3, 3) + 5
    logits = Windows((8, 8, 8))(inputs, Edge())
    torch.testing.assert_close(logits, inputs.min().expand_as(inputs))


def test_each_channel_is_padded_with_its_own_darkest_value() -> None:
    inputs = torch.stack([torch.rand(3, 9, 3) + 5, torch.rand(3, 9, 3) - 7])[None]
    logits = Windows((8, 8, 8))(inputs, Edge())
    torch.testing.assert_close(logits, inputs.amin((2, 3, 4), keepdim=True).expand_as(inputs))


def test_a_network_that_classifies_is_refused() -> None:
    with pytest.raises(NetworkError, match="segmentation needs one value a class and voxel"):
        Windows((4, 4, 4))(torch.zeros(1, 1, 4, 4, 4), nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))


def test_bf16_answers_come_back_as_float32() -> None:
    network = nn.Conv3d(1, 2, 1)
    inputs = torch.randn(1, 1, 6, 6, 6)
    logits = Windows((4, 4, 4), dtype=torch.bfloat16)(inputs, network)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, network(inputs), atol=0.05, rtol=0.05)
