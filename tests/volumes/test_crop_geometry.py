"""Where a crop's voxels lie, what they truly are, where the body is: the same whichever crop and whichever view shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medssl.augment import compose, identity, resample_nearest, viewed
from medssl.augment.spatial import about_centre, rotation
from medssl.contracts import Crops
from medssl.errors import ConfigError
from medssl.testing import make_crops
from medssl.volumes import CropLoader, DataOptions, Incoming, IntensityRule, Preparation, Store, write_store

SHAPE, SPACING = (14, 11, 9), (1.0, 1.5, 2.5)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One volume whose every value is the number of its voxel, shown as it is."""
    folder = tmp_path_factory.mktemp("numbered") / "s"
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    preparation = Preparation(modalities={}, other=IntensityRule(kind="raw"))
    write_store([Incoming("v", "p", "s", "MR", lambda: (array, np.diag([*SPACING, 1.0])))], folder, preparation=preparation)
    return folder


def batch(folder: Path, size: tuple[int, ...], seed: int = 0, **keys: Any) -> Crops:
    with CropLoader(Store(folder), DataOptions(store=str(folder), size=size, batch=3, foreground=0), seed, **keys) as loader:
        return next(loader)[2]


def places(crops: Crops) -> Tensor:
    """(B, 3, *size) mm of every voxel."""
    steps = torch.meshgrid(*[torch.arange(side, dtype=torch.float32) for side in crops.size], indexing="ij")
    homogeneous = torch.stack([*steps, torch.ones(crops.size)]).flatten(1)
    return (crops.affine @ homogeneous).view(len(crops), 3, *crops.size)


SIZES = st.one_of(st.tuples(*[st.integers(1, side) for side in SHAPE]), st.tuples(st.integers(1, SHAPE[0]), st.integers(1, SHAPE[1])))


@settings(max_examples=30, deadline=None)
@given(size=SIZES, seed=st.integers(0, 2**31))
def test_the_place_of_a_voxel_does_not_depend_on_the_crop_that_shows_it(numbered: Path, size: tuple[int, ...], seed: int) -> None:
    crops = batch(numbered, size, seed)
    voxel = np.stack(np.unravel_index(crops.images[:, 0].long().numpy(), SHAPE), 1)
    expected = voxel * np.asarray(SPACING).reshape(3, *[1] * len(size))
    np.testing.assert_allclose(places(crops).numpy(), expected, atol=1e-4)
    assert crops.spacing.tolist() == [list(SPACING[: len(size)])] * 3
    assert crops.extent[0].tolist() == [14, 16.5, 22.5]


@settings(max_examples=30, deadline=None)
@given(
    dims=st.sampled_from((2, 3)),
    flips=st.tuples(*[st.booleans()] * 3),
    turn=st.integers(0, 3),
    axis=st.integers(0, 2),
    shift=st.tuples(*[st.integers(-3, 3)] * 3),
)
def test_the_place_of_a_voxel_does_not_depend_on_the_view(
    numbered: Path, dims: int, flips: tuple[bool, ...], turn: int, axis: int, shift: tuple[int, ...]
) -> None:
    """Through flips, quarter turns and shifts, of which nearest voxels are exact; labels and body go where the voxels go."""
    crops = batch(numbered, (7,) * dims, 5)
    number = crops.images.long()
    crops = replace(crops, labels=number, body=number % 2 == 0)
    signs = torch.tensor([-1.0 if flip else 1.0 for flip in flips[:dims]])
    matrix = rotation(torch.tensor([axis]), torch.tensor([turn * torch.pi / 2]), dims).round() @ torch.diag(signs)
    affine = about_centre(matrix, crops.size).expand(3, -1, -1).clone()
    affine[..., -1] += torch.tensor(shift[:dims])
    view = viewed(crops, resample_nearest(crops.images, affine, -1.0), affine)
    assert view.labels is not None
    assert view.body is not None
    known = view.labels >= 0
    assert torch.equal(view.images.long(), view.labels)
    assert torch.equal(view.body, known & (view.labels % 2 == 0))
    voxel = np.stack(np.unravel_index(view.labels[:, 0].clamp_min(0).numpy(), SHAPE), 1)
    expected = torch.tensor(voxel * np.asarray(SPACING).reshape(3, *[1] * dims), dtype=torch.float32)
    apart = (places(view) - expected).abs().amax(1, keepdim=True)
    assert apart[known].max() < 1e-3 if known.any() else True
    assert known.any() or max(map(abs, shift)) > 0
    torch.testing.assert_close(view.spacing.prod(1), crops.spacing.prod(1))


