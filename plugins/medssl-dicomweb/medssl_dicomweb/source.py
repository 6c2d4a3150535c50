"""The archive: the instances of those series of a PACS that meet the conditions of its location."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from hashlib import blake2b
from io import BytesIO
from itertools import groupby
from typing import Any, BinaryIO, ClassVar, NamedTuple

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medssl.archive import ArchiveSource, Stat, wanted_elements
from medssl.errors import ArchiveError
from medssl_dicomweb.asking import AT_FIRST, Asking, Connection, Unanswered
from medssl_dicomweb.location import EXAMPLE, place_of
from medssl_dicomweb.settings import settings_from

Json = dict[str, Any]

PAGE = 1000
"""Results of a search that are asked for at once; a server may give fewer."""
FRAMES = 64
"""Frames that are asked for at once: an object can hold thousands."""
KEPT = 2
"""Series whose headers are kept: a worker is asked for those of one series several times."""
_UID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_STUDY, _SERIES, _INSTANCE, _COUNT, _IMAGE_TYPE = "0020000D", "0020000E", "00080018", "00201209", "00080008"
_NATIVE = ("", ExplicitVRLittleEndian, ImplicitVRLittleEndian)
"""Transfer syntaxes of frames as a header without one promises them; a server may leave it unsaid."""


class Name(NamedTuple):
    """What an instance is asked for by."""

    study: str
    series: str
    instance: str

    @property
    def key(self) -> str:
        """As the source names it."""
        return "/".join(self)

    @property
    def path(self) -> str:
        """Where it lies below the address of the server."""
        return f"studies/{self.study}/series/{self.series}/instances/{self.instance}"


class DicomwebSource(ArchiveSource):
    """A PACS over DICOMweb (QIDO-RS and WADO-RS).

    A key is StudyInstanceUID/SeriesInstanceUID/SOPInstanceUID. How it is asked comes from the environment (`settings`), in every
    process anew, so that no secret is ever kept or handed over.
    """

    name: ClassVar[str] = "dicomweb"
    schemes: ClassVar[tuple[str, ...]] = ("dicomweb",)

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self._place = place_of(location)
        self._settings = settings_from()
        self._asking = Asking(self._place, self._settings)
        self._counts: dict[tuple[str, str], int] = {}
        self._yielded: dict[str, str] = {}
        self._opened_whole: set[str] = set()
        # Threads that want the same at the same moment ask twice, and do not wait for others.
        self._instances = lru_cache(KEPT * 8)(self._asked_instances)
        self._metadata = lru_cache(KEPT)(self._asked_metadata)

    def keys(self) -> Iterator[str]:
        """Series by series, by UID."""
        try:
            series = self._series()
            with ThreadPoolExecutor(self._settings.connections) as pool:
                for versions in pool.map(self._versions, series):
                    # Who lists an archive asks for the versions at once.
                    self._yielded = versions
                    yield from versions
        except Unanswered as error:
            raise ArchiveError(
                f"the PACS at {self._place.server} does not answer a search (QIDO-RS): {error}. Give the address where its DICOMweb "
                f"begins, as {EXAMPLE}, and conditions that it knows."
            ) from None

    def _series(self) -> list[tuple[str, str]]:
        """Study and series of all that meet the conditions."""
        filters = dict(self._place.conditions)
        fields = ["StudyInstanceUID", "SeriesInstanceUID", "NumberOfSeriesRelatedInstances"]
        found = self._search(
            lambda to, **page: to.client.search_for_series(fields=fields, search_filters=filters, **page), attempts=AT_FIRST
        )
        self._counts = {(_text(one, _STUDY), _text(one, _SERIES)): _count(one) for one in found}
        return sorted(pair for pair in self._counts if all(pair))

    def _versions(self, series: tuple[str, str]) -> dict[str, str]:
        """Key and version of each instance of a series."""
        try:
            found = {_text(one, _INSTANCE): _version(one) for one in self._instances(*series)}
        except Unanswered:
            # One name that nothing can be had of: the series is counted as unreadable, and the others are read.
            return {"/".join([*series, ""]): ""}
        return {Name(*series, instance).key: found[instance] for instance in sorted(found) if instance}

    def _asked_instances(self, study: str, series: str) -> list[Json]:
        """What the search says of each instance of a series."""
        return self._search(
            lambda to, **page: to.client.search_for_instances(study, series, **page), expected=self._counts.get((study, series), 0)
        )

    def _search(self, search: Callable[..., list[Json]], attempts: int | None = None, expected: int = 0) -> list[Json]:
        """All results, page by page, until as many are there as `expected`, or a page brings nothing new."""
        found: dict[tuple[str, str, str], Json] = {}
        while True:
            page = self._asking.ask(partial(_results, partial(search, limit=PAGE, offset=len(found))), None if found else attempts)
            new = {_identity(one): one for one in page}
            if not new.keys() - found.keys():
                return list(found.values())
            found |= new
            if expected and len(found) >= expected:
                return list(found.values())

    def stat(self, key: str) -> Stat:
        """A digest of what the search says of the instance; the size is not known before it is fetched."""
        yielded = self._yielded
        if key not in yielded:
            name = _name(key)
            yielded = self._versions((name.study, name.series))
        if not yielded.get(key):
            raise OSError("the PACS has no such instance any more")
        return Stat(0, yielded[key])

    def headers(self, keys: Sequence[str]) -> Iterator[tuple[str, Dataset]]:
        """As WADO-RS gives them, a series at once; a series without metadata is left to `open`."""
        for pair, group in groupby(keys, key=lambda key: tuple(key.split("/")[:2])):
            names = [Name(*key.split("/")) for key in group if _is_name(key)]
            if not names:
                continue
            try:
                known = self._metadata(*pair)
            except Unanswered:
                continue
            for name in names:
                header = self._header(known.get(name.instance))
                if header is not None:
                    yield name.key, header

    def _asked_metadata(self, study: str, series: str) -> dict[str, Json]:
        found = self._asking.ask(partial(_results, lambda to: to.client.retrieve_series_metadata(study, series)))
        return {_text(one, _INSTANCE): one for one in found}

    def _header(self, given: Json | None) -> Dataset | None:
        """What is read of a header, with those values that stand elsewhere (bulk data); None where it is not to be trusted."""
        if given is None:
            return None
        try:
            wanted = _wanted(given)
            if _is_mangled(wanted.values()):
                return None
            header = Dataset.from_json({tag: element for tag, element in wanted.items() if "BulkDataURI" not in element})
            for tag, element in wanted.items():
                if "BulkDataURI" in element:
                    header[int(tag, 16)] = _element(tag, element["vr"], self._bulk(element["BulkDataURI"]))
        except (ValueError, TypeError, LookupError, AttributeError, BytesLengthException):
            return None
        return header

    def _bulk(self, uri: str) -> bytes:
        # Of this server alone: whoever can write an address into an answer must not be sent our password.
        if not uri.startswith(self._place.url + "/"):
            raise ValueError("bulk data of another server")
        return _single(self._asking.ask(lambda to: to.client.retrieve_bulkdata(uri)))

    def open(self, key: str) -> BinaryIO:
        """The whole object as it is stored."""
        name = _name(key)
        parts = self._asking.ask(lambda to: to.parts(name.path, 'type="application/dicom"; transfer-syntax=*'))
        return BytesIO(_single([part.content for part in parts]))

    def frames(self, key: str, numbers: Sequence[int]) -> Iterator[bytes]:
        """Those of objects that are stored uncompressed; of others none, so that they are opened, and decoded as files are."""
        name = _name(key)
        if name.series in self._opened_whole:
            return
        for first in range(0, len(numbers), FRAMES):
            wanted = numbers[first : first + FRAMES]
            frames = self._native_frames(name, wanted)
            if frames is None:
                if first:
                    raise OSError("the PACS gave some frames of an object and not the others")
                self._opened_whole.add(name.series)
                return
            yield from frames

    def _native_frames(self, name: Name, numbers: Sequence[int]) -> list[bytes] | None:
        """None where the server has none, or has them compressed."""
        path = f"{name.path}/frames/{','.join(str(number + 1) for number in numbers)}"
        try:
            parts = self._asking.ask(lambda to: to.parts(path, 'type="application/octet-stream"; transfer-syntax=*'))
        except Unanswered:
            # Some servers give whole objects only.
            return None
        native = all(part.syntax in _NATIVE and not part.is_image for part in parts)
        return [part.content for part in parts] if native and len(parts) == len(numbers) else None


def _name(key: str) -> Name:
    """Raises `OSError` for a key that is none: what a server calls an instance becomes a part of an address."""
    if not _is_name(key):
        raise OSError("the PACS names this instance by what is no UID")
    return Name(*key.split("/"))


def _is_name(key: str) -> bool:
    parts = key.split("/")
    return len(parts) == 3 and all(map(_UID.fullmatch, parts))


def _wanted(given: Json) -> Json:
    """The elements that an index reads: neither the pixels nor AvailableTransferSyntaxUID, since frames are given uncompressed and an
    opened object says itself how it is compressed."""
    kind = Dataset.from_json({tag: given[tag] for tag in (_IMAGE_TYPE,) if tag in given})
    wanted = wanted_elements(kind)
    return {tag: element for tag, element in given.items() if int(tag, 16) in wanted}


def _is_mangled(elements: Iterable[Json]) -> bool:
    """Has the server lost values on the way to JSON? Orthanc does in headers of Japanese character sets, where it reads \\ as ¥."""
    for element in elements:
        values = element.get("Value")
        if values == [] or (element.get("vr") == "CS" and not all(str(value).isascii() for value in values or ())):
            return True
    return False


def _element(tag: str, vr: str, value: bytes) -> RawDataElement:
    """As if read from a file in little endian, in which bulk data comes."""
    return RawDataElement(Tag(int(tag, 16)), vr, len(value), value, 0, False, True)


def _single(parts: Sequence[bytes]) -> bytes:
    if len(parts) != 1:
        raise Unanswered(f"{len(parts)} parts came where one was asked for")
    return bytes(parts[0])


def _results(question: Callable[[Connection], list[Json]], to: Connection) -> list[Json]:
    """A list of data sets, as DICOM JSON has them; raises `ValueError` for anything else."""
    found: object = question(to)
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and all(isinstance(value, dict) for value in one.values()) for one in found
    ):
        raise ValueError("no data sets")
    return found


def _text(result: Json, tag: str) -> str:
    values = result.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _version(result: Json) -> str:
    return blake2b(json.dumps(result, sort_keys=True).encode(), digest_size=12).hexdigest()


def _count(result: Json) -> int:
    text = _text(result, _COUNT)
    return int(text) if text.isdecimal() else 0


def _identity(result: Json) -> tuple[str, str, str]:
    return _text(result, _STUDY), _text(result, _SERIES), _text(result, _INSTANCE)
