"""Headers that are walked here say what pydicom would have them say, and ordinary ones never need it."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import pydicom
import pytest
from archive.headers.both import InMemory, check_same, scanned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from staged.cases import CASES

from medssl.archive import FolderSource
from medssl.archive.headers import reader as reading
from medssl.archive.headers.dicom import PLAIN_TAGS
from medssl.archive.headers.plain import HEAD, walk
from medssl.archive.headers.reader import HeaderReader
from medssl.testing.dicom import made_affine, made_volume, write_series

SETS = ["dcm_qa_frag", "dcm_qa_ts", "dcmqi", "dicom2nifti", "enhanced", "example-dicom-structural", "mr-brain-study", "rt"]


@pytest.mark.parametrize("name", SETS)
def test_real_files_say_the_same(name: str, shared_data: Path) -> None:
    check_same(FolderSource(str(shared_data / name)))


@pytest.mark.parametrize("name", CASES)
def test_staged_cases_say_the_same(name: str, tmp_path: Path) -> None:
    CASES[name](tmp_path / "archive")
    check_same(FolderSource(str(tmp_path / "archive")))


def as_scanners_write(dataset: Dataset, z: int) -> None:
    """Sequences without lengths, private elements, times that differ, and values beyond ASCII that nobody asks for."""
    inner, outer = Dataset(), Dataset()
    inner.ReferencedSOPInstanceUID = f"1.2.{z}"
    outer.ReferencedImageSequence = Items([inner, Dataset()])
    outer.is_undefined_length_sequence_item = inner.is_undefined_length_sequence_item = True
    dataset.ReferencedStudySequence = Items([outer, inner])
    for sequence in (dataset["ReferencedStudySequence"], outer["ReferencedImageSequence"]):
        sequence.is_undefined_length = True
    dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", "Müller"
    dataset.ContentTime, dataset.AcquisitionTime = f"1200{z:02d}", f"1200{z:02d}.{z}"
    dataset.SliceLocation, dataset.ExposureTime = f"{z * 2.5:.2f}", 500 + z
    dataset.add_new(0x00090010, "LO", "SOMEBODY")
    dataset.add_new(0x00091001, "OB", bytes(range(256)) * 3)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless], ids=["explicit", "implicit", "RLE"])
def test_ordinary_files_never_need_pydicom(syntax: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_series(tmp_path, made_volume((20, 16, 9)), made_affine(), adjust=as_scanners_write)
    if syntax != ExplicitVRLittleEndian:
        for file in files:
            dataset = pydicom.dcmread(file)
            if syntax == RLELossless:
                dataset.compress(syntax)
                dataset.save_as(file)
            else:
                dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
                dataset.save_as(file, implicit_vr=True, little_endian=True)
    check_same(FolderSource(str(tmp_path)))
    walked: list[int] = []
    monkeypatch.setattr(reading, "walk", lambda *given: walked.append(1) or walk(*given))
    monkeypatch.setattr(reading, "read_instances", None)
    found = scanned(FolderSource(str(tmp_path)), HeaderReader())
    assert all(one.reason == "" and one.frame_at > 0 and one.frame_length > 0 for (one,) in found.values())
    assert len(walked) <= 3, "the slices of one series are alike"


def test_places_of_frames_are_those_of_their_bytes(tmp_path: Path) -> None:
    files = write_series(tmp_path, made_volume((20, 16, 3)), made_affine(), adjust=as_scanners_write)
    for (one,) in scanned(FolderSource(str(tmp_path)), HeaderReader()).values():
        content = (tmp_path / os.fsdecode(one.key)).read_bytes()
        assert content[one.frame_at : one.frame_at + one.frame_length] == pydicom.dcmread(tmp_path / os.fsdecode(one.key)).PixelData
        assert content[one.pixels_at : one.pixels_at + 4] == b"\xe0\x7f\x10\x00"
    assert len(files) == 3


def test_of_a_long_header_only_what_is_needed_is_read(tmp_path: Path) -> None:
    def fill(dataset: Dataset, z: int) -> None:
        dataset.add_new(0x00090010, "LO", "SOMEBODY")
        dataset.add_new(0x00091001, "OB", bytes(10 * HEAD))

    (file,) = write_series(tmp_path, made_volume((20, 16, 1)), made_affine(), adjust=fill)
    content, took = file.read_bytes(), []

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            took.append(super().read(size))
            return took[-1]

    head = content[:HEAD]
    header = walk(Counting(content), head, len(content), PLAIN_TAGS)
    assert header.items[0x00280010] == ("US", struct.pack("<H", 16)) and header.pixels_at == content.rindex(b"\xe0\x7f\x10\x00OW")
    assert sum(map(len, took)) <= HEAD


def test_files_of_which_too_little_was_read_at_first_say_the_same(tmp_path: Path) -> None:
    """After a file with a short header comes one of its series with a long one, a longer one, and a short one of another series."""

    def fill(dataset: Dataset, z: int) -> None:
        dataset.add_new(0x00090010, "LO", "SOMEBODY")
        dataset.add_new(0x00091001, "OB", bytes([0, 200, 4000, 3 * HEAD, 200, 0][z]))

    for series in "ab":
        write_series(tmp_path / series, made_volume((20, 16, 6)), made_affine(), series=series, adjust=fill)
    (tmp_path / "c").write_bytes(b"no image")
    check_same(FolderSource(str(tmp_path)))
    assert all(one.frame_at > 0 for key, (one,) in scanned(FolderSource(str(tmp_path)), HeaderReader()).items() if key != "c")


def test_a_series_is_known_by_the_starts_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path, made_volume((80, 80, 9)), made_affine(), adjust=as_scanners_write)
    counts: list[int] = []
    really, opened = FolderSource.start, FolderSource.open
    monkeypatch.setattr(FolderSource, "start", lambda self, key, count: counts.append(count) or really(self, key, count))
    monkeypatch.setattr(FolderSource, "open", lambda self, key: counts.append(-1) or opened(self, key))
    found = scanned(FolderSource(str(tmp_path)), HeaderReader())
    assert all(one.frame_length == 80 * 80 * 2 for (one,) in found.values())
    assert counts[0] == HEAD and max(counts[4:]) < 4096 and -1 not in counts[4:]


def test_a_series_with_a_longer_header_than_the_last_is_learnt_from_its_first_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):

        def fill(dataset: Dataset, z: int, number: int = number) -> None:
            dataset.add_new(0x00090010, "LO", "SOMEBODY")
            dataset.add_new(0x00091001, "OB", bytes(2000 * number))
            dataset.AcquisitionTime = f"1200{z:02d}"

        write_series(tmp_path / str(number), made_volume((20, 16, 6)), made_affine(), series=str(number), adjust=fill)
    walked: list[int] = []
    monkeypatch.setattr(reading, "walk", lambda *given: walked.append(1) or walk(*given))
    scanned(FolderSource(str(tmp_path)), HeaderReader())
    assert len(walked) == 5, "one a series, and one to see that the time differs"


SURE = [0x00080016, 0x00080018, 0x00080060, 0x00100020, 0x0020000D, 0x0020000E, 0x00280010, 0x00280011, 0x00280100]
OTHERS = [0x00080008, 0x00080020, 0x00081030, 0x00181030, 0x00180081, 0x00200013, 0x00200032, 0x00200037, 0x00201041, 0x00280002]
OTHERS += [0x00280004, 0x00280030, 0x00280101, 0x00280102, 0x00280103, 0x00280120, 0x00281052, 0x00281053, 0x0020000A, 0x00280008]
OTHERS += [0x00080070, 0x00081090, 0x00080005, 0x00180010, 0x0018100A, 0x00189087, 0x00089208, 0x00190010, 0x0019100C, 0x00431039]
OTHERS += [0x00283000, 0x52009230, 0x00020010, 0x00080000, 0x00091001, 0x00081140]
SOUND = {
    0x00080016: b"1.2.840.10008.5.1.4.1.1.2\0",
    0x00080018: b"1.2.3.4\0",
    0x00080060: b"CT",
    0x00100020: b"PATIENT ",
    0x0020000D: b"1.2.3\0",
    0x0020000E: b"1.2.33",
    0x00280010: b"\x04\x00",
    0x00280011: b"\x03\x00",
    0x00280100: b"\x10\x00",
    0x00280002: b"\x01\x00",
    0x00280004: b"MONOCHROME2 ",
    0x00280030: b"0.5\\0.5 ",
    0x00280101: b"\x0c\x00",
    0x00280102: b"\x0b\x00",
    0x00280103: b"\x00\x00",
    0x00200032: b"1\\2\\-3.5",
    0x00200037: b"1\\0\\0\\0\\1\\0 ",
    0x00200013: b"7 ",
    0x00080008: b"ORIGINAL\\PRIMARY\\AXIAL",
    0x00080005: b"ISO_IR 100",
    0x00281053: b"2 ",
    0x00190010: b"SIEMENS MR HEADER ",
}
LONG = ("OB", "OW", "SQ", "UN", "UT", "UC", "UR", "OD", "OF", "OL", "OV", "SV", "UV")
odd = st.one_of(
    st.sampled_from(
        [b"", b"\0\0", b"  ", b"1,5\\2 ", b"1_0 ", b"nan ", b"-0.00000000000000000001 ", b"M\xfcller", b"A\\B\0", b"LOCALIZER "]
    ),
    st.sampled_from(
        [b"LOCALIZER ", b"MOSAIC", b"3 ", b"\x02\x00", b"\xff\xff", b"\x1b$B12\x1b(B", b"ISO 2022 IR 87", b"1.2.840.10008.1.2.2\0", b"odd"]
    ),
    st.binary(max_size=20),
)
item = st.sampled_from([b"", struct.pack("<HH2sH", 8, 0x1150, b"UI", 4) + b"1.2\0", struct.pack("<HHI", 8, 0x1150, 4) + b"1.2\0"])


def element(tag: int, vr: str, value: bytes, implicit: bool, length: int | None = None) -> bytes:
    size = len(value) if length is None else length
    if implicit:
        return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, size) + value
    if vr in LONG:
        return struct.pack("<HH2s2xI", tag >> 16, tag & 0xFFFF, vr.encode(), size) + value
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), size & 0xFFFF) + value


@st.composite
def sequences(draw: st.DrawFn) -> tuple[bytes, int | None]:
    """Items, and the length to state where it is not their own."""
    ends = draw(st.booleans())
    content = b""
    for inner in draw(st.lists(item, max_size=2)):
        content += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF if ends else len(inner)) + inner
        content += struct.pack("<HHI", 0xFFFE, 0xE00D, 0) if ends else b""
    if draw(st.booleans()):
        return content + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0), 0xFFFFFFFF
    return content, None


def usual(tag: int) -> str:
    try:
        return str(dictionary_VR(tag))[:2]
    except KeyError:
        return "LO" if tag & 0xFFFF == 0x10 else "UN"


@st.composite
def elements(draw: st.DrawFn, implicit: bool) -> bytes:
    content = b""
    tags = [*SURE, *draw(st.lists(st.sampled_from(OTHERS), unique=True))]
    for tag in sorted(tags) if draw(st.integers(0, 9)) else draw(st.permutations(tags)):
        vr, length = usual(tag), None
        if vr == "SQ":
            value, length = draw(sequences())
        else:
            value = SOUND.get(tag, b"1 ") if draw(st.integers(0, 5)) else draw(odd)
        vr = vr if draw(st.integers(0, 30)) else draw(st.sampled_from(["UN", "LO", "ZZ", "\0\0", "SQ", "US", "UT"]))
        content += element(tag, vr, value, implicit, length)
    return content


@st.composite
def files(draw: st.DrawFn) -> dict[str, bytes]:
    """Neighbours: the same header but for a position and a UID, now and then something else."""
    syntax = draw(st.sampled_from([b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.4.70"]))
    implicit = syntax == b"1.2.840.10008.1.2\0"
    main = draw(elements(implicit))
    found: dict[str, bytes] = {}
    for number in range(draw(st.integers(1, 4))):
        here = main if draw(st.integers(0, 3)) else draw(elements(implicit))
        here = here.replace(b"1.2.3.4\0", f"1.2.3.{number}\0".encode()).replace(b"-3.5", draw(st.sampled_from([b"-3.5", b"-4.5", b"4,25"])))
        meta = element(0x00020002, "UI", b"1.2.840.10008.5.1.4.1.1.2\0", False) + element(0x00020010, "UI", syntax, False)
        head = element(0x00020000, "UL", struct.pack("<I", len(meta)), False) + meta
        if syntax.startswith((b"1.2.840.10008.1.2.5", b"1.2.840.10008.1.2.4")):
            fragments = struct.pack("<HHI", 0xFFFE, 0xE000, 0) + struct.pack("<HHI", 0xFFFE, 0xE000, 8) + bytes(8)
            pixels = element(0x7FE00010, "OB", fragments + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0), False, 0xFFFFFFFF)
        else:
            pixels = element(0x7FE00010, "OW", bytes(24), implicit)
        whole = bytes(128) + b"DICM" + head + here + pixels
        cut = draw(st.integers(0, 40))
        found[str(number)] = whole[: len(whole) - cut + 30] if cut > 30 else whole
    return found


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(files())
def test_made_files_say_the_same(made: dict[str, bytes]) -> None:
    check_same(InMemory(made))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(files(), st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=3)), min_size=1, max_size=3))
def test_damaged_files_say_the_same(made: dict[str, bytes], damages: list[tuple[float, bytes]]) -> None:
    for key, content in made.items():
        damaged = bytearray(content)
        for place, value in damages:
            at = 128 + int(place * (len(content) - 129))
            damaged[at : at + len(value)] = value
        made[key] = bytes(damaged)
    check_same(InMemory(made))
