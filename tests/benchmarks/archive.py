"""`make bench-archive`: what scanning, indexing and reading a DICOM archive costs, beside pydicom, MONAI's reader and SimpleITK.

On made CT series, page cache warm, two CPUs. All but the rows of two processes and two threads are CPU time.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence as Items
from pydicom.uid import HTJ2KLossless, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless

from benchmarks.measure import Spent, alternately, bind, call_cost
from benchmarks.report import Row, publish
from medssl.archive import FolderSource, Index, build_index
from medssl.archive.headers.reader import HeaderReader
from medssl.archive.headers.scan import quiet_pydicom, scan_file
from medssl.testing.dicom import made_affine, made_volume, write_series

CPUS = 2
SMALL = (64, 64, 100)
"""Voxels of a series of small files."""
MANY = 200
"""Such series that are indexed: so many that the start of a build, some tenths of a second, is little of what a file costs."""
SOME = 40
"""Such series of which the headers are scanned."""
SIDES = (512, 512, 60)
Encode = Callable[[NDArray[Any]], bytes]
CODECS: dict[str, tuple[str, Encode]] = {
    "JPEG lossless": (JPEGLosslessSV1, partial(imagecodecs.jpeg8_encode, lossless=True, predictor=1, bitspersample=12)),
    "JPEG-LS": (JPEGLSLossless, imagecodecs.jpegls_encode),
    "JPEG 2000": (JPEG2000Lossless, partial(imagecodecs.jpeg2k_encode, level=0, codecformat="j2k", reversible=True, bitspersample=12)),
    "HTJ2K": (HTJ2KLossless, partial(imagecodecs.htj2k_encode, reversible=True)),
}
BARS = {"JPEG lossless": 1 / 1.5, "JPEG-LS": 1 / 1.5}
"""Of wall time beside pydicom; the others are held to their codec alone."""


_WORDS = (
    "StationName InstitutionName ManufacturerModelName SoftwareVersions ProtocolName DeviceSerialNumber FilterType BodyPartExamined "
    "ConvolutionKernel RotationDirection ScanOptions StudyDescription InstitutionalDepartmentName PerformingPhysicianName"
)
_NUMBERS = (
    "KVP DataCollectionDiameter ReconstructionDiameter DistanceSourceToDetector DistanceSourceToPatient GantryDetectorTilt TableHeight "
    "FocalSpots WindowCenter WindowWidth"
)


def as_scanner(dataset: Dataset, z: int) -> None:
    """About as many elements as a scanner writes, some of which differ from slice to slice."""
    for place, keyword in enumerate(_WORDS.split()):
        setattr(dataset, keyword, f"WORD{place}")
    for keyword in _NUMBERS.split():
        setattr(dataset, keyword, "100.5")
    for keyword in ["AcquisitionTime", "ContentTime", "InstanceCreationTime", "SeriesTime"]:
        setattr(dataset, keyword, f"1200{z % 60:02d}.{z:06d}")
    dataset.SliceLocation, dataset.Exposure, dataset.XRayTubeCurrent = f"{z * 2.0:.3f}", 120 + z, 200 + z % 7
    inner = Dataset()
    inner.ReferencedSOPClassUID, inner.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"
    dataset.ReferencedImageSequence = Items([inner, inner])
    dataset.RequestAttributesSequence = Items([Dataset()])
    dataset.add_new(0x00290010, "LO", "MADE PRIVATE")
    for number in range(20):
        dataset.add_new(0x00291000 + number, "LO", f"private {number}")


def made_archive(folder: Path, series: int, adjust: Callable[[Dataset, int], None] | None = None, shape: Sequence[int] = SMALL) -> Path:
    """So many series of small CT files, each in a folder of its own."""
    volume = made_volume(shape)
    for number in range(series):
        write_series(folder / f"{number:03d}", volume, made_affine(), patient=f"MADE-{number}", adjust=adjust)
    return folder


def header_row(what: str, folder: Path, repeat: int, bar: float = 1 / 5.5) -> Row:
    """A header scanned, on one core, beside pydicom parsing it."""
    source = FolderSource(str(folder))
    keys = list(source.keys())
    paths = [str(folder / key) for key in keys]

    def scanned() -> None:
        reader = HeaderReader()
        with quiet_pydicom():
            for key in keys:
                scan_file(source, 0, key, reader)

    def parsed() -> None:
        for path in paths:
            pydicom.dcmread(path, stop_before_pixels=True)

    found = alternately({"ours": lambda: call_cost(scanned), "pydicom": lambda: call_cost(parsed)}, repeat)
    ours, peer = (1e6 * found[name].cpu / len(keys) for name in ("ours", "pydicom"))
    return Row(what, ours, peer, "pydicom.dcmread(stop_before_pixels=True)", "CPU us", bar)


def index_rows(folder: Path, scratch: Path, repeat: int) -> Iterator[Row]:
    """A file indexed: scanned, grouped and written; then with a second process."""
    paths = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    some = paths[:: MANY // SOME]

    def indexed(workers: int) -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        build_index([folder], scratch, workers=workers)

    def parsed() -> None:
        for path in some:
            pydicom.dcmread(path, stop_before_pixels=True)

    runs = {
        "ours": lambda: call_cost(lambda: indexed(1)),
        "pydicom": lambda: call_cost(parsed),
        "two": lambda: call_cost(lambda: indexed(2)),
    }
    found = alternately(runs, repeat)
    one, peer = 1e6 * found["ours"].cpu / len(paths), 1e6 * found["pydicom"].cpu / len(some)
    yield Row(f"a small CT file indexed, one of {len(paths)}", one, peer, "pydicom.dcmread(stop_before_pixels=True)", "CPU us", 1 / 4)
    two, alone = (1e6 * found[name].wall / len(paths) for name in ("two", "ours"))
    yield Row("a small CT file indexed by two processes, on a quiet machine", two, alone, "one process", "wall us", 1 / 1.3)


def made_ct(sides: tuple[int, int, int] = SIDES) -> NDArray[Any]:
    """(X, Y, Z) stored values of 12 bits: a body of soft tissue with structures in air, with the noise of a scanner."""
    random = np.random.default_rng(0)
    x, y = (np.linspace(-1, 1, side) for side in sides[:2])
    inside = (x[:, None] / 0.8) ** 2 + (y[None] / 0.6) ** 2 < 1
    volume = np.empty(sides, np.int16)
    for z in range(sides[2]):
        tissue = 1064 + 60 * np.sin(9 * x[:, None] + 0.05 * z) * np.sin(8 * y[None]) + random.normal(0, 12, sides[:2])
        volume[:, :, z] = np.where(inside, tissue, 24 + random.normal(0, 3, sides[:2])).clip(0, 4095)
    return volume


def written(folder: Path, volume: NDArray[Any], syntax: str = "", encode: Encode | None = None) -> Path:
    """The volume as a CT series, compressed where there is an encoder."""

    def compress(dataset: Dataset, z: int) -> None:
        if encode is not None:
            picture = np.frombuffer(dataset.PixelData, np.uint16).reshape(dataset.Rows, dataset.Columns)
            dataset.PixelData = encapsulate([encode(picture)])
            dataset["PixelData"].VR = "OB"
            dataset["PixelData"].is_undefined_length = True

    syntaxes = {"syntax": syntax} if syntax else {}
    write_series(folder, volume - 1024, made_affine(), signed=False, bits_stored=12, intercept=-1024, adjust=compress, **syntaxes)
    return folder


def stacked(files: Sequence[Path]) -> NDArray[Any]:
    """What a script does with pydicom: slices sorted by position, rescaled, stacked."""
    read = sorted((pydicom.dcmread(file) for file in files), key=lambda one: float(one.ImagePositionPatient[2]))
    return np.stack([one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in read]).astype(np.float32)


def read_rows(folder: Path, scratch: Path, repeat: int) -> Iterator[Row]:
    """An uncompressed series read into a volume, beside other readers, and the memory that takes."""
    files = sorted(folder.iterdir())
    index, name = opened(folder, scratch)
    runs = {"ours": lambda: call_cost(lambda: index.read(name)), "pydicom": lambda: call_cost(lambda: stacked(files))}
    bars = {"pydicom": ("pydicom, slices stacked", 1 / 5)}
    for peer, read in other_readers(folder).items():
        runs[peer] = lambda read=read: call_cost(read)  # type: ignore[misc]
        bars[peer] = (peer, 1 / 10 if "MONAI" in peer else 1 / 5)
    found = alternately(runs, repeat)
    size = index.read(name).array.nbytes / 2**20
    for peer, (called, bar) in bars.items():
        yield Row("uncompressed series -> volume", 1000 * found["ours"].cpu / size, 1000 * found[peer].cpu / size, called, "CPU ms/MB", bar)
    yield memory_row(index, name)


def memory_row(index: Index, name: str) -> Row:
    """The most that is held while a volume is read."""
    index.read(name)
    tracemalloc.start()
    volume = index.read(name).array
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    allowed = volume.nbytes * (1 + 2 / volume.shape[2])
    return Row("memory while a series is read", peak / 2**20, allowed / 2**20, "the volume and two slices", "MB", 1.0)


def opened(folder: Path, scratch: Path) -> tuple[Index, str]:
    """The index of one series, and its volume's name."""
    shutil.rmtree(scratch, ignore_errors=True)
    (record,) = build_index([folder], scratch, workers=1).volumes
    index = Index(scratch)
    index.read(record.volume)
    return index, record.volume


