"""Which volumes of an archive a store takes, as data: the default choice, rules of one's own, and the reason of all that is left out."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from medssl.archive.nifti.modality import checked_modality
from medssl.config import BaseOptions
from medssl.volumes.ingest import image_types
from medssl.volumes.ingest.channels import known_modality
from medssl.volumes.ingest.reconstructions import Candidate, acquisitions, best, computed

if TYPE_CHECKING:
    from medssl.archive import Index, VolumeRecord
    from medssl.archive.instance import Instance

FEWEST = 30
"""Slices of a volume made of DICOM, unless the configuration says otherwise."""

Range = tuple[float | None, float | None]
Words = tuple[str, ...] | str


class Condition(BaseOptions):
    """Volumes of which everything that is said here is true; nothing said: all."""

    modality: Words | None = None
    """One of these DICOM modalities."""
    slices: Range | None = None
    """Slices: at least, at most; null for no limit."""
    size: Range | None = None
    """Voxels along each side, likewise."""
    spacing: Range | None = None
    """Millimetres between voxels along each side, likewise."""
    description: str | None = None
    """Regular expression that is found in SeriesDescription, in capitals or not; NIfTI files have none."""
    manufacturer: Words | None = None
    """One of these, as `medssl volumes` writes them: Siemens, GE, Philips, Canon, ..."""
    body_part: Words | None = None
    """One of these, as in the volume table: CHEST, HEAD, ..."""

    @field_validator("description")
    @classmethod
    def _is_expression(cls, text: str | None) -> str | None:
        try:
            re.compile(text or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return text

    def fits(self, one: Candidate) -> bool:
        """Is all of it true of a volume?"""
        record = one.record
        words = ((self.modality, one.modality), (self.manufacturer, record.manufacturer), (self.body_part, record.body_part))
        numbers = ((self.slices, [one.slices or 1]), (self.size, record.shape[:3]), (self.spacing, record.spacing))
        named = all(given is None or _is_among(word, given) for given, word in words)
        within = all(given is None or all(_is_within(value, given) for value in values) for given, values in numbers)
        said = self.description is None or re.search(self.description, one.description, re.IGNORECASE) is not None
        return named and within and said and not (self.description is not None and one.record.kind == "nifti")


def _is_among(word: str | None, given: Words) -> bool:
    return (word or "").upper() in {one.upper() for one in ([given] if isinstance(given, str) else given)}


def _is_within(value: float, limits: Range) -> bool:
    low, high = limits
    return (low is None or value >= low) and (high is None or value <= high)


class Rule(BaseOptions):
    """Takes volumes or leaves them out."""

    include: Condition | None = None
    """Take volumes of which this is true, whatever the default choice says of them."""
    leave_out: Condition | None = None
    """Leave out volumes of which this is true."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Rule:
        if (self.include is None) == (self.leave_out is None):
            raise ValueError("give either include or leave_out")
        return self


class ChoiceOptions(BaseOptions):
    """The `choice:` key of a store's configuration: which volumes it takes. The reason of every other one is told."""

    min_slices: int | None = Field(default=None, ge=1)
    """Fewest slices of a volume; null: 30 for volumes made of DICOM, and any number for NIfTI files."""
    reconstructions: Literal["one", "all"] = "one"
    """one: of the reconstructions of an acquisition the thinnest, axial, of CT with a soft kernel, of PET with attenuation corrected, of
    MR the one that was corrected most; of DICOM no reformats, maps and other images that were derived of those that are here; all: every
    one of them."""
    rules: tuple[Rule, ...] = ()
    """Before the default choice, in order: the first rule that is true of a volume decides."""


EVERYTHING = ChoiceOptions(min_slices=1, reconstructions="all")
"""Leaves nothing out."""


@dataclass(frozen=True)
class Choice:
    """Every volume that was there is in exactly one of both."""

    chosen: tuple[VolumeRecord, ...]
    """In the order in which they came."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Volume -> reason."""


SECOND = "a second reconstruction of the same acquisition"
UNCORRECTED = "a reconstruction without attenuation correction, beside one with it (CorrectedImage)"
REFORMAT = "a reformat, projection or rendering (ImageType)"
DERIVED = "derived from other images of its study (ImageType)"
PREVIEW = "a picture beside DICOM or NIfTI"
OTHERS = {2: "a volume, beside 2D images", 3: "a 2D image, beside volumes"}
"""By the dimensions of what a store holds."""
_RECONSTRUCTIONS = (SECOND, UNCORRECTED, REFORMAT, DERIVED)


def choose(candidates: Sequence[Candidate], options: ChoiceOptions, modalities: Collection[str] = ()) -> Choice:
    """The volumes that a store takes of those of the `modalities`, and no modalities: of all."""
    left: dict[str, str] = {one.record.volume: f"of modality {one.modality}" for one in candidates if not _wanted(one, modalities)}
    left |= _by_rules([one for one in candidates if one.record.volume not in left], options)
    return Choice(tuple(one.record for one in candidates if one.record.volume not in left), left)