def test_compose_is_one_after_the_other() -> None:
    stream = torch.Generator().manual_seed(0)
    outer, inner = torch.randn(2, 3, 4, generator=stream), torch.randn(2, 3, 4, generator=stream)
    point = torch.randn(2, 3, 1, generator=stream)

    def through(affine: Tensor, at: Tensor) -> Tensor:
        return affine[..., :-1] @ at + affine[..., -1:]

    torch.testing.assert_close(through(compose(outer, inner), point), through(outer, through(inner, point)))
    torch.testing.assert_close(compose(outer, identity(2, 3)), outer)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_true_values_come_back(tmp_path: Path, make_body: Callable[..., Any], modality: str) -> None:
    array = make_body(0)
    write_store([Incoming("v", "p", "s", modality, lambda: (array, np.eye(4)))], tmp_path / "s")
    store = Store(tmp_path / "s")
    crops = batch(tmp_path / "s", (8, 8, 8))
    assert crops.rescale.shape == (3, 1, 2)
    scale, shift = crops.rescale[..., 0].view(3, 1, 1, 1, 1), crops.rescale[..., 1].view(3, 1, 1, 1, 1)
    true = crops.images * scale + shift
    corner = (crops.affine[:, :, -1] / crops.spacing).round().long()
    line = store.preparation.line(store.volume(0).statistics[0], modality)
    for slot in range(3):
        box = tuple(slice(int(c), int(c) + 8) for c in corner[slot])
        np.testing.assert_allclose(true[slot, 0], np.clip(array[box], line.low, line.high), atol=0.05)


def test_the_body_is_said_where_it_is_asked_for(store_folder: Path) -> None:
    store, options = Store(store_folder), DataOptions(store=str(store_folder), size=(50, 20, 12), batch=8)
    with CropLoader(store, options, 3, body=True) as asked, CropLoader(store, options, 3) as plain:
        crops, bare = next(asked)[2], next(plain)[2]
    assert bare.body is None
    assert torch.equal(crops.images, bare.images)
    assert crops.body is not None
    assert crops.body.dtype == torch.bool
    assert crops.body.shape == crops.images.shape
    padded = 0
    numbers = {store.volume(number).sample: number for number in range(len(store))}
    for slot in range(8):
        number = numbers[int(crops.sample[slot])]
        volume = store.volume(number)
        corner = (crops.affine[slot, :, -1] / crops.spacing[slot]).round().long().tolist()
        whole = volume.statistics[0].foreground(store.read_whole(number)[0])
        pad = max(0, 50 - volume.shape[0])
        wide = np.pad(whole, [(pad, pad), (0, 0), (0, 0)])
        lo = [corner[0] + pad, *corner[1:]]
        assert np.array_equal(crops.body[slot, 0], wide[tuple(slice(c, c + s) for c, s in zip(lo, (50, 20, 12), strict=True))])
        padded += pad > 0
    assert padded


def test_index_stays_on_the_cpu() -> None:
    moved = make_crops(2).to("meta")
    assert moved.index.device.type == "cpu"
    assert {name for name, value in vars(moved).items() if isinstance(value, Tensor) and value.device.type != "meta"} == {"index"}


def test_labelled_and_unlabelled_crops_become_one_batch() -> None:
    labelled = replace(make_crops(2, (8, 8), seed=1), labels=torch.ones(2, 1, 8, 8, dtype=torch.int64))
    bare = make_crops(3, (8, 8))
    joined = Crops.join([labelled, bare])
    assert len(joined) == 5
    assert joined.labels is not None
    assert (joined.labels[:2] == 1).all()
    assert (joined.labels[2:] == -1).all()
    assert torch.equal(joined.images, torch.cat([labelled.images, bare.images]))
    assert torch.equal(joined.affine, torch.cat([labelled.affine, bare.affine]))
    assert len(set(joined.group.tolist())) == 5
    pair = replace(bare, group=torch.tensor([4, 4, 9]))
    assert torch.equal(Crops.join([pair, pair]).group.unique(return_inverse=True)[1], torch.tensor([0, 0, 1, 2, 2, 3]))
    assert Crops.join([bare, bare]).labels is None
    for other in (make_crops(1, (8, 9)), make_crops(1, (8, 8), channels=2), replace(bare, axis="slice")):
        with pytest.raises(ConfigError, match="cannot be one batch"):
            Crops.join([bare, other])
    with pytest.raises(ConfigError, match="body=True"):
        Crops.join([bare, replace(bare, body=torch.ones(3, 1, 8, 8, dtype=torch.bool))])
