"""Volume files: bit for bit what was written, whichever way they are read; corruption is found."""

from __future__ import annotations

import threading
from pathlib import Path

import blosc2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.errors import MissingInput, StoreError
from medssl.volumes.store.frames import HANDLES, Damaged, FrameCache, FrameFile, _library, encode

SHAPES = ((1, 70, 90, 40), (3, 65, 130), (1, 5, 4, 3), (2, 64, 64, 65))


def made(shape: tuple[int, ...], kind: str, seed: int = 0) -> np.ndarray:
    stream = np.random.default_rng(seed)
    array = np.zeros(shape, kind)
    half = tuple(slice(0, max(1, side // 2)) for side in shape)
    array[half] = stream.integers(-3000, 3000, array[half].shape) if kind == "int16" else stream.normal(size=array[half].shape)
    return array


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[tuple[int, ...], str], Path]:
    folder = tmp_path_factory.mktemp("frames")
    paths = {}
    for shape in SHAPES:
        for kind in ("int16", "float32"):
            paths[shape, kind] = folder / f"{'x'.join(map(str, shape))}-{kind}.b2nd"
            paths[shape, kind].write_bytes(encode(made(shape, kind)))
    return paths


def test_the_wheels_library_is_found() -> None:
    assert _library() is not None


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=st.sampled_from(SHAPES), kind=st.sampled_from(("int16", "float32")), native=st.booleans())
def test_any_box_equals_the_array(
    files: dict[tuple[tuple[int, ...], str], Path], data: st.DataObject, shape: tuple[int, ...], kind: str, native: bool
) -> None:
    start = [data.draw(st.integers(0, side - 1)) for side in shape]
    stop = [data.draw(st.integers(lo + 1, side)) for lo, side in zip(start, shape, strict=True)]
    file = FrameFile(files[shape, kind], native=native)
    out = np.empty([hi - lo for lo, hi in zip(start, stop, strict=True)], kind)
    file.read(start, stop, out)
    expected = made(shape, kind)[tuple(slice(lo, hi) for lo, hi in zip(start, stop, strict=True))]
    assert out.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_blosc2_itself_reads_the_file(files: dict[tuple[tuple[int, ...], str], Path]) -> None:
    for (shape, kind), path in files.items():
        stored = blosc2.open(str(path), mmap_mode="r")
        assert np.array_equal(stored[:], made(shape, kind))
        assert stored.cparams.filters[0] == blosc2.Filter.SHUFFLE
        assert blosc2.Filter.DELTA not in stored.cparams.filters


@pytest.mark.parametrize("native", [True, False])
def test_every_flipped_bit_is_found(tmp_path: Path, native: bool) -> None:
    array = made((1, 70, 40, 40), "int16")
    good = encode(array)
    path = tmp_path / "v.b2nd"
    places = [*np.random.default_rng(3).choice(len(good), 120, replace=False).tolist(), 0, 11, 0x27, len(good) - 1, len(good) - 40]
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 8)
        path.write_bytes(bad)
        with pytest.raises(Damaged, match="make the store again"):
            FrameFile(path, native=native).read((0, 0, 0, 0), array.shape, np.empty(array.shape, np.int16))


def test_a_chunk_is_verified_only_when_touched(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-99, 99, (1, 128, 30, 30)).astype(np.int16)
    content = bytearray(encode(array))
    content[len(content) // 4] ^= 4
    path = tmp_path / "v.b2nd"
    path.write_bytes(content)
    file = FrameFile(path)
    out = np.empty((1, 20, 30, 30), np.int16)
    file.read((0, 100, 0, 0), (1, 120, 30, 30), out)
    assert np.array_equal(out, array[:, 100:120])
    with pytest.raises(Damaged, match="chunk 0"):
        file.read((0, 0, 0, 0), (1, 20, 30, 30), out)


@pytest.mark.parametrize("keep", [0, 10, 200, -1, -60])
def test_a_truncated_file_is_one_message(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "v.b2nd"
    path.write_bytes(encode(made((1, 70, 40, 40), "int16"))[:keep])
    with pytest.raises(StoreError, match=r"v\.b2nd"):
        FrameFile(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="gone"):
        FrameFile(tmp_path / "none.b2nd")


def test_a_box_outside_the_volume_is_refused(files: dict[tuple[tuple[int, ...], str], Path]) -> None:
    file = FrameFile(files[SHAPES[0], "int16"])
    with pytest.raises(ValueError, match="does not fit"):
        file.read((0, 60, 0, 0), (1, 80, 10, 10), np.empty((1, 20, 10, 10), np.int16))
    with pytest.raises(ValueError, match="does not fit"):
        file.read((0, 0, 0, 0), (1, 8, 8, 8), np.empty((1, 8, 8, 8), np.float32))


def test_threads_have_their_own_handles_and_only_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medssl.volumes.store.frames.HANDLES", 3)
    assert HANDLES == 256
    arrays = [made((1, 40, 40, 40), "int16", seed) for seed in range(6)]
    for number, array in enumerate(arrays):
        (tmp_path / f"{number}.b2nd").write_bytes(encode(array))
    cache = FrameCache()
    wrong: list[int] = []
    opened: list[int] = []

    def read() -> None:
        for turn in range(60):
            number = turn * 5 % 6
            out = np.empty(arrays[number].shape, np.int16)
            cache.open(tmp_path / f"{number}.b2nd").read((0, 0, 0, 0), out.shape, out)
            if not np.array_equal(out, arrays[number]):
                wrong.append(number)
        opened.append(len(cache._local.files))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert opened == [3, 3, 3, 3]
