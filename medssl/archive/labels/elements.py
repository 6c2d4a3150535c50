"""Elements of label objects, read without trust: what is broken is a `LabelProblem` that says where, and no free text."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import RLock

from pydicom import Dataset

from medssl.archive.headers.dicom import PARSE_ERRORS
from medssl.archive.headers.elements import texts, values
from medssl.archive.headers.scan import quiet_pydicom
from medssl.archive.labels.objects import Refers
from medssl.archive.labels.placing import LabelProblem
from medssl.archive.limits import Refused
from medssl.archive.pixels.values import PixelProblem

MOST_ITEMS = 2**17
"""Items of one sequence that are read."""
_QUIET = RLock()
"""Filters of warnings are one for all threads: two that change and restore them at once may leave them changed."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """What pydicom raises on broken content, as one message; what it warns of, which quotes values, is not shown."""
    try:
        with _QUIET, quiet_pydicom():
            yield
    except LabelProblem:
        raise
    except (PixelProblem, Refused) as error:
        raise LabelProblem(f"the {what} cannot be read: {error}.") from None
    except (*PARSE_ERRORS, OSError, struct.error, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise LabelProblem(f"the {what} is broken ({type(error).__name__}). Export it again, or leave it out.") from error


def items(dataset: Dataset, name: str) -> list[Dataset]:
    """The items of a sequence; none where it is missing or no sequence."""
    found = [item for item in values(dataset, name) if isinstance(item, Dataset)]
    if len(found) > MOST_ITEMS:
        raise LabelProblem(f"it has {len(found)} items in {name}, and {MOST_ITEMS} are read.")
    return found


def item(datasets: Iterable[Dataset], name: str) -> Dataset | None:
    """The first item of a sequence of the first of these datasets that has one."""
    return next((found[0] for dataset in datasets if (found := items(dataset, name))), None)


def uids(datasets: Iterable[Dataset], name: str) -> frozenset[str]:
    """What these datasets call `name`, where they do."""
    return frozenset(text for dataset in datasets for text in texts(dataset, name) if text)


def series_referred(series: Iterable[Dataset], instances: str) -> Refers:
    """The series of a ReferencedSeriesSequence or its like, and their instances in the sequence `instances`."""
    entries = list(series)
    named = [entry for one in entries for entry in items(one, instances)]
    return Refers(uids(entries, "SeriesInstanceUID"), uids(named, "ReferencedSOPInstanceUID"))
