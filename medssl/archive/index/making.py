"""The volumes of an index: from the instances of each series, with the row that says of each what it is and names nobody."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from medssl.archive import geometry
from medssl.archive.index.pseudonyms import Pseudonyms
from medssl.archive.index.records import VolumeRecord
from medssl.archive.instance import Instance
from medssl.archive.series.splitting import Left, Stack, split_volumes

_WORDS = ("body_part", "sequence", "variant", "contrast", "kernel", "manufacturer", "model")
_NUMBERS = ("echo_time", "repetition_time", "inversion_time", "flip_angle", "field_strength", "kvp")


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
    # Pseudonyms give an order that does not depend on where files lie.
    return sorted(made, key=lambda one: (one.record.patient, one.record.study, one.record.series, one.record.volume)), left


def _from_stack(stack: Stack, names: Pseudonyms) -> Made:
    first = stack.slices[0]
    identity = "\n".join([first.series, *(one.named(one.uid) for one in stack.slices)])
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
    words = {name: _common([getattr(one.taken, name) for one in slices]) or None for name in _WORDS}
    numbers = {name: _first(_common([getattr(one.taken, name) for one in slices])) for name in _NUMBERS}
    series = _common([one.taken.series_number for one in slices])
    return {
        **words,
        **numbers,
        "b_value": _first(_common([one.b_value for one in slices])),
        "series_number": series if series is not None and series >= 0 else None,
    }


def _first(values: tuple[float, ...] | None) -> float | None:
    return values[0] if values else None


def _common(values: Sequence[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else None
