"""What an ingest holds beside the volume itself, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medssl.volumes import statistics
from medssl.volumes.distribution import distribution
from medssl.volumes.store.frames import FrameFile, encode

_INGEST = """
import re, sys
from pathlib import Path
import numpy as np
from medssl.volumes import Incoming, write_store

def made(shape):
    '''As an index reads it: slices one behind the other, turned.'''
    out, random = np.empty(shape[::-1], np.int16), np.random.default_rng(0)
    for slice_ in out:
        slice_[...] = random.normal(-900, 12, slice_.shape)
        slice_[40:-40, 40:-40] += 900
    return out.transpose(2, 1, 0)

def peak():
    '''Of this process; getrusage would begin with that of the process that started it.'''
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

def put(name, shape):
    item = Incoming(name, "p", "s", "CT", lambda: (made(shape), np.diag([-0.7, -0.7, 1.0, 1.0])))
    write_store([item], sys.argv[1], spacing=float(sys.argv[2]) or None, workers=1)

put("small", (128, 128, 32))
before = peak()
put("large", (320, 320, 240))
print((peak() - before) * 1024 / (2 * 320 * 320 * 240))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a process is read from Linux's /proc")
@pytest.mark.parametrize("spacing", ["0", "1.5"])
def test_an_ingest_holds_at_most_three_times_the_volume(tmp_path: Path, spacing: str) -> None:
    command = [sys.executable, "-c", _INGEST, str(tmp_path / "s"), spacing]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    assert float(said) < 3.0


@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float32])
def test_statistics_are_those_of_numpy(kind: type) -> None:
    array = (np.random.default_rng(0).gamma(2.0, 20.0, (30, 20, 10))).clip(0, 250).astype(kind)
    found, ordered = statistics(array), distribution(array)
    body = array[array > found.threshold]
    assert ordered.size == array.size and ordered.above(found.threshold).size == body.size
    np.testing.assert_allclose((found.low, found.high), np.percentile(body, (0.5, 99.5)), rtol=1e-6)
    clipped = body.clip(found.low, found.high)
    np.testing.assert_allclose((found.mean, found.std), (clipped.mean(dtype=np.float64), clipped.std(dtype=np.float64)), rtol=1e-6)
    assert found.minimum == array.min()
    assert statistics(array[::-1].transpose(2, 0, 1)) == found


@pytest.mark.parametrize("shape", [(1, 130, 65, 3), (2, 64, 64, 64), (3, 70, 20)])
def test_a_turned_volume_is_written_as_a_straight_one(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(-99, 99, shape).astype(np.int16)
    turned = np.ascontiguousarray(array.T).T
    assert encode(turned) == encode(array)
    (tmp_path / "v").write_bytes(encode(turned))
    out = np.empty_like(array)
    FrameFile(tmp_path / "v").read((0,) * len(shape), shape, out)
    assert np.array_equal(out, array)