def _wanted(one: Candidate, modalities: Collection[str]) -> bool:
    return not modalities or one.modality in modalities


def _by_rules(candidates: Sequence[Candidate], options: ChoiceOptions) -> dict[str, str]:
    left: dict[str, str] = {}
    undecided: list[Candidate] = []
    for one in candidates:
        number, rule = _first_rule(one, options.rules)
        if rule is None:
            undecided.append(one)
        elif rule.leave_out is not None:
            left[one.record.volume] = f"rule {number} of the configuration leaves it out"
    return left | _by_default(undecided, options)


def _first_rule(one: Candidate, rules: Sequence[Rule]) -> tuple[int, Rule | None]:
    for number, rule in enumerate(rules, 1):
        condition = rule.include or rule.leave_out
        if condition is not None and condition.fits(one):
            return number, rule
    return 0, None


def _by_default(candidates: Sequence[Candidate], options: ChoiceOptions) -> dict[str, str]:
    left: dict[str, str] = {}
    # An image has no slices, and is no reconstruction of an acquisition.
    candidates = [one for one in candidates if one.record.dimensions == 3]
    for one in candidates:
        fewest = options.min_slices or (FEWEST if one.record.kind == "dicom" else 1)
        if one.slices is not None and one.slices < fewest:
            left[one.record.volume] = f"fewer than {fewest} slices"
    if options.reconstructions == "all":
        return left
    rest = [one for one in candidates if one.record.volume not in left]
    left |= {one.record.volume: REFORMAT for one in rest if image_types.is_reformat(one.image_type)}
    left |= _derived([one for one in rest if one.record.volume not in left])
    for group in acquisitions([one for one in rest if one.record.volume not in left]):
        taken = best(group)
        left |= {one.record.volume: _second(one, taken) for one in group if one is not taken}
    return left


def _second(one: Candidate, taken: Candidate) -> str:
    return UNCORRECTED if taken.is_attenuation_corrected and not one.is_attenuation_corrected else SECOND


def _derived(candidates: Sequence[Candidate]) -> dict[str, str]:
    """Where the originals are gone, what was made of them stands for them."""
    primary: list[Candidate] = []
    secondary: list[Candidate] = []
    for one in candidates:
        (secondary if image_types.is_secondary(one.image_type) else primary).append(one)
    originals = {(one.record.study, one.modality) for one in primary}
    left = [one.record.volume for one in secondary if (one.record.study, one.modality) in originals]
    return dict.fromkeys([*left, *computed(primary)], DERIVED)


def candidates_of(index: Index, records: Iterable[VolumeRecord], modality: str | None) -> list[Candidate]:
    """Volumes with their origin; `modality` where the index knows none."""
    return [_candidate(record, known_modality(record, modality), index.slices(record.volume)) for record in records]


def _candidate(record: VolumeRecord, modality: str, slices: Sequence[Instance]) -> Candidate:
    if record.kind == "nifti" or not slices:
        return Candidate(record, modality)
    times = [one.acquired for one in slices if one.acquired]
    return Candidate(
        record,
        modality,
        slices[0].image_type,
        slices[0].acquisition,
        min(times, default=""),
        max(times, default=""),
        max((value for one in slices for value in one.thickness), default=0.0),
        slices[0].frame_of_reference,
        slices[0].description,
        _image(slices[0]),
        slices[0].corrected,
    )


def _image(one: Instance) -> tuple[str, ...]:
    return one.component, one.echo, one.inversion, one.flip, one.diffusion, one.temporal, one.trigger


def modalities_of(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """As DICOM writes them; `ConfigError` for what is none."""
    names = [given] if isinstance(given, str) else list(given or ())
    return tuple(dict.fromkeys(checked_modality(part.strip()) for name in names for part in name.split(",")))


def counted(left_out: Mapping[str, str]) -> dict[str, int]:
    """Reason -> volumes, commonest first."""
    return dict(sorted(Counter(left_out.values()).items(), key=lambda item: (-item[1], item[0])))


def nothing_left(left_out: Mapping[str, str]) -> str:
    """What the choice left out where it left nothing, and which flags would take it."""
    ways: dict[str, list[str]] = defaultdict(list)
    for reason, count in counted(left_out).items():
        ways[_way(reason)].append(f"{count} {reason}")
    return "; ".join(f"{', '.join(reasons)} ({way})" for way, reasons in ways.items())


def _way(reason: str) -> str:
    if reason.startswith("fewer than"):
        return "--min-slices N takes shorter ones"
    if reason == PREVIEW:
        return "--where \"kind = 'picture'\" takes them"
    if reason in OTHERS.values():
        return "--dimensions says which a store holds"
    if reason in _RECONSTRUCTIONS:
        return "--all-reconstructions takes them"
    return "--modality says which are taken" if reason.startswith("of modality") else "`choice.rules` says so"
