"""How many outputs a segmentation network needs: one a class, counted over the labels that were looked at."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection

from medssl.errors import DataError
from medssl.networks import NetworkSpec
from medssl.volumes import LabelValues, Store, proposal

SHOWN = 12
"""Classes that a warning lists."""


def with_outputs(spec: NetworkSpec, values: LabelValues, training: Store, validation: Store | None) -> NetworkSpec:
    """The specification with one output a class, background included.

    Raises `DataError` where the classes do not count on from 0 or do not fit `spec.out_channels`, or where there are none.
    """
    trained, held = _counted(training), _counted(validation)
    _refuse_empty(trained, held if validation is not None else None)
    found = trained + held
    if spec.out_channels is None:
        _refuse_undeclared(values, found)
        named = values.declared if values.classes is None else {one for one in values.classes.values() if one >= 0}
        named = named | set(values.class_names()) if values.segments is not None else named
        outputs = _outputs({0, *found, *named}, found, values)
    else:
        outputs = spec.out_channels
        _refuse_beyond({0, *found}, outputs, found, values)
        _refuse_unnamed(outputs, values)
    bare = sum(1 for volume in training.volumes if not any(value > 0 for value in volume.classes or ()))
    if bare:
        warnings.warn(
            f"{bare} of {len(training.volumes)} training cases have no labelled voxel: they teach the background alone.", stacklevel=2
        )
    missing = sorted(set(range(1, outputs)) - set(trained))
    if missing:
        shown = f"{missing[:SHOWN]}{' and more' if len(missing) > SHOWN else ''}"
        warnings.warn(f"no training case has a voxel of the label(s) {shown}: the network cannot learn them.", stacklevel=2)
    return spec.model_copy(update={"out_channels": outputs})


def _counted(store: Store | None) -> Counter[int]:
    """Class -> cases that have it; neither background nor what is ignored is a class to learn."""
    volumes = () if store is None else store.volumes
    return Counter(value for volume in volumes for value in volume.classes or () if value > 0)


def _refuse_empty(trained: Counter[int], held: Counter[int] | None) -> None:
    if not trained:
        raise DataError("no label of the training cases has a labelled voxel: all are 0. Check that the label files are the right ones.")
    if held is not None and not held:
        raise DataError(
            "no label of the validation cases has a labelled voxel: there would be no Dice and no best checkpoint. "
            "Validate on other cases (data.splits, data.fold), or on none: data.validation=0."
        )


def _outputs(known: set[int], found: Counter[int], values: LabelValues) -> int:
    outputs, lacking = max(known) + 1, max(known) + 1 - len(known)
    if lacking:
        between = f", or say by network.out_channels={outputs} that the values between are classes which these cases lack"
        raise DataError(
            f"the label values are {_listed(known, found, values)}: they do not count on from 0, so {outputs} outputs would be made for "
            f"{len(known)} classes. Number them by {_mapped(known)}{between if lacking < len(known) else ''}."
        )
    return outputs


def _refuse_beyond(known: set[int], outputs: int, found: Counter[int], values: LabelValues) -> None:
    if max(known) < outputs:
        return
    said = f"the label values are {_listed(known, found, values)}; the network has {outputs} outputs, for labels 0 to {outputs - 1}."
    if len(known) == max(known) + 1:
        raise DataError(f"{said} Set network.out_channels to {len(known)}, or merge or drop classes by data.label_values.")
    also = f" and set network.out_channels to {len(known)}" if len(known) > outputs else ""
    raise DataError(f"{said} Number them by {_mapped(known)}{also}.")


def _refuse_unnamed(outputs: int, values: LabelValues) -> None:
    if values.outputs is not None and outputs > values.outputs:
        raise DataError(
            f"network.out_channels is {outputs} and {values.said_by} names {values.outputs} classes, background included: what the others "
            f"predict has no value in a label map. Set network.out_channels to {values.outputs}, or leave it out."
        )


def _refuse_undeclared(values: LabelValues, found: Counter[int]) -> None:
    others = set(found) - values.declared if values.declared and values.classes is None else set()
    if others:
        declared = ", ".join(values.named(value) for value in sorted(values.declared))
        raise DataError(
            f"dataset.json names the labels {declared}, and label files also hold {_listed(others, found, values)}. "
            f"Correct dataset.json or the labels, or say what they are by {_mapped({*values.declared, *others})}."
        )


def _listed(known: Collection[int], found: Counter[int], values: LabelValues) -> str:
    names = values if values.classes is None else LabelValues()
    return ", ".join(f"{names.named(value)} (in {found[value]} cases)" if value else "0" for value in sorted(known))


def _mapped(known: Collection[int]) -> str:
    named = "{lesion: " + str(max(known)) + "}" if len({*known} - {0}) == 1 else "{NAME: " + str(max(known)) + ", ...}"
    said = "two values may be one class, 0 drops a value, `ignore` leaves its voxels out"
    return f"{proposal(known)} ({said}), or by name: data.classes={named}"
