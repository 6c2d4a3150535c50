"""The cases: each writes a folder and says which volumes are right, or that none is and a reason must be given."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from medssl.testing import dicom
from medssl.testing.dicom import made_affine, made_volume, uid, write_localizer, write_secondary_capture
from staged.multiframe import frame, item, write_enhanced, write_grid, write_mosaic, write_nuclear

Volume = tuple[np.ndarray, np.ndarray]
"""Voxels (x, y, z) and affine to RAS+ mm."""
Case = Callable[[Path], "list[Volume] | None"]
CASES: dict[str, Case] = {}
SHAPE = (20, 16, 12)


def case(name: str, nested: bool = False) -> Callable[[Case], Case]:
    """All files lie in one folder, as some readers need it, unless the case is about folders."""

    def keep(function: Case) -> Case:
        def make(folder: Path) -> list[Volume] | None:
            wanted = function(folder)
            if not nested:
                _flatten(folder)
            return wanted

        CASES[name] = make
        return function

    return keep


def _flatten(folder: Path) -> None:
    for file in sorted(folder.glob("*/**/*")):
        if file.is_file():
            file.rename(folder / "-".join(file.relative_to(folder).parts))
    for below in list(folder.iterdir()):
        if below.is_dir():
            shutil.rmtree(below)


def write_series(
    folder: Path, *given: Any, adjust: Callable[[Dataset, int], Any] | None = None, shuffled: bool = False, **more: Any
) -> list[Path]:
    """As of `medssl.testing.dicom`, with instance numbers that run with the slices: readers that go by them are to have their chance."""

    def ordered(dataset: Dataset, z: int) -> None:
        if not shuffled:
            dataset.InstanceNumber = z + 1
        if adjust is not None:
            adjust(dataset, z)

    return dicom.write_series(folder, *given, adjust=ordered, **more)


def whole() -> Volume:
    return made_volume(SHAPE), made_affine()


def along(affine: np.ndarray, slices: float) -> np.ndarray:
    """The affine of the slices from that one on."""
    return affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, slices], [0, 0, 0, 1.0]])


def turned(axes: Iterable[Iterable[float]], spacing: tuple[float, float, float] = (0.8, 0.9, 2.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.array(list(axes), float).T * spacing
    affine[:3, 3] = [40.0, 35.0, -20.0]
    return affine


def oblique() -> np.ndarray:
    axes, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))
    return turned(axes.T)


def tilted(shear: float) -> np.ndarray:
    affine = made_affine()
    affine[1, 2] = shear
    return affine


GRIDS = {
    "axial": made_affine(),
    "sagittal": turned([[0, -1, 0], [0, 0, -1], [-1, 0, 0]]),
    "coronal": turned([[-1, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "oblique": oblique(),
    "prone": turned([[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "decubitus": turned([[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
    "feet first": turned([[1, 0, 0], [0, -1, 0], [0, 0, -1]]),
    "slices of 0.3 mm": made_affine((0.3, 0.3, 0.3)),
    "slices of 10 mm": made_affine((0.5, 0.5, 10.0)),
    "pixels twice as long as wide": made_affine((0.5, 1.0, 2.0)),
    "gantry tilt of 14 degrees": tilted(0.5),
    "gantry tilt of -27 degrees": tilted(-1.0),
}
for _name, _grid in GRIDS.items():

    def _gridded(folder: Path, grid: np.ndarray = _grid) -> list[Volume]:
        write_series(folder, made_volume(SHAPE), grid)
        return [(made_volume(SHAPE), grid)]

    case(_name)(_gridded)


def written(**given: Any) -> Case:
    """One ordinary series, written with what is given."""

    def write(folder: Path) -> list[Volume]:
        write_series(folder, *whole(), **given)
        return [whole()]

    return write


def numbered(number: Callable[[int], int | None]) -> Case:
    def change(dataset: Dataset, z: int) -> None:
        dataset.InstanceNumber = number(z)

    return written(adjust=change)


case("instance numbers reversed")(numbered(lambda z: 100 - z))
case("instance numbers shuffled")(written(shuffled=True))
case("instance numbers all equal")(numbered(lambda z: 1))
case("instance numbers missing")(numbered(lambda z: None))
case("acquisition time of each slice its own")(
    written(adjust=lambda dataset, z: setattr(dataset, "AcquisitionTime", f"1010{(z * 7) % 12:02d}"))
)
case("SpacingBetweenSlices that contradicts the positions")(
    written(adjust=lambda dataset, z: setattr(dataset, "SpacingBetweenSlices", "5"))
)
case("no study date, no patient, no descriptions")(
    written(adjust=lambda dataset, z: [delattr(dataset, name) for name in ("StudyDate", "PatientName", "SeriesDescription")])
)


@case("the same files in two folders", nested=True)
def _(folder: Path) -> list[Volume]:
    write_series(folder / "a", *whole())
    shutil.copytree(folder / "a", folder / "b")
    return [whole()]


@case("files without any ending in folders of folders", nested=True)
def _(folder: Path) -> list[Volume]:
    for index, file in enumerate(write_series(folder, *whole())):
        (folder / f"{index % 3}/deep").mkdir(parents=True, exist_ok=True)
        file.rename(folder / f"{index % 3}/deep/{index}")
    return [whole()]


@case("a text file and an empty file among the slices")
def _(folder: Path) -> list[Volume]:
    write_series(folder, *whole())
    (folder / "notes.txt").write_text("nothing\n" * 100)
    (folder / "empty").touch()
    return [whole()]


@case("one file cut off")
def _(folder: Path) -> list[Volume]:
    last = write_series(folder, *whole())[-1]
    last.write_bytes(last.read_bytes()[:-100])
    voxels, affine = whole()
    return [(voxels[:, :, :-1], affine)]


def missing(*lost: int) -> Case:
    """Slices are missing: what lies between is cut there."""

    def write(folder: Path) -> list[Volume]:
        voxels, affine = whole()
        write_series(folder, voxels, affine, skip=lost)
        ends = [-1, *lost, SHAPE[2]]
        pieces = [(first + 1, last) for first, last in pairwise(ends) if last - first > 2]
        return [(voxels[:, :, first:last], along(affine, first)) for first, last in pieces]

    return write


case("a slice missing in the middle")(missing(5))
case("a slice missing near the end")(missing(10))
case("two slices missing")(missing(3, 8))
case("first slice missing")(missing(0))


@case("two spacings in one series")
def _(folder: Path) -> list[Volume]:
    first, second = made_volume((20, 16, 6), 1), made_volume((20, 16, 6), 2)
    wide = made_affine((0.8, 0.9, 5.0), (40.0, 35.0, -3.0))
    write_parts(folder, [(first, made_affine(), {}), (second, wide, {})])
    return [(first, made_affine()), (second, wide)]


@case("one place twice, nothing tells which")
def _(folder: Path) -> list[Volume]:
    voxels, affine = whole()
    write_parts(folder, [(voxels, affine, {}), (made_volume((20, 16, 1), 9), along(affine, 6), {})], lambda part, z: 1)
    return [(voxels[:, :, :6], affine), (voxels[:, :, 7:], along(affine, 7))]


@case("all slices at one place")
def _(folder: Path) -> None:
    write_series(folder, *whole(), adjust=lambda dataset, z: setattr(dataset, "ImagePositionPatient", [0, 0, 0]))


Part = tuple[np.ndarray, np.ndarray, dict[str, Any]]


def write_parts(folder: Path, parts: Iterable[Part], number: Callable[[int, int], int | None] = lambda part, z: 100 * part + z + 1) -> None:
    """Series under one UID, each with what its headers say."""
    for index, (voxels, affine, tags) in enumerate(parts):

        def change(dataset: Dataset, z: int, index: int = index, tags: dict[str, Any] = tags) -> None:
            dataset.SOPInstanceUID, dataset.InstanceNumber = uid("part", index, z), number(index, z)
            for keyword, value in tags.items():
                setattr(dataset, keyword, value)

        write_series(folder / f"part{index}", voxels, affine, modality="MR", adjust=change)


def repeated(count: int, cut: int | None = None, number: Callable[[int, int], int | None] = lambda part, z: 1, **tags: list[Any]) -> Case:
    """So many volumes at the same places, told apart by what `tags` say of each; the last breaks off after `cut` slices."""

    def write(folder: Path) -> list[Volume]:
        parts = [
            (made_volume((20, 16, 6), t), made_affine(), {name: values[t % len(values)] for name, values in tags.items()})
            for t in range(count)
        ]
        if cut is not None:
            parts[-1] = (parts[-1][0][:, :, :cut], *parts[-1][1:])
        write_parts(folder, parts, number)
        return [(voxels, affine) for voxels, affine, _ in parts]

    return write


MAGNITUDE, PHASE = ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]
case("two echoes")(repeated(2, EchoTime=[5.0, 10.0], EchoNumbers=[1, 2]))
case("magnitude and phase")(repeated(2, ImageType=[MAGNITUDE, PHASE]))
case("two frames of reference")(repeated(2, FrameOfReferenceUID=[uid(1), uid(2)]))
case("two reconstruction kernels")(repeated(2, ConvolutionKernel=["B30f", "B70f"]))
case("water and fat")(repeated(2, ImageType=[["DERIVED", "PRIMARY", "WATER"], ["DERIVED", "PRIMARY", "FAT"]]))
case("dynamic: temporal position")(repeated(4, TemporalPositionIdentifier=[1, 2, 3, 4]))
case("dynamic: acquisition number")(repeated(3, AcquisitionNumber=[1, 2, 3]))
case("dynamic: acquisition time")(repeated(3, AcquisitionTime=["101010", "101020", "101030"]))
case("cine: trigger time")(repeated(4, TriggerTime=[0.0, 40.0, 80.0, 120.0]))
case("diffusion: b-values")(repeated(3, DiffusionBValue=[0.0, 500.0, 1000.0]))
case("diffusion: directions")(
    repeated(3, DiffusionBValue=[1000.0] * 3, DiffusionGradientOrientation=[[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
)
case("inversion times")(repeated(3, InversionTime=[100.0, 500.0, 900.0]))
case("flip angles")(repeated(3, FlipAngle=[2.0, 10.0, 20.0]))
case("echoes and time points together")(repeated(4, EchoTime=[5.0, 10.0], EchoNumbers=[1, 2], TemporalPositionIdentifier=[1, 1, 2, 2]))
case("time and acquisition together")(repeated(4, TemporalPositionIdentifier=[1, 1, 2, 2], AcquisitionNumber=[1, 2, 1, 2]))
case("a repetition that breaks off")(repeated(4, 3, TemporalPositionIdentifier=[1, 2, 3, 4]))
case("acquisitions of which one breaks off")(repeated(3, 2, AcquisitionNumber=[1, 2, 3]))
case("numbers alone, repetition by repetition")(repeated(4, number=lambda part, z: 1 + 6 * part + z))
case("numbers alone, place by place")(repeated(4, number=lambda part, z: 1 + 4 * z + part))
case("numbers alone, downwards")(repeated(4, number=lambda part, z: 6 + 6 * part - z))
case("numbers alone, the last repetition breaks off")(repeated(4, 3, number=lambda part, z: 1 + 6 * part + z))


@case("repetitions that nothing tells apart")
def _(folder: Path) -> None:
    shuffled = np.random.default_rng(0).permutation(24).reshape(4, 6)
    repeated(4, number=lambda part, z: int(shuffled[part, z]))(folder)


@case("acquisitions that overlap in part")
def _(folder: Path) -> list[Volume]:
    parts = [(made_volume(SHAPE, n), along(made_affine(), 8 * n), {"AcquisitionNumber": n + 1}) for n in range(2)]
    write_parts(folder, parts)
    return [(voxels, affine) for voxels, affine, _ in parts]


@case("acquisitions between each other's slices")
def _(folder: Path) -> list[Volume]:
    parts = [(made_volume(SHAPE, n), along(made_affine(), 7.5 * n), {"AcquisitionNumber": n + 1}) for n in range(2)]
    write_parts(folder, parts)
    return [(voxels, affine) for voxels, affine, _ in parts]


@case("a localizer under the series UID")
def _(folder: Path) -> list[Volume]:
    write_series(folder, *whole(), series="ct")
    write_localizer(folder, series="ct")
    return [whole()]


@case("a scout that does not say so")
def _(folder: Path) -> list[Volume]:
    write_series(folder, *whole())
    scout = turned([[-1, 0, 0], [0, 0, -1], [0, -1, 0]], (4.0, 4.0, 4.0))
    write_series(folder / "s", made_volume((20, 16, 1)), scout, adjust=lambda dataset, z: setattr(dataset, "SOPInstanceUID", uid("s")))
    return [whole()]


@case("a screenshot in the folder")
def _(folder: Path) -> list[Volume]:
    write_series(folder, *whole())
    write_secondary_capture(folder / "s")
    return [whole()]


@case("two matrix sizes under one UID")
def _(folder: Path) -> list[Volume]:
    other = made_volume((24, 18, 5), 4)
    write_parts(folder, [(*whole(), {}), (other, made_affine(), {})])
    return [whole(), (other, made_affine())]


@case("two orientations under one UID")
def _(folder: Path) -> list[Volume]:
    other = made_volume((20, 16, 5), 4)
    write_parts(folder, [(*whole(), {}), (other, GRIDS["coronal"], {})])
    return [whole(), (other, GRIDS["coronal"])]


def values(voxels: np.ndarray, **given: Any) -> Case:
    def write(folder: Path) -> list[Volume]:
        write_series(folder, voxels, made_affine(), **given)
        return [(voxels, made_affine())]

    return write


POSITIVE = np.abs(made_volume(SHAPE)).astype(np.int32)
case("12 bits of 16, unsigned")(values(POSITIVE, signed=False, bits_stored=12))
case("12 bits of 16, signed")(values(made_volume(SHAPE), bits_stored=12))
case("16 bits unsigned, above 32767")(values(POSITIVE * 60, signed=False))
case("slope and intercept")(values(made_volume(SHAPE).astype(np.int32) * 2 - 1024, slope=2.0, intercept=-1024.0))
case("a slope with digits")(values(POSITIVE * 0.25, slope=0.25))


@case("slope and intercept of each slice")
def _(folder: Path) -> list[Volume]:
    stored, slopes = POSITIVE, 0.5 + np.arange(SHAPE[2])

    def change(dataset: Dataset, z: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = float(slopes[z]), float(-10 * z)

    write_series(folder, stored, made_affine(), modality="PT", adjust=change)
    return [(stored * slopes - 10.0 * np.arange(SHAPE[2]), made_affine())]


@case("overlay in the high bits")
def _(folder: Path) -> list[Volume]:
    def change(dataset: Dataset, z: int) -> None:
        plane = np.frombuffer(dataset.PixelData, "<u2") | 0xF000
        dataset.PixelData = plane.astype("<u2").tobytes()

    write_series(folder, POSITIVE, made_affine(), signed=False, bits_stored=12, adjust=change)
    return [(POSITIVE, made_affine())]


for _name, _syntax in (
    ("implicit representation", ImplicitVRLittleEndian),
    ("deflated", DeflatedExplicitVRLittleEndian),
):
    case(_name)(written(syntax=_syntax))


@case("big endian")
def _(folder: Path) -> list[Volume]:
    def swap(dataset: Dataset, z: int) -> None:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()

    write_series(folder, *whole(), syntax=ExplicitVRBigEndian, adjust=swap)
    return [whole()]


def compressed(syntax: str) -> Case:
    def write(folder: Path) -> list[Volume]:
        for file in write_series(folder, *whole()):
            dataset = pydicom.dcmread(file)
            if syntax == RLELossless:
                dataset.compress(syntax, generate_instance_uid=False)
            else:
                content = imagecodecs.jpeg2k_encode(dataset.pixel_array, codecformat="j2k", reversible=True)
                dataset.PixelData, dataset.file_meta.TransferSyntaxUID = encapsulate([content]), syntax
                dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
            dataset.save_as(file)
        return [whole()]

    return write


case("run-length compressed")(compressed(RLELossless))
case("JPEG 2000 compressed")(compressed(JPEG2000Lossless))


def placed(write: Callable[[float], str], affine: np.ndarray | None = None) -> Case:
    grid = made_affine() if affine is None else affine

    def adjust(dataset: Dataset, z: int) -> None:
        dataset.ImagePositionPatient = [write(float(value)) for value in dataset.ImagePositionPatient]

    def made(folder: Path) -> list[Volume]:
        write_series(folder, made_volume(SHAPE), grid, adjust=adjust)
        return [(made_volume(SHAPE), grid)]

    return made


FINE = made_affine((0.5, 0.5, 0.625), (40.0, 35.0, -20.0))
case("positions rounded to a tenth")(placed(lambda value: f"{value:.1f}", FINE))
case("positions rounded to a hundredth")(placed(lambda value: f"{value:.2f}", FINE))
case("positions as small as the digits of a float")(placed(lambda value: f"{np.float32(value + 1e-5):.5e}"))


def rewritten(old: bytes, new: bytes) -> Case:
    def write(folder: Path) -> list[Volume]:
        for file in write_series(folder, *whole()):
            content = file.read_bytes()
            assert old in content and len(old) == len(new)
            file.write_bytes(content.replace(old, new))
        return [whole()]

    return write


case("a decimal comma")(rewritten(b"0.9\\0.8 ", b"0,9\\0,8 "))
case("a zero byte after a number")(rewritten(b"0.9\\0.8 ", b"0.9\\0.8\0"))


@case("positions removed")
def _(folder: Path) -> None:
    def strip(dataset: Dataset, z: int) -> None:
        del dataset.ImagePositionPatient
        dataset.SliceLocation = 2.0 * z

    write_series(folder, *whole(), adjust=strip)


@case("a series in a zip file inside the folder")
def _(folder: Path) -> list[Volume]:
    write_series(folder.parent / f"{folder.name} loose", *whole())
    folder.mkdir(parents=True, exist_ok=True)
    shutil.make_archive(str(folder / "export"), "zip", folder.parent / f"{folder.name} loose")
    return [whole()]


def enhanced(sop_class: str, syntax: str = "", shuffled: bool = False) -> Case:
    def write(folder: Path) -> list[Volume]:
        voxels, affine = whole()
        order = np.random.default_rng(0).permutation(SHAPE[2]) if shuffled else np.arange(SHAPE[2])
        write_enhanced(folder / "a", [frame(voxels, affine, int(z)) for z in order], affine, sop_class, syntax)
        return [whole()]

    return write


case("enhanced MR")(enhanced(EnhancedMRImageStorage))
case("enhanced CT")(enhanced(EnhancedCTImageStorage))
case("enhanced PET")(enhanced(EnhancedPETImageStorage))
case("enhanced MR, frames in any order")(enhanced(EnhancedMRImageStorage, shuffled=True))
case("enhanced MR, run-length compressed")(enhanced(EnhancedMRImageStorage, RLELossless))


@case("enhanced MR, time points")
def _(folder: Path) -> list[Volume]:
    parts, affine = [made_volume((20, 16, 6), seed) for seed in range(3)], made_affine()
    frames = []
    for t, voxels in enumerate(parts):
        for z in range(6):
            content = item(StackID="1", InStackPositionNumber=z + 1, TemporalPositionIndex=t + 1)
            frames.append(frame(voxels, affine, z, FrameContentSequence=Items([content])))
    write_enhanced(folder / "a", frames, affine)
    return [(voxels, affine) for voxels in parts]


@case("enhanced MR, scaling of each frame")
def _(folder: Path) -> list[Volume]:
    voxels, affine = made_volume((20, 16, 6)), made_affine()
    frames = []
    for z in range(6):
        transform = item(RescaleSlope=0.5 + z, RescaleIntercept=10.0 * z, RescaleType="US")
        frames.append(frame(voxels, affine, z, PixelValueTransformationSequence=Items([transform])))
    write_enhanced(folder / "a", frames, affine)
    return [(voxels * (0.5 + np.arange(6)) + 10.0 * np.arange(6), affine)]


def mosaic(depth: int, downwards: bool = False) -> Case:
    def write(folder: Path) -> list[Volume]:
        voxels, affine = made_volume((20, 16, depth)), made_affine()
        affine[:3, 2] *= -1 if downwards else 1
        write_mosaic(folder / "a.dcm", voxels, affine)
        return [(voxels, affine)]

    return write


case("mosaic of 9 slices")(mosaic(9))
case("mosaic of 7 slices, downwards")(mosaic(7, True))


@case("mosaic, its own header in another private block")
def _(folder: Path) -> list[Volume]:
    write_mosaic(folder / "a.dcm", made_volume((20, 16, 9)), made_affine(), block=0x11)
    return [(made_volume((20, 16, 9)), made_affine())]


@case("mosaic, slices counted by their times")
def _(folder: Path) -> list[Volume]:
    write_mosaic(folder / "a.dcm", made_volume((20, 16, 7)), made_affine(), counted="times")
    return [(made_volume((20, 16, 7)), made_affine())]


@case("mosaic without its own header: nothing says which way slices run")
def _(folder: Path) -> None:
    write_mosaic(folder / "a.dcm", made_volume((20, 16, 9)), made_affine(), block=0, counted="element")


@case("mosaics of three time points")
def _(folder: Path) -> list[Volume]:
    parts = [made_volume((20, 16, 9), seed) for seed in range(3)]
    for t, voxels in enumerate(parts):
        write_mosaic(folder / f"{t}.dcm", voxels, made_affine(), AcquisitionNumber=t + 1, InstanceNumber=t + 1)
    return [(voxels, made_affine()) for voxels in parts]


@case("grid of tiles with a position each")
def _(folder: Path) -> list[Volume]:
    voxels, affine = made_volume((20, 16, 20)), made_affine()
    write_grid(folder / "a", voxels, affine, 5, 4)
    return [(voxels, affine)]


@case("grid of tiles, implicit representation")
def _(folder: Path) -> list[Volume]:
    voxels, affine = made_volume((20, 16, 20)), made_affine()
    write_grid(folder / "a", voxels, affine, 5, 4, ImplicitVRLittleEndian)
    return [(voxels, affine)]


def nuclear(downwards: bool = False, shuffled: bool = False) -> Case:
    def write(folder: Path) -> list[Volume]:
        voxels, affine = made_volume((20, 16, 9)), made_affine()
        affine[:3, 2] *= -1 if downwards else 1
        order = [0, *(np.random.default_rng(0).permutation(8) + 1).tolist()] if shuffled else range(9)
        write_nuclear(folder / "a", [(voxels[:, :, z], z) for z in order], affine)
        return [(voxels, affine)]

    return write


case("SPECT, slices behind each other")(nuclear())
case("SPECT, slices in front of each other")(nuclear(downwards=True))
case("SPECT, slices in any order")(nuclear(shuffled=True))


@case("SPECT, three gates")
def _(folder: Path) -> list[Volume]:
    parts, affine = [made_volume((20, 16, 9), seed) for seed in range(3)], made_affine()
    write_nuclear(
        *(folder / "a", [(voxels[:, :, z], z) for voxels in parts for z in range(9)], affine),
        ImageType=["ORIGINAL", "PRIMARY", "RECON GATED TOMO", "EMISSION"],
        FrameIncrementPointer=[0x00540060, 0x00540070, 0x00540080],
        RRIntervalVector=[1] * 27,
        TimeSlotVector=[1 + index // 9 for index in range(27)],
    )
    return [(voxels, affine) for voxels in parts]


@case("SPECT, projections")
def _(folder: Path) -> None:
    voxels = made_volume((20, 16, 9))
    write_nuclear(
        *(folder / "a", [(voxels[:, :, z], z) for z in range(9)], made_affine()), ImageType=["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]
    )


@case("multi-frame CT of the old kind, positions of no frame but the first")
def _(folder: Path) -> None:
    voxels, (file, *others) = made_volume(SHAPE), write_series(folder, *whole())
    made = pydicom.dcmread(file)
    made.NumberOfFrames, made.SpacingBetweenSlices = SHAPE[2], 2.0
    made.PixelData = voxels.T.astype("<i2").tobytes()
    made.save_as(file)
    for other in others:
        other.unlink()
