"""The header of one file after the other: by likeness with the last one, by our own walk, or by pydicom; all three say the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, BinaryIO

from medssl.archive.headers.alike import Likeness, differing, likeness
from medssl.archive.headers.dicom import IDENTITY, OF_A_SLICE, PLAIN_TAGS, flaw, from_header, read_instances, slices_of, with_places
from medssl.archive.headers.pixel_element import Bytes, frame_places
from medssl.archive.headers.plain import NotPlain, PlainHeader, walk
from medssl.archive.instance import WHOLE, Instance
from medssl.archive.limits import watched
from medssl.archive.outcomes import Reason

_PLACES = {field.name: number for number, field in enumerate(fields(Instance))}
_SOURCE, _KEY, _SIZE, _VERSION = (_PLACES[name] for name in ("source", "key", "size", "version"))
_AT, _FRAME_AT, _FRAME_LENGTH = (_PLACES[name] for name in ("pixels_at", "frame_at", "frame_length"))
_UID = _PLACES["uid"]
_DECIDING = [_PLACES[name] for name in ("sop_class", "series", "syntax", "rows", "columns", "bits_allocated")]
"""What decides whether an object is a slice, and where its pixels lie: files that differ in these are not alike."""
_READS: dict[int, Callable[[PlainHeader], Any]] = {_PLACES[name]: read for name, read in (IDENTITY | OF_A_SLICE).items()}


class HeaderReader:
    """Reads the files of one archive; neighbours are often slices of one series."""

    def __init__(self) -> None:
        self._last: Likeness | None = None

    def read(self, file: BinaryIO, head: bytes, instance: Instance) -> list[Instance]:
        """As `read_instances`; `head` is what the file begins with, 16 KiB of it or all."""
        if self._last is not None:
            found = _as_the_last(self._last, file, head, instance)
            if found is not None:
                return [found]
        try:
            header = walk(file, head, instance.size, PLAIN_TAGS)
            slices = from_header(header, instance)
            if header.pixels_at < 0 and any(not one.reason for one in slices):
                raise NotPlain("no pixels")
        except NotPlain:
            return read_instances(watched(file), instance)
        slices = with_places(slices, file, header.pixels_at, head)
        if len(slices) == 1 and not slices[0].reason and slices[0].frame == WHOLE:
            self._last = _likeness(head, header, slices[0], self._last)
        return slices


def _as_the_last(last: Likeness, file: BinaryIO, head: bytes, instance: Instance) -> Instance | None:
    """The one slice of a file that is like the last; None where it is another kind of file."""
    at = last.place_of_pixels(head)
    if at < 0:
        return None
    values = last.values.copy()
    try:
        for place, read in last.again:
            values[place] = read(last.header)
    except NotPlain:
        return None
    if not values[_UID]:
        return None
    values[_SOURCE], values[_KEY], values[_SIZE], values[_VERSION] = instance.source, instance.key, instance.size, instance.version
    places = frame_places(Bytes(file, head), at, last.one, instance.size, 1)
    if places is not None:
        values[_FRAME_AT], values[_FRAME_LENGTH] = places[0]
        values[_AT] = at if last.one.pixels_at >= 0 else -1
    found = Instance(*values)
    reason = flaw(found, last.header) or (Reason.TRUNCATED if places is None else None)
    return found if reason is None else replace(found, reason=reason.value, pixels_at=-1, frame_at=-1, frame_length=-1)


def _likeness(head: bytes, header: PlainHeader, one: Instance, last: Likeness | None) -> Likeness | None:
    """What to expect of the next file; None where nothing can be said."""
    differ = differing(head, header, last)

    def made_from(read: Callable[[PlainHeader], Any]) -> frozenset[int]:
        header.reads.clear()
        read(header)
        return frozenset(header.reads)

    decided = made_from(lambda header: (slices_of(one, header), flaw(one, header)))
    reads = {place: (read, made_from(read)) for place, read in _READS.items()}
    decided = decided.union(*(reads[place][1] for place in _DECIDING))
    if not decided.isdisjoint(differ):
        return None
    return likeness(head, header, differ, one, reads)
