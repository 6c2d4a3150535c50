"""Objects of many frames and planes of many tiles: the slices in them end as slices of their own would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from archive.contents import contents, wanted
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    RLELossless,
    XRay3DAngiographicImageStorage,
)
from staged.multiframe import Counted, Frame, base, frame, item, plane, write_enhanced, write_grid, write_mosaic, write_nuclear

from medssl.archive import Index, Reason, wanted_elements
from medssl.testing.dicom import made_affine, made_volume, write_series

Indexed = Callable[..., Index]


@pytest.mark.parametrize("syntax", ["", RLELossless], ids=["uncompressed", "RLE"])
@pytest.mark.parametrize(
    "sop_class", [EnhancedMRImageStorage, EnhancedCTImageStorage, EnhancedPETImageStorage, XRay3DAngiographicImageStorage]
)
def test_an_enhanced_object_is_the_volume_of_its_frames_in_any_order(sop_class: str, syntax: str, archive: Path, indexed: Indexed) -> None:
    voxels, affine = made_volume((6, 5, 7)), made_affine()
    order = np.random.default_rng(0).permutation(7)
    write_enhanced(archive / "a", [frame(voxels, affine, int(z)) for z in order], affine, sop_class, syntax)
    index = indexed(archive)
    assert contents(index) == wanted((voxels, affine)) and index.rejected() == {}
    assert (index.summary().files, index.volumes()[0].instances) == (1, 1)


@pytest.mark.parametrize("stated", ["YES", "NO"])
def test_an_enhanced_pet_says_in_a_group_whether_attenuation_is_corrected(stated: str, archive: Path, indexed: Indexed) -> None:
    voxels, affine = made_volume((6, 5, 4)), made_affine()
    group = Items([item(AttenuationCorrected=stated)])
    frames = [frame(voxels, affine, z, PETFrameCorrectionFactorsSequence=group) for z in range(4)]
    write_enhanced(archive / "a", frames, affine, EnhancedPETImageStorage)
    index = indexed(archive)
    assert {one.corrected for one in index.slices(index.volumes()[0].volume)} == {("ATTN",) if stated == "YES" else ()}


def test_scaling_is_that_of_each_frame(archive: Path, indexed: Indexed) -> None:
    voxels, affine = made_volume((6, 5, 4)), made_affine()

    def scaled(z: int) -> Frame:
        transform = item(RescaleSlope=0.5 + z, RescaleIntercept=10.0 * z, RescaleType="US")
        return frame(voxels, affine, z, PixelValueTransformationSequence=Items([transform]))

    write_enhanced(archive / "a", [scaled(z) for z in range(4)], affine)
    assert contents(indexed(archive)) == wanted((voxels * (0.5 + np.arange(4)) + 10 * np.arange(4), affine))


def test_time_points_and_echoes_are_volumes_of_their_own(archive: Path, indexed: Indexed) -> None:
    parts, affine = [made_volume((6, 5, 4), seed) for seed in range(4)], made_affine()

    def of(part: int, z: int) -> Frame:
        content = item(StackID="1", InStackPositionNumber=z + 1, TemporalPositionIndex=part % 2 + 1)
        echo = item(EffectiveEchoTime=[10.0, 20.0][part // 2])
        return frame(parts[part], affine, z, FrameContentSequence=Items([content]), MREchoSequence=Items([echo]))

    write_enhanced(archive / "a", [of(part, z) for z in range(4) for part in range(4)], affine)
    index = indexed(archive)
    assert contents(index) == wanted(*((voxels, affine) for voxels in parts))
    assert {record.split_by for record in index.volumes()} == {"echo, temporal position"}
    assert {record.echo_time for record in index.volumes()} == {10.0, 20.0}


def test_diffusion_frames_are_told_apart_and_named(archive: Path, indexed: Indexed) -> None:
    parts, affine = [made_volume((6, 5, 4), seed) for seed in range(3)], made_affine()

    def of(part: int, z: int) -> Frame:
        diffusion = item(DiffusionBValue=[0.0, 1000.0, 1000.0][part])
        if part:
            direction = item(DiffusionGradientOrientation=[[1.0, 0, 0], [0, 1.0, 0]][part - 1])
            diffusion.DiffusionGradientDirectionSequence = Items([direction])
        return frame(parts[part], affine, z, MRDiffusionSequence=Items([diffusion]))

    write_enhanced(archive / "a", [of(part, z) for part in range(3) for z in range(4)], affine)
    index = indexed(archive)
    assert contents(index) == wanted(*((voxels, affine) for voxels in parts))
    assert sorted(record.b_value for record in index.volumes() if record.b_value is not None) == [0.0, 1000.0, 1000.0]


def test_a_dimension_that_only_its_index_names_tells_frames_apart(archive: Path, indexed: Indexed) -> None:
    parts, affine = [made_volume((6, 5, 4), seed) for seed in range(2)], made_affine()

    def of(part: int, z: int) -> Frame:
        content = item(StackID="1", InStackPositionNumber=z + 1, DimensionIndexValues=[1, z + 1, part + 1])
        return frame(parts[part], affine, z, FrameContentSequence=Items([content]))

    pointers = [item(DimensionIndexPointer=tag) for tag in (0x00209056, 0x00209057, 0x00181086)]
    write_enhanced(archive / "a", [of(part, z) for part in range(2) for z in range(4)], affine, DimensionIndexSequence=Items(pointers))
    index = indexed(archive)
    assert contents(index) == wanted(*((voxels, affine) for voxels in parts))
    assert {record.split_by for record in index.volumes()} == {"dimension index"}


def test_stacks_of_several_orientations_are_several_volumes(archive: Path, indexed: Indexed) -> None:
    coronal = np.array([[-0.8, 0, 0, 40], [0, 0, 2, 35], [0, -0.9, 0, -20], [0, 0, 0, 1.0]])
    parts = [(made_volume((6, 6, 4), 0), made_affine()), (made_volume((6, 6, 4), 1), coronal)]

    def of(part: int, z: int) -> Frame:
        voxels, affine = parts[part]
        orientation, spacing = plane(affine)
        groups = {
            "FrameContentSequence": Items([item(StackID=str(part + 1), InStackPositionNumber=z + 1)]),
            "PlaneOrientationSequence": Items([item(ImageOrientationPatient=orientation)]),
            "PixelMeasuresSequence": Items([item(PixelSpacing=spacing, SliceThickness=2.0)]),
        }
        return frame(voxels, affine, z, **groups)

    write_enhanced(archive / "a", [of(part, z) for part in range(2) for z in range(4)], None)
    index = indexed(archive)
    found = {tuple(np.round(index.read(record.volume).affine[:3, 0], 3)): index.read(record.volume) for record in index.volumes()}
    assert len(index.volumes()) == 2 and index.rejected() == {} and found
    for volume in (index.read(record.volume) for record in index.volumes()):
        voxels, affine = parts[0] if np.allclose(volume.affine[:3, :2], made_affine()[:3, :2]) else parts[1]
        for z in range(4):
            (at,) = [n for n in range(4) if np.allclose(volume.affine @ [0, 0, n, 1], affine @ [0, 0, z, 1], atol=1e-4)]
            assert np.array_equal(volume.array[:, :, at], voxels[:, :, z])


def test_a_classic_and_an_enhanced_copy_in_one_series_are_not_mixed(archive: Path, indexed: Indexed) -> None:
    voxels, affine = made_volume((6, 5, 4)), made_affine()
    files = write_series(archive / "classic", voxels, affine, modality="MR")
    header = pydicom.dcmread(files[0])
    shared = {"SeriesInstanceUID": header.SeriesInstanceUID, "StudyInstanceUID": header.StudyInstanceUID, "ImageType": header.ImageType}
    frames = [frame(voxels, affine, z) for z in range(4)]
    write_enhanced(archive / "a", frames, affine, **shared, FrameOfReferenceUID=header.FrameOfReferenceUID)
    index = indexed(archive)
    assert contents(index) == wanted((voxels, affine), (voxels, affine)) and index.rejected() == {}


def test_one_object_a_time_point_is_told_apart_by_its_object(archive: Path, indexed: Indexed) -> None:
    parts, affine = [made_volume((6, 5, 4), seed) for seed in range(3)], made_affine()
    for number, voxels in enumerate(parts):
        write_enhanced(archive / str(number), [frame(voxels, affine, z) for z in range(4)], affine)
    index = indexed(archive)
    assert contents(index) == wanted(*((voxels, affine) for voxels in parts))
    assert {record.split_by for record in index.volumes()} == {"object"}


def test_the_same_object_in_two_folders_is_one(archive: Path, indexed: Indexed) -> None:
    voxels, affine = made_volume((6, 5, 4)), made_affine()
    for folder in ("a", "b"):
        write_enhanced(archive / folder / "same", [frame(voxels, affine, z) for z in range(4)], affine)
    index = indexed(archive)
    assert contents(index) == wanted((voxels, affine)) and index.rejected() == {Reason.DUPLICATE: 1}


def test_frames_without_a_position_stay_a_reason(archive: Path, indexed: Indexed) -> None:
    voxels, affine = made_volume((6, 5, 7)), made_affine()
    frames = [frame(voxels, affine, z) for z in range(7)]
    del frames[2][1].PlanePositionSequence
    write_enhanced(archive / "a", frames, affine)
    cine = base(MultiFrameGrayscaleWordSecondaryCaptureImageStorage.replace(".7.3", ".6.2"), 5, 6, "cine")
    cine.NumberOfFrames, cine.PixelData = 7, voxels.tobytes()
    cine["PixelData"].VR = "OW"
    cine.save_as(archive / "cine", enforce_file_format=True)
    index = indexed(archive)
    # What lies around the frame without a place is cut there.
    assert index.rejected()[Reason.MULTIFRAME] == 1 and index.rejected()[Reason.NO_POSITION] == 1
    assert sorted(record.shape for record in index.volumes()) == [(6, 5, 2), (6, 5, 4)]


@pytest.mark.parametrize("change", ["cut", "fewer groups"])
def test_an_object_that_contradicts_itself_is_a_reason(change: str, archive: Path, indexed: Indexed) -> None:
    voxels, affine = made_volume((6, 5, 4)), made_affine()
    made = write_enhanced(archive / "a", [frame(voxels, affine, z) for z in range(4)], affine)
    if change == "cut":
        (archive / "a").write_bytes((archive / "a").read_bytes()[:-10])
    else:
        made.NumberOfFrames = 5
        made.save_as(archive / "a", enforce_file_format=True)
    assert indexed(archive).rejected() == {Reason.TRUNCATED if change == "cut" else Reason.CORRUPT: 1}


@pytest.mark.parametrize("depth", [4, 7, 9])
@pytest.mark.parametrize("downwards", [False, True])
def test_a_mosaic_is_the_volume_of_its_tiles(depth: int, downwards: bool, archive: Path, indexed: Indexed) -> None:
    voxels, affine = made_volume((6, 5, depth)), made_affine()
    if downwards:
        affine[:3, 2] *= -1
    write_mosaic(archive / "a", voxels, affine)
    index = indexed(archive)
    upwards = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, depth - 1], [0, 0, 0, 1.0]])
    assert contents(index) == (wanted((voxels[:, :, ::-1], upwards)) if downwards else wanted((voxels, affine)))
    assert index.volumes()[0].instances == 1


def test_the_long_header_within_the_header_is_wanted_of_mosaics_alone(archive: Path) -> None:
    write_mosaic(archive / "a", made_volume((6, 5, 4)), made_affine())
    mosaic, (plain, *_) = pydicom.dcmread(archive / "a"), write_series(archive / "b", made_volume((6, 5, 4)), made_affine())
    wanted_of = [wanted_elements(one) for one in (mosaic, pydicom.dcmread(plain))]
    assert 0x00291010 in wanted_of[0] - wanted_of[1] and {0x00200032, 0x0019100C} < wanted_of[1]


def test_mosaics_of_one_series_are_told_apart(archive: Path, indexed: Indexed) -> None:
    parts = [made_volume((6, 5, 4), seed) for seed in range(3)]
    for number, voxels in enumerate(parts):
        write_mosaic(archive / str(number), voxels, made_affine(), AcquisitionNumber=number + 1, InstanceNumber=number + 1)
    index = indexed(archive)
    assert contents(index) == wanted(*((voxels, made_affine()) for voxels in parts))
    assert {record.split_by for record in index.volumes()} == {"acquisition number"}


def test_a_mosaic_that_does_not_say_which_way_its_slices_run_is_a_reason(archive: Path, indexed: Indexed) -> None:
    write_mosaic(archive / "a", made_volume((6, 5, 4)), made_affine())
    made = pydicom.dcmread(archive / "a")
    del made[0x00291010]
    made.save_as(archive / "a")
    assert indexed(archive).rejected() == {Reason.MOSAIC: 1}


@pytest.mark.parametrize("counted", ["element", "times"])
def test_what_else_counts_the_slices_of_a_mosaic(counted: Counted, archive: Path, indexed: Indexed) -> None:
    voxels, affine = made_volume((6, 5, 7)), made_affine()
    write_mosaic(archive / "a", voxels, affine, counted=counted)
    assert contents(indexed(archive)) == wanted((voxels, affine))


def test_the_header_within_the_header_of_a_mosaic_may_stand_in_another_block(archive: Path, indexed: Indexed) -> None:
    voxels, affine = made_volume((6, 5, 7)), made_affine()
    write_mosaic(archive / "a", voxels, affine, block=0x11)
    assert contents(indexed(archive)) == wanted((voxels, affine))


@pytest.mark.parametrize("counted", ["element", "times"])
def test_a_mosaic_of_which_only_the_count_is_left_is_a_reason(counted: Counted, archive: Path, indexed: Indexed) -> None:
    write_mosaic(archive / "a", made_volume((6, 5, 7)), made_affine(), block=0, counted=counted)
    assert indexed(archive).rejected() == {Reason.MOSAIC: 1}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(("depth", "across", "down"), [(20, 5, 4), (4, 2, 2), (7, 3, 3)])
def test_a_grid_says_where_each_of_its_tiles_lies(depth: int, across: int, down: int, syntax: str, archive: Path, indexed: Indexed) -> None:
    voxels, affine = made_volume((6, 5, depth)), made_affine()
    write_grid(archive / "a", voxels, affine, across, down, syntax)
    assert contents(indexed(archive)) == wanted((voxels, affine))


def test_a_grid_whose_sequence_is_cut_off_is_a_reason(archive: Path, indexed: Indexed) -> None:
    voxels = made_volume((6, 5, 4))
    write_grid(archive / "a", voxels, made_affine(), 2, 2, ImplicitVRLittleEndian)
    made = pydicom.dcmread(archive / "a")
    content = made.get_item(0x00651051).value
    for number, bad in enumerate((content[:-10], content[: len(content) // 2], b"no items at all.")):
        made = pydicom.dcmread(archive / "a")
        made[0x00651051] = pydicom.DataElement(0x00651051, "UN", bad)
        made.SOPInstanceUID = f"1.2.{number}"
        made.save_as(archive / f"bad {number}")
    (archive / "a").unlink()
    index = indexed(archive)
    assert index.rejected() == {Reason.CORRUPT: 2, Reason.BAD_GEOMETRY: 1}
    # Cut within the last position: the three before it are whole.
    assert contents(index) == wanted((voxels[:, :, :3], made_affine()))


# Nuclear medicine.


def behind(affine: np.ndarray) -> np.ndarray:
    """The same grid with slices that run the other way along the normal."""
    other = affine.copy()
    other[:3, 2] *= -1
    return other


@pytest.mark.parametrize("turned", [False, True], ids=["behind each other", "in front of each other"])
def test_a_reconstruction_is_stacked_to_the_side_that_the_sign_of_its_spacing_says(turned: bool, archive: Path, indexed: Indexed) -> None:
    voxels = made_volume((6, 5, 7))
    affine = behind(made_affine()) if turned else made_affine()
    order = [0, *(np.random.default_rng(0).permutation(6) + 1).tolist()]
    made = write_nuclear(archive / "a", [(voxels[:, :, z], z) for z in order], affine)
    assert (made.SpacingBetweenSlices < 0) == turned
    upwards = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 6], [0, 0, 0, 1.0]])
    assert contents(indexed(archive)) == (wanted((voxels[:, :, ::-1], upwards)) if turned else wanted((voxels, affine)))


def test_gates_of_a_reconstruction_are_volumes_of_their_own(archive: Path, indexed: Indexed) -> None:
    parts, affine = [made_volume((6, 5, 4), seed) for seed in range(3)], made_affine()
    frames = [(voxels[:, :, z], z) for voxels in parts for z in range(4)]
    write_nuclear(
        *(archive / "a", frames, affine),
        ImageType=["ORIGINAL", "PRIMARY", "RECON GATED TOMO", "EMISSION"],
        FrameIncrementPointer=[0x00540060, 0x00540070, 0x00540080],
        RRIntervalVector=[1] * 12,
        TimeSlotVector=[1 + index // 4 for index in range(12)],
    )
    index = indexed(archive)
    assert contents(index) == wanted(*((voxels, affine) for voxels in parts))
    assert {record.split_by for record in index.volumes()} == {"dimension index"}


@pytest.mark.parametrize(
    "why", ["projections", "no spacing", "no position", "two detectors", "no vector", "unknown vector", "begins later"]
)
def test_frames_of_nuclear_medicine_that_nothing_places_stay_a_reason(why: str, archive: Path, indexed: Indexed) -> None:
    voxels, affine = made_volume((6, 5, 7)), made_affine()
    made = write_nuclear(archive / "a", [(voxels[:, :, z], z) for z in range(7)], affine)
    if why == "projections":
        made.ImageType = ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]
    elif why == "no spacing":
        made.SpacingBetweenSlices = None
    elif why == "no position":
        del made.DetectorInformationSequence[0].ImagePositionPatient
    elif why == "two detectors":
        made.DetectorInformationSequence = Items([made.DetectorInformationSequence[0]] * 2)
    elif why == "no vector":
        del made.FrameIncrementPointer
    elif why == "unknown vector":
        made.FrameIncrementPointer = [0x00540080, 0x00182005]
    else:
        made.SliceVector = [2, 3, 4, 5, 6, 7, 8]
    made.save_as(archive / "a")
    assert indexed(archive).rejected() == {Reason.MULTIFRAME: 1}


def test_a_vector_that_does_not_speak_of_every_frame_is_corrupt(archive: Path, indexed: Indexed) -> None:
    voxels, affine = made_volume((6, 5, 7)), made_affine()
    write_nuclear(archive / "a", [(voxels[:, :, z], z) for z in range(7)], affine, SliceVector=[1, 2, 3])
    assert indexed(archive).rejected() == {Reason.CORRUPT: 1}


def test_reconstructed_slices_in_files_of_their_own_are_a_volume(archive: Path, indexed: Indexed) -> None:
    voxels, affine = made_volume((6, 5, 7)), made_affine()
    for z in range(7):
        here = affine.copy()
        here[:3, 3] = (affine @ [0, 0, z, 1])[:3]
        write_nuclear(archive / str(z), [(voxels[:, :, z], 0)], here, SliceVector=z + 1)
    assert contents(indexed(archive)) == wanted((voxels, affine))
