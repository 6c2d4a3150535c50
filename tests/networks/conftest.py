"""Small networks of every family that must work."""

from __future__ import annotations

import pytest

from medssl.networks import NetworkSpec, as_spec

SMALL = {
    "UNet": {"channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 1},
    "BasicUNet": {"features": [4, 4, 8, 8, 16, 4]},
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
    "DynUNet": {"filters": [4, 8, 16]},
    "ResNet": {"block_inplanes": [4, 8, 8, 16]},
}
DENSE = ("UNet", "BasicUNet", "SegResNet", "DynUNet")


def small(name: str, dims: int, **fields: object) -> NetworkSpec:
    return as_spec(NetworkSpec(name, spatial_dims=dims, options=SMALL[name], **fields))


@pytest.fixture(params=[(name, dims) for name in SMALL for dims in (2, 3)], ids=lambda pair: f"{pair[0]}-{pair[1]}d")
def spec(request: pytest.FixtureRequest) -> NetworkSpec:
    """Each of the five families in 2D and 3D."""
    return small(*request.param)


@pytest.fixture(params=[(name, dims) for name in DENSE for dims in (2, 3)], ids=lambda pair: f"{pair[0]}-{pair[1]}d")
def dense_spec(request: pytest.FixtureRequest) -> NetworkSpec:
    """Each of the four with an output for every voxel in 2D and 3D."""
    return small(*request.param)


@pytest.fixture(scope="session")
def make_small():
    """`make_small("UNet", 3)`: a small specification."""
    return small
