"""Small made volumes: a bright body in dark air, one store of them, and labelled cases on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from medssl.volumes import Incoming, write_store

Array = NDArray[Any]


def body(seed: int, shape: tuple[int, int, int] = (40, 36, 30), kind: type = np.int16) -> Array:
    """Air around 0, tissue around 500; whole numbers for int16."""
    stream = np.random.default_rng(seed)
    array = stream.normal(0, 5, shape)
    middle = tuple(slice(side // 4, 3 * side // 4) for side in shape)
    array[middle] += 500 + 50 * stream.standard_normal(array[middle].shape)
    return np.rint(array).astype(kind) if kind is np.int16 else array.astype(kind)


@pytest.fixture(scope="session")
def make_body() -> Callable[..., Array]:
    return body


@pytest.fixture(scope="session")
def incoming() -> Callable[..., list[Incoming]]:
    def make(count: int = 5, affine: Array | None = None, kind: type = np.int16) -> list[Incoming]:
        grid = np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine
        return [
            Incoming(f"v{i}", f"p{i // 2}", f"s{i}", "MR", lambda i=i: (body(i, (40 + 3 * i, 36, 30), kind), grid)) for i in range(count)
        ]

    return make


@pytest.fixture(scope="session")
def store_folder(tmp_path_factory: pytest.TempPathFactory, incoming: Callable[..., list[Incoming]]) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "made"
    write_store(incoming(), folder)
    return folder


@pytest.fixture
def write_image() -> Callable[..., Path]:
    def write(path: Path, array: Array, affine: Array | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, path)
        return path

    return write


@pytest.fixture
def paired(tmp_path: Path, write_image: Callable[..., Path]) -> Callable[..., Path]:
    """`images/` and `labels/` of `count` cases with the labels 0, 1, 2."""

    def make(count: int = 4) -> Path:
        for i in range(count):
            array = body(i, (24, 20, 18))
            labels = np.zeros(array.shape, np.uint8)
            labels[6:12, 5:15, 5:13], labels[12:18, 5:15, 5:13] = 1, 2
            write_image(tmp_path / "images" / f"case_{i:02d}.nii.gz", array)
            write_image(tmp_path / "labels" / f"case_{i:02d}.nii.gz", labels)
        return tmp_path

    return make
