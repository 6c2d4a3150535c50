"""PNG, JPEG and TIFF files as an archive: what they show, whose they are, and why one is left out."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive.conftest import Indexed
from archive.made_images import colour, grey, smooth_colour
from numpy.typing import NDArray
from PIL import Image

from medssl.archive import Index, Reason, read_single, without_previews
from medssl.archive.pictures.files import read_picture, read_picture_labels, write_label_picture
from medssl.errors import ArchiveError, DataError, MissingInput
from medssl.testing.dicom import made_affine, made_volume, write_series


def by_shape(index: Index) -> dict[tuple[int, ...], NDArray[Any]]:
    return {record.shape: index.read(record.volume).array for record in index.volumes()}


def test_a_folder_of_pictures_is_an_archive(archive: Path, indexed: Indexed) -> None:
    deep, shallow, shown = grey(20, 30) * 16, (grey(21, 30) // 16).astype(np.uint8), colour(22, 30)
    (archive / "sub-07").mkdir()
    Image.fromarray(deep).save(archive / "sub-07" / "deep.png")
    Image.fromarray(shallow).save(archive / "sub-07" / "wrong ending.jpg", format="PNG")
    Image.fromarray(shown).save(archive / "shown.tiff")
    index = indexed(archive)
    found = by_shape(index)
    assert np.array_equal(found[30, 20, 1][..., 0], deep.T) and np.array_equal(found[30, 21, 1][..., 0], shallow.T)
    assert np.array_equal(found[30, 22, 1, 3][..., 0], shown.transpose(2, 1, 0))
    records = index.volumes()
    assert {(one.kind, one.modality, one.dimensions, one.spacing) for one in records} == {("picture", "unknown", 2, ())}
    assert len({one.patient for one in records}) == 2


@pytest.mark.parametrize(
    ("save", "wanted", "note"),
    [
        (lambda a, p: Image.fromarray(np.dstack([a, a[..., 0]])).save(p), lambda a: a, "transparency"),
        (lambda a, p: Image.fromarray(a).quantize(256).save(p), None, "palette"),
        (lambda a, p: Image.fromarray(np.dstack([a[..., 0], a[..., 1]]), "LA").save(p), lambda a: a[..., 0], "transparency"),
        (lambda a, p: Image.fromarray(a[..., 0] > 99).save(p), lambda a: (a[..., 0] > 99) * 255, None),
        (lambda a, p: Image.fromarray(a[..., 0].astype(np.float32) / 7).save(p, "TIFF"), lambda a: a[..., 0].astype(np.float32) / 7, None),
        (lambda a, p: Image.fromarray(a).convert("CMYK").save(p, "TIFF"), lambda a: a, "CMYK"),
    ],
)
def test_every_form_is_grey_or_three_colours(save: Any, wanted: Any, note: str | None, tmp_path: Path) -> None:
    values = smooth_colour()
    save(values, tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    shown = np.moveaxis(picture.array[..., 0], (0, 1, 2), (2, 1, 0)).squeeze()
    if wanted is None:
        assert shown.shape == values.shape and np.abs(shown - values.astype(int)).mean() < 10
    else:
        assert np.array_equal(shown, wanted(values).astype(shown.dtype))
    assert (note is None and not picture.notes) or any(note in text for text in picture.notes)


def test_sixteen_bits_a_colour_are_halved_and_said(tmp_path: Path) -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    values = np.random.default_rng(0).integers(0, 65536, (4, 5, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    head = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(content)
    picture = read_picture(tmp_path / "a.png")
    assert np.array_equal(picture.array[..., 0], (values >> 8).transpose(2, 1, 0)) and "8 of 16 bits" in picture.notes[0]


def test_a_picture_is_turned_as_it_is_meant_to_be_seen(tmp_path: Path) -> None:
    values = (grey() // 16).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    picture = read_picture(tmp_path / "a.png")
    assert np.array_equal(picture.array[0, ..., 0], np.rot90(values, -1).T) and "turned" in picture.notes[0]


def _promising(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    data = zlib.compress(bytes(1000))
    return start + struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))


def test_what_cannot_be_read_is_a_reason(archive: Path, indexed: Indexed) -> None:
    Image.fromarray(grey(200, 300)).save(archive / "whole.png")
    content = (archive / "whole.png").read_bytes()
    (archive / "cut.png").write_bytes(content[: len(content) // 2])
    (archive / "flipped.png").write_bytes(content[:2000] + bytes([content[2000] ^ 255]) + content[2001:])
    Image.fromarray(smooth_colour()).save(archive / "whole.jpg")
    photo = (archive / "whole.jpg").read_bytes()
    (archive / "cut.jpg").write_bytes(photo[: len(photo) // 2])
    (archive / "promised.png").write_bytes(_promising(100_000, 100_000))
    (archive / "large.png").write_bytes(_promising(9_000, 9_000))
    (archive / "text.png").write_bytes(b"no picture at all")
    pages = [Image.fromarray(grey(seed=number)) for number in range(2)]
    pages[0].save(archive / "pages.tif", save_all=True, append_images=pages[1:])
    (archive / "masks").mkdir()
    Image.fromarray(grey()).save(archive / "masks" / "a.png")
    index = indexed(archive)
    assert len(index.volumes()) == 2
    reasons = index.rejected()
    assert reasons.pop(Reason.TRUNCATED) + reasons.pop(Reason.DAMAGED_PICTURE, 0) == 3
    assert reasons == {Reason.TOO_MANY_PIXELS: 2, Reason.NOT_MEDICAL: 1, Reason.PAGES: 1, Reason.LABEL_MAP: 1}


def test_pictures_beside_scans_are_no_images(archive: Path, indexed: Indexed) -> None:
    write_series(archive, made_volume(), made_affine())
    Image.fromarray(colour()).save(archive / "preview.png")
    records = indexed(archive).volumes()
    assert sorted(one.dimensions for one in records) == [2, 3] and [one.kind for one in without_previews(records)] == ["dicom"]
    assert read_single(archive).array.shape == made_volume().shape


def test_a_picture_that_changed_is_told(archive: Path, indexed: Indexed) -> None:
    Image.fromarray(grey()).save(archive / "a.png")
    index = indexed(archive)
    Image.fromarray(grey(7, 7)).save(archive / "a.png")
    with pytest.raises(ArchiveError, match="has changed"):
        index.read(index.volumes()[0].volume)


@pytest.mark.parametrize("highest", [1, 255, 300])
def test_labels_go_out_and_come_back(highest: int, tmp_path: Path) -> None:
    labels = (np.arange(12).reshape(4, 3, 1) % 2 * highest).astype(np.int32)
    assert np.array_equal(read_picture_labels(write_label_picture(labels, tmp_path / "a.png")), labels)
    with pytest.raises(DataError, match="0 to 65535"):
        write_label_picture(labels - 1, tmp_path / "b.png")


def test_labels_are_numbers_and_not_colours(tmp_path: Path) -> None:
    numbers = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    palette = Image.fromarray(numbers, "P")
    palette.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([numbers] * 3)).save(tmp_path / "grey.png")
    for name in ("palette", "grey"):
        assert np.array_equal(read_picture_labels(tmp_path / f"{name}.png")[..., 0], numbers.T)
    Image.fromarray(colour()).save(tmp_path / "colour.png")
    with pytest.raises(DataError, match="has colours"):
        read_picture_labels(tmp_path / "colour.png")
    Image.fromarray(numbers).save(tmp_path / "lossy.jpg")
    with pytest.raises(DataError, match="does not keep"):
        read_picture_labels(tmp_path / "lossy.jpg")
    with pytest.raises(MissingInput):
        read_picture_labels(tmp_path / "none.png")
