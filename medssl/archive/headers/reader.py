"""The header of one file after the other: by likeness with the last one, by our own walk, or by pydicom; all three say the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, BinaryIO, NamedTuple

from medssl.archive.headers.alike import Likeness, differing, likeness
from medssl.archive.headers.dicom import (
    IDENTITY,
    OF_A_SLICE,
    PLAIN_TAGS,
    from_header,
    read_instances,
    slices_of,
    with_places,
)
from medssl.archive.headers.flaws import flaw, flaw_of_position
from medssl.archive.headers.pixel_element import Bytes, frames_from
from medssl.archive.headers.plain import HEAD, NotPlain, PlainHeader, walk
from medssl.archive.instance import WHOLE, Instance
from medssl.archive.limits import watched
from medssl.archive.outcomes import Reason

_PLACES = {field.name: number for number, field in enumerate(fields(Instance))}
_SOURCE, _KEY, _SIZE, _VERSION = (_PLACES[name] for name in ("source", "key", "size", "version"))
_AT, _FRAME_AT, _FRAME_LENGTH = (_PLACES[name] for name in ("pixels_at", "frame_at", "frame_length"))
_UID = _PLACES["uid"]
_DECIDING = [_PLACES[name] for name in ("sop_class", "modality", "series", "syntax", "rows", "columns", "bits_allocated")]
"""What decides whether an object is a slice, and where its pixels lie: files that differ in these are not alike."""
_JUDGING = [_PLACES[name] for name in ("photometric", "bits_stored", "high_bit", "signed", "slope", "intercept")]
_JUDGING += [_PLACES[name] for name in ("pixel_spacing", "orientation")]
"""What decides whether a slice can be used, beside its position."""
_READS: dict[int, Callable[[PlainHeader], Any]] = {_PLACES[name]: read for name, read in (IDENTITY | OF_A_SLICE).items()}


class Unread(NamedTuple):
    """What is known of a file before it is read, as an `Instance` has it."""

    source: int
    key: bytes
    size: int = 0
    version: str = ""

    def instance(self) -> Instance:
        """As the instance that it will be."""
        return Instance(self.source, self.key, size=self.size, version=self.version)


class HeaderReader:
    """Reads the files of one archive; neighbours are often slices of one series."""

    def __init__(self) -> None:
        self._last: Likeness | None = None

    @property
    def start(self) -> int:
        """Bytes of the next file that should tell all that is asked of it."""
        return HEAD if self._last is None else self._last.start

    def read(self, file: BinaryIO, head: bytes, unread: Unread) -> list[Instance]:
        """As `read_instances`; `head` is what the file begins with, at least `start` bytes of it or all."""
        if self._last is not None:
            found = _as_the_last(self._last, file, head, unread)
            if found is not None:
                return [found]
        if len(head) < min(HEAD, unread.size):
            file.seek(0)
            head = file.read(HEAD)
        instance = unread.instance()
        try:
            header = walk(file, head, unread.size, PLAIN_TAGS)
            slices = from_header(header, instance)
            if header.pixels_at < 0 and any(not one.reason for one in slices):
                raise NotPlain("no pixels")
        except NotPlain:
            return read_instances(watched(file), instance)
        slices = with_places(slices, file, header.pixels_at, head)
        if len(slices) == 1 and not slices[0].reason and slices[0].frame == WHOLE and not slices[0].is_image:
            self._last = _likeness(head, header, slices[0], self._last)
        return slices


def _as_the_last(last: Likeness, file: BinaryIO, head: bytes, unread: Unread) -> Instance | None:
    """The one slice of a file that is like the last; None where it is another kind of file."""
    first = last.first_pixel(head)
    if first < 0:
        return None
    header, values = last.header, last.values.copy()
    try:
        for place, read in last.again:
            values[place] = read(header)
    except NotPlain:
        return None
    if not values[_UID]:
        return None
    values[_SOURCE], values[_KEY], values[_SIZE], values[_VERSION] = unread
    places = frames_from(Bytes(file, head), first, last.pixels.length, last.one, unread.size, 1)
    if places is not None:
        values[_FRAME_AT], values[_FRAME_LENGTH] = places[0]
        if values[_AT] >= 0:
            values[_AT] = first - last.pixels.value
    found = Instance(*values)
    reason = flaw_of_position(found.position) if last.judged else flaw(found, header)
    if reason is None and places is None:
        reason = Reason.TRUNCATED
    return found if reason is None else replace(found, reason=reason.value, pixels_at=-1, frame_at=-1, frame_length=-1)


def _likeness(head: bytes, header: PlainHeader, one: Instance, last: Likeness | None) -> Likeness | None:
    """What to expect of the next file; None where nothing can be said."""
    differ = differing(head, header, last)
    decided = header.reads(lambda header: (slices_of(one, header), flaw(one, header)))
    reads = {place: (read, header.reads(read)) for place, read in _READS.items()}
    decided = decided.union(*(reads[place][1] for place in _DECIDING))
    if not decided.isdisjoint(differ):
        return None
    return likeness(head, header, differ, one, reads, _JUDGING)