def other_readers(folder: Path) -> dict[str, Callable[[], object]]:
    """Those that are installed."""
    from monai.data import PydicomReader

    reader = PydicomReader()
    found: dict[str, Callable[[], object]] = {"MONAI PydicomReader": lambda: reader.get_data(reader.read(str(folder)))}
    try:
        import SimpleITK
    except ImportError:
        return found
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    found["SimpleITK"] = lambda: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(names))
    return found


def codec_rows(volume: NDArray[Any], folder: Path, repeat: int) -> Iterator[Row]:
    """Compressed series: beside pydicom on two CPUs, or beside the codec alone on as many threads as ours."""
    size = volume.nbytes / 2**20
    for name, (syntax, encode) in CODECS.items():
        series = written(folder / name.replace(" ", "-"), volume, syntax, encode)
        files = sorted(series.iterdir())
        index, of = opened(series, folder / "index")
        streams = [get_frame(pydicom.dcmread(file).PixelData, 0, number_of_frames=1) for file in files]
        runs: dict[str, Callable[[], Spent]] = {"ours": lambda index=index, of=of: call_cost(lambda: index.read(of))}  # type: ignore[misc]
        if name in BARS:
            runs["peer"] = lambda files=files: call_cost(lambda: stacked(files))  # type: ignore[misc]
            found = alternately(runs, repeat)
            ours, peer = (1000 * found[one].wall / size for one in ("ours", "peer"))
            yield Row(f"{name} series -> volume, two CPUs", ours, peer, "pydicom, slices stacked", "wall ms/MB", BARS[name])
        else:
            runs["peer"] = lambda streams=streams: call_cost(lambda: [imagecodecs.jpeg2k_decode(one, numthreads=1) for one in streams])  # type: ignore[misc]
            found = alternately(runs, repeat)
            ours, peer = (1000 * found[one].cpu / size for one in ("ours", "peer"))
            yield Row(f"{name} series -> volume", ours, peer, "the codec alone", "CPU ms/MB", 1.25)


def _rows(folder: Path, repeat: int) -> Iterator[Row]:
    yield header_row("header of a small CT file, 44 elements", made_archive(folder / "small", SOME), repeat)
    yield header_row("header of a CT file, 98 elements", made_archive(folder / "full", 10, as_scanner), repeat)
    yield from index_rows(made_archive(folder / "many", MANY), folder / "index", repeat)
    volume = made_ct()
    yield from read_rows(written(folder / "plain", volume), folder / "index", repeat)
    yield from codec_rows(volume, folder, max(1, repeat // 2))


def main() -> None:
    """Measure, print the table, write `build/bench/archive.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="runs of which the median is taken")
    wanted = parser.parse_args()
    if bind(CPUS) < CPUS:
        sys.exit(f"bench-archive needs {CPUS} CPUs: a second process has to run somewhere.")
    with TemporaryDirectory(prefix="medssl-bench-") as folder:
        rows = list(_rows(Path(folder), wanted.repeat))
    print(f"written to {publish('archive', rows)}")


if __name__ == "__main__":
    main()
