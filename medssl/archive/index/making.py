"""The volumes of an index: from the instances of each series, with the row that says of each what it is and names nobody."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from medssl.archive import geometry
from medssl.archive.index.pseudonyms import Pseudonyms
from medssl.archive.index.records import VolumeRecord
from medssl.archive.instance import Instance
from medssl.archive.series.splitting import Left, Stack, split_volumes
from medssl.archive.series.uniform import Uniform

_WORDS = ("body_part", "sequence", "variant", "contrast", "kernel", "manufacturer", "model")
_NUMBERS = ("echo_time", "repetition_time", "inversion_time", "flip_angle", "field_strength", "kvp")
COMMON = (*_WORDS, *_NUMBERS, "b_value", "series_number")
"""What is said of a volume where all its slices agree in it."""


@dataclass(frozen=True)
class Made:
    """One volume with the instances it is made of, in order."""

    record: VolumeRecord
    slices: tuple[Instance, ...]


def make_volumes(instances: Sequence[Instance], names: Pseudonyms) -> tuple[list[Made], list[Left]]:
    """The volumes of all instances without a reason, and the instances that end in none."""
    series: dict[tuple[str, str, str], list[Instance]] = defaultdict(list)
    made: list[Made] = []
    left: list[Left] = []
    for one in instances:
        if one.reason:
            continue
        if one.kind == "nifti":
            made.append(_from_nifti(one, names))
        elif one.is_image:
            made.append(_from_image(one, names))
        else:
            series[one.patient, one.study, one.series].append(one)
    for members in series.values():
        stacks, rest = split_volumes(members)
        made += [_from_stack(stack, names) for stack in stacks]
        left += rest
    return made, left


def record_of_uniform(found: Uniform, uids: Sequence[str], files: int, names: Pseudonyms) -> VolumeRecord:
    """What is said of a uniform series whose slices have these UIDs, in order; a slice that is a frame names it too."""
    record = _record(found.first, "dicom", names, _identity(found.first, uids), found.shape, found.affine)
    values = {name: None if name in found.differ else _value(found.first, name) for name in COMMON}
    return replace(record, instances=files, warnings=found.warnings, deviation=found.deviation, **_described(values))


def _identity(first: Instance, uids: Sequence[str]) -> str:
    return "\n".join([first.series, *uids])


def _from_stack(stack: Stack, names: Pseudonyms) -> Made:
    first = stack.slices[0]
    identity = _identity(first, [one.named(one.uid) for one in stack.slices])
    record = _record(first, "dicom", names, identity, stack.shape, stack.affine)
    split_by = ", ".join(stack.split_by) or None
    return Made(
        replace(
            record,
            instances=len({(one.source, one.key) for one in stack.slices}),
            split_by=split_by,
            warnings=stack.warnings,
            deviation=stack.deviation,
            **_taken(stack.slices),
        ),
        stack.slices,
    )


def _from_nifti(one: Instance, names: Pseudonyms) -> Made:
    affine = np.array(one.affine, float).reshape(4, 4)
    record = replace(_record(one, "nifti", names, one.uid, one.shape, affine), warnings=one.warnings)
    if one.shape[2] == 1:
        record = replace(record, dimensions=2, spacing=record.spacing[:2])
    return Made(record, (one,))


def _from_image(one: Instance, names: Pseudonyms) -> Made:
    values = one.frames * one.samples
    shape = (one.columns, one.rows, 1, *((values,) if values > 1 else ()))
    kind: Literal["dicom", "picture"] = "picture" if one.kind == "picture" else "dicom"
    identity = f"{one.series}\n{one.uid}" if kind == "dicom" else one.uid
    record = _record(one, kind, names, identity, shape, geometry.image_affine(one.pixel_spacing))
    return Made(
        replace(
            record,
            spacing=tuple(one.pixel_spacing[::-1]),
            dimensions=2,
            frames=one.frames,
            colours=one.samples,
            inverted=one.is_inverted,
            warnings=one.warnings,
            **_taken((one,)),
        ),
        (one,),
    )


def _record(
    first: Instance,
    kind: Literal["dicom", "nifti", "picture"],
    names: Pseudonyms,
    identity: str,
    shape: tuple[int, ...],
    affine: geometry.Float,
) -> VolumeRecord:
    return VolumeRecord(
        volume=names.name("volume", f"{kind}\n{identity}"),
        patient=_patient(first, names),
        study=names.name("study", first.study or first.series),
        series=names.name("series", first.series),
        modality=first.modality,
        kind=kind,
        shape=tuple(shape),
        spacing=geometry.voxel_spacing(affine),
        affine=affine,
        instances=1,
        split_by=None,
        warnings=(),
    )


def _patient(one: Instance, names: Pseudonyms) -> str:
    """An empty PatientID says nothing: then a study is taken for a person of its own."""
    return names.name("patient", f"{one.kind}\n{one.patient}" if one.patient else f"study\n{one.study or one.series}")


def _taken(slices: Sequence[Instance]) -> dict[str, Any]:
    """How a volume was taken: what all its slices agree in."""
    return _described({name: _common([_value(one, name) for one in slices]) for name in COMMON})


def _described(values: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a record for values of `COMMON`, None where slices do not agree."""
    words = {name: values[name] or None for name in _WORDS}
    numbers = {name: values[name][0] if values[name] else None for name in (*_NUMBERS, "b_value")}
    series = values["series_number"]
    return {**words, **numbers, "series_number": series if series is not None and series >= 0 else None}


def _value(one: Instance, name: str) -> Any:
    return one.b_value if name == "b_value" else getattr(one.taken, name)


def _common(values: Sequence[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else None
