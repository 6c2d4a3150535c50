"""From files as the hospital has them to volumes with a geometry that can be trusted, or a recorded reason. No torch."""

from medssl.archive.headers.dicom import wanted_elements
from medssl.archive.index.build import build_index
from medssl.archive.index.compacting import Folded, compact
from medssl.archive.index.export import write_volumes
from medssl.archive.index.left_out import LeftOut
from medssl.archive.index.reading import Index
from medssl.archive.index.records import IndexSummary, Volume, VolumeRecord, without_previews
from medssl.archive.index.revealing import Revealed, reveal
from medssl.archive.index.single import Single, no_volume, read_single, single_modality
from medssl.archive.narrowing import narrow
from medssl.archive.nifti.files import Nifti, read_nifti, read_nifti_channels, write_nifti
from medssl.archive.outcomes import Reason, counted
from medssl.archive.sources.folder import FolderSource
from medssl.archive.sources.locations import find_source
from medssl.archive.sources.packed import TarSource, ZipSource
from medssl.source import ArchiveSource, FrameSource, HeaderSource, StartSource, Stat, StatSource

__all__ = [
    "ArchiveSource",
    "Folded",
    "FolderSource",
    "FrameSource",
    "HeaderSource",
    "Index",
    "IndexSummary",
    "LeftOut",
    "Nifti",
    "Reason",
    "Revealed",
    "Single",
    "StartSource",
    "Stat",
    "StatSource",
    "TarSource",
    "Volume",
    "VolumeRecord",
    "ZipSource",
    "build_index",
    "compact",
    "counted",
    "find_source",
    "narrow",
    "no_volume",
    "read_nifti",
    "read_nifti_channels",
    "read_single",
    "reveal",
    "single_modality",
    "wanted_elements",
    "without_previews",
    "write_nifti",
    "write_volumes",
]
