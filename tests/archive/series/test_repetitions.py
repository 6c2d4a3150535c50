"""Several slices at one place: told apart by headers, by number where it runs in order, else set aside slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from archive.contents import contents, wanted
from pydicom.dataset import Dataset
from staged.cases import along

from medssl.archive import Index, Reason
from medssl.testing.dicom import made_affine, made_volume, uid, write_series

Indexed = Callable[..., Index]
Part = tuple[np.ndarray, np.ndarray, dict[str, object]]


def write_parts(folder: Path, parts: Iterable[Part], number: Callable[[int, int], int] = lambda part, z: 100 * part + z) -> list[Part]:
    """Series of one UID: voxels, affine and what the headers say, with an InstanceNumber by part and place."""
    written = list(parts)
    for index, (voxels, affine, tags) in enumerate(written):

        def change(dataset: Dataset, z: int, index: int = index, tags: dict[str, object] = tags) -> None:
            dataset.SOPInstanceUID, dataset.InstanceNumber = uid(index, z), number(index, z)
            for keyword, value in tags.items():
                setattr(dataset, keyword, value(z) if callable(value) else value)

        write_series(folder / str(index), voxels, affine, modality="MR", adjust=change)
    return written


def repetitions(count: int, depth: int = 6, **tags: list[object]) -> list[Part]:
    return [(made_volume((5, 4, depth), t), made_affine(), {name: values[t] for name, values in tags.items()}) for t in range(count)]


def volumes_of(parts: Iterable[Part]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(voxels, affine) for voxels, affine, _ in parts]


def test_a_repetition_that_breaks_off_costs_nothing(archive: Path, indexed: Indexed) -> None:
    parts = repetitions(4, TemporalPositionIdentifier=[1, 2, 3, 4])
    parts[3] = (parts[3][0][:, :, :3], *parts[3][1:])
    write_parts(archive, parts)
    index = indexed(archive)
    assert contents(index) == wanted(*volumes_of(parts)) and index.rejected() == {}
    assert {record.split_by for record in index.volumes()} == {"temporal position"}


@pytest.mark.parametrize("shift", [4.0, 3.5])
def test_acquisitions_that_overlap_in_part_are_told_apart(shift: float, archive: Path, indexed: Indexed) -> None:
    """At the same places, and halfway between them."""
    parts = [
        (made_volume((5, 4, 8), 0), made_affine(), {"AcquisitionNumber": 1}),
        (made_volume((5, 4, 8), 1), along(made_affine(), shift), {"AcquisitionNumber": 2}),
    ]
    write_parts(archive, parts)
    index = indexed(archive)
    assert contents(index) == wanted(*volumes_of(parts)) and {record.split_by for record in index.volumes()} == {"acquisition number"}


def test_a_place_that_occurs_twice_is_set_aside_and_the_others_become_volumes(archive: Path, indexed: Indexed) -> None:
    whole = made_volume((5, 4, 10))
    write_parts(archive, [(whole, made_affine(), {}), (made_volume((5, 4, 1), 9), along(made_affine(), 4), {})], lambda part, z: 7)
    index = indexed(archive)
    assert contents(index) == wanted((whole[:, :, :4], made_affine()), (whole[:, :, 5:], along(made_affine(), 5)))
    assert index.rejected() == {Reason.REPEATED_POSITION: 2}
    assert all("nothing tells their slices apart" in " ".join(record.warnings) for record in index.volumes())


def test_two_values_together_tell_apart_what_neither_does_alone(archive: Path, indexed: Indexed) -> None:
    parts = repetitions(4, TemporalPositionIdentifier=[1, 1, 2, 2], AcquisitionNumber=[1, 2, 1, 2])
    write_parts(archive, parts, lambda part, z: 1)
    index = indexed(archive)
    assert contents(index) == wanted(*volumes_of(parts))
    assert {record.split_by for record in index.volumes()} == {"temporal position, acquisition number"}


def test_a_clock_that_ticks_within_a_volume_tears_none_to_pieces(archive: Path, indexed: Indexed) -> None:
    """Slices taken three at a time: the time alone would make of each repetition volumes of two slices far apart."""
    parts = repetitions(3)
    parts = [
        (voxels, affine, {"AcquisitionTime": lambda z, t=t: f"1010{10 * t + z % 3:02d}"}) for t, (voxels, affine, _) in enumerate(parts)
    ]
    write_parts(archive, parts)
    index = indexed(archive)
    assert contents(index) == wanted(*volumes_of(parts))
    assert {record.split_by for record in index.volumes()} == {"instance number"}


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(lambda t, z: 1 + 6 * t + z, id="repetition by repetition"),
        pytest.param(lambda t, z: 1 + 6 * t + 5 - z, id="downwards"),
        pytest.param(lambda t, z: 1 + 4 * z + t, id="place by place"),
        pytest.param(lambda t, z: 100 * z + 3 * t, id="with numbers left out"),
    ],
)
def test_numbers_that_run_in_order_tell_repetitions_apart(number: Callable[[int, int], int], archive: Path, indexed: Indexed) -> None:
    parts = repetitions(4)
    write_parts(archive, parts, number)
    index = indexed(archive)
    assert contents(index) == wanted(*volumes_of(parts))
    assert all(record.split_by == "instance number" and "InstanceNumber alone" in record.warnings[0] for record in index.volumes())


@pytest.mark.parametrize("number", [lambda t, z: 1 + 6 * t + z, lambda t, z: 1 + 4 * z + t], ids=["repetitions", "places"])
def test_missing_slices_leave_their_numbers_out(number: Callable[[int, int], int], archive: Path, indexed: Indexed) -> None:
    parts = repetitions(4)
    write_parts(archive, parts, number)
    lost = sorted((archive / "1").iterdir())[0]
    lost.unlink()
    index = indexed(archive)
    found = [index.read(record.volume).array for record in index.volumes()]
    for voxels, _, _ in (parts[0], parts[2], parts[3]):
        assert any(np.array_equal(array, voxels) for array in found)
    for array in found:
        assert any((array == voxels[:, :, z : z + array.shape[2]]).all() for voxels, _, _ in parts for z in range(7 - array.shape[2]))


def test_numbers_in_no_order_tell_nothing(archive: Path, indexed: Indexed) -> None:
    shuffled = np.random.default_rng(0).permutation(24).reshape(4, 6)
    write_parts(archive, repetitions(4), lambda t, z: int(shuffled[t, z]))
    index = indexed(archive)
    assert index.volumes() == [] and index.rejected() == {Reason.REPEATED_POSITION: 24}


def test_numbers_in_order_that_would_mix_b_values_tell_nothing(archive: Path, indexed: Indexed) -> None:
    """Numbers run through places four by four, but the b-value does not follow them."""
    parts = repetitions(4, DiffusionBValue=[0.0, 0.0, 1000.0, 1000.0])
    write_parts(archive, parts, lambda t, z: 1 + 4 * z + (t + 2 * (z % 2)) % 4)
    index = indexed(archive)
    assert index.volumes() == [] and index.rejected() == {Reason.REPEATED_POSITION: 24}


PRIVATE = {
    "Siemens": {0x00190010: ("LO", "SIEMENS MR HEADER"), 0x0019100C: ("IS", "1000"), 0x0019100E: ("FD", [0.0, 0.6, 0.8])},
    "GE": {
        0x00430010: ("LO", "GEMS_PARM_01"),
        0x00190010: ("LO", "GEMS_ACQU_01"),
        0x00431039: ("IS", [1000001000, 8, 0, 0]),
        **dict(zip((0x001910BB, 0x001910BC, 0x001910BD), (("DS", "0"), ("DS", "0.6"), ("DS", "0.8")), strict=True)),
    },
    "Philips": {
        0x20010010: ("LO", "Philips Imaging DD 001"),
        0x20050010: ("LO", "Philips MR Imaging DD 001"),
        0x20011003: ("FL", 1000.0),
        **dict(zip((0x200510B0, 0x200510B1, 0x200510B2), (("FL", 0.0), ("FL", 0.6), ("FL", 0.8)), strict=True)),
    },
    "United Imaging": {0x00650010: ("LO", "Image Private Header"), 0x00651009: ("FD", 1000.0), 0x00651037: ("FD", [0.0, 0.6, 0.8])},
}


@pytest.mark.parametrize("implicit", [False, True], ids=["explicit", "implicit"])
@pytest.mark.parametrize("vendor", PRIVATE)
def test_private_b_values_and_directions_separate_and_name(vendor: str, implicit: bool, archive: Path, indexed: Indexed) -> None:
    parts = repetitions(2)

    def change(t: int) -> Callable[[Dataset, int], None]:
        def write(dataset: Dataset, z: int) -> None:
            dataset.SOPInstanceUID, dataset.InstanceNumber = uid(t, z), 1
            for tag, (vr, value) in PRIVATE[vendor].items():
                # The second repetition has the opposite direction.
                turned = isinstance(value, str) and value[:2] == "0." and vr == "DS"
                if t and (turned or vr in ("FD", "FL")) and tag not in (0x20011003, 0x00651009):
                    value = f"-{value}" if isinstance(value, str) else np.negative(value).tolist()
                dataset.add_new(tag, vr, value)

        return write

    syntax = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"
    for t, (voxels, affine, _) in enumerate(parts):
        write_series(archive / str(t), voxels, affine, modality="MR", syntax=syntax, adjust=change(t))
    index = indexed(archive)
    assert contents(index) == wanted(*volumes_of(parts))
    assert {(record.split_by, record.b_value) for record in index.volumes()} == {("b-value", 1000.0)}
