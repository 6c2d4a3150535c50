"""Dice per class and case of predicted label maps against labels, matched by file name.

Dice of one class in one case is 2 |P and L| / (|P| + |L|). Where the label lacks the class it says nothing about the
prediction (the class may be absent from the image, or nobody drew it): that case is left out of the class's mean and
counted, as MONAI's `DiceMetric` leaves it out. Voxels predicted there are counted too.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medssl.archive import read_nifti
from medssl.archive.geometry import image_affine
from medssl.archive.labels.placing import Grid, place_of
from medssl.archive.nifti.names import image_files, is_picture_name, stem
from medssl.archive.pictures.files import read_picture_labels
from medssl.errors import DataError, MissingInput, UsageError
from medssl.faults import faults_as
from medssl.files import write_atomically
from medssl.notebook import html_table

if TYPE_CHECKING:
    from medssl.run import Run
    from medssl.train.checkpoint import Checkpoint

CLASSES_SHOWN = 6
"""Of which `repr` gives the Dice."""
AFFINE_TOLERANCE = 1e-3
"""Millimetres by which two affines may differ: the rounding of a NIfTI header."""


@dataclass(frozen=True)
class LabelMap:
    """A label map as its file has it."""

    path: Path
    array: NDArray[np.int32]
    """(X, Y, Z) label values."""
    affine: NDArray[np.float64]
    """(4, 4) voxel to RAS+ mm."""

    @property
    def sides(self) -> tuple[int, int, int]:
        """Voxels along its axes."""
        x, y, z = self.array.shape
        return x, y, z


@dataclass(frozen=True)
class Row:
    """One class in one case."""

    case: str
    label: int
    dice: float | None
    """None where the label lacks the class."""
    label_voxels: int
    predicted_voxels: int


@dataclass(frozen=True)
class ClassDice:
    """One class over all cases."""

    label: int
    dice: float | None
    """Mean over the cases whose label has the class; None where there is none."""
    cases: int
    absent: int
    """Cases whose label lacks the class, left out of the mean."""
    absent_but_predicted: int
    """Of those, cases where the prediction has it."""


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Dice of a folder of predictions; `document()` is the JSON of `medssl evaluate`."""

    rows: tuple[Row, ...]
    predictions_without_label: tuple[str, ...] = ()
    labels_without_prediction: tuple[str, ...] = ()

    def __repr__(self) -> str:
        classes = ", ".join(f"class {label} {_text(dice)}" for label, dice in list(self.means.items())[:CLASSES_SHOWN])
        more = f" and {len(self.means) - CLASSES_SHOWN} more" if len(self.means) > CLASSES_SHOWN else ""
        unpaired = len(self.labels_without_prediction) + len(self.predictions_without_label)
        apart = f"; {unpaired} files left out" if unpaired else ""
        return f"Evaluation({len(self.cases)} cases, mean Dice {_text(self.dice)}: {classes}{more}{apart})"

    def _repr_html_(self) -> str:
        columns, rows = self.table()
        cases = len(self.cases)
        return html_table(repr(self), columns, [*rows[cases:], *rows[:cases]])

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the evaluated cases."""
        return tuple(dict.fromkeys(row.case for row in self.rows))

    @property
    def classes(self) -> tuple[ClassDice, ...]:
        """One entry a class, in the order of the label values."""
        values = sorted({row.label for row in self.rows})
        return tuple(_over_cases(value, [row for row in self.rows if row.label == value]) for value in values)

    @property
    def means(self) -> dict[int, float | None]:
        """Label value -> mean Dice of that class."""
        return {found.label: found.dice for found in self.classes}

    @property
    def dice(self) -> float | None:
        """Mean of the classes' means; None where no class has one."""
        return _mean(list(self.means.values()))

    def notes(self) -> list[str]:
        """A line for each kind of case that has no part in the numbers."""
        lines = (
            ("label(s) without a prediction", self.labels_without_prediction),
            ("prediction(s) without a label", self.predictions_without_label),
        )
        count = len(self.cases)
        return [f"{len(names)} {what}, left out: {_listed(names)}. The means are over {count} case(s)." for what, names in lines if names]

    def document(self) -> dict[str, Any]:
        """Everything as JSON values; an undefined Dice is null."""
        return {
            "dice": self.dice,
            "classes": {
                str(found.label): {
                    "dice": found.dice,
                    "cases": found.cases,
                    "absent": found.absent,
                    "absent_but_predicted": found.absent_but_predicted,
                }
                for found in self.classes
            },
            "cases": [
                {"case": case, "dice": {str(found.label): dice for found, dice in zip(self.classes, dices, strict=True)}}
                for case, dices in self._by_case()
            ],
            "predictions_without_label": list(self.predictions_without_label),
            "labels_without_prediction": list(self.labels_without_prediction),
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """(columns, rows) for a person: one row a case, then the means and the number of cases behind each."""
        classes = self.classes
        columns = ["case", *(f"class {found.label}" for found in classes), "mean"]
        rows = [[case, *(_text(dice) for dice in dices), _text(_mean(dices))] for case, dices in self._by_case()]
        rows.append(["mean", *(_text(found.dice) for found in classes), _text(self.dice)])
        rows.append(["cases with the class", *(str(found.cases) for found in classes), ""])
        if any(found.absent_but_predicted for found in classes):
            rows.append(["predicted where the label lacks it", *(str(found.absent_but_predicted) for found in classes), ""])
        return columns, rows

    def write(self, path: str | Path) -> Path:
        """Write `path` as JSON (`.json`: the document) or CSV (`.csv`: one line a case and class)."""
        file = Path(path)
        if file.suffix == ".json":
            text = json.dumps(self.document(), indent=1) + "\n"
        elif file.suffix == ".csv":
            text = self._csv()
        else:
            raise UsageError(f"cannot write the evaluation to {file}: its name must end in .json or .csv.")
        with faults_as(UsageError, f"the evaluation cannot be written to {file}"):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, text.encode())
        return file

    def _by_case(self) -> list[tuple[str, list[float | None]]]:
        """Each case with its Dice in the order of `classes`; rows come by case, then by class."""
        return [(case, [row.dice for row in self.rows if row.case == case]) for case in self.cases]

    def _csv(self) -> str:
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["case", "label", "dice", "label_voxels", "predicted_voxels"])
        for row in self.rows:
            writer.writerow([row.case, row.label, "" if row.dice is None else row.dice, row.label_voxels, row.predicted_voxels])
        return lines.getvalue()


def evaluate(predictions: str | Path, labels: str | Path, run: str | Path | Run | Checkpoint | None = None) -> Evaluation:
    """Dice of every case that has a prediction and a label of the same file name.

    `run` is the fine-tuning run that predicted, where its `data.classes` or `data.label_values` should count: values that it
    merged are one class, those it dropped are background, and what it ignored counts for nothing; classes have the numbers of its training.

    Raises:
        MissingInput: a folder is not there or holds no NIfTI file.
        DataError: no name matches, the grids of a pair differ, or a file is no label map.
    """
    predicted, true = _label_maps(predictions, "predictions"), _label_maps(labels, "labels")
    both = sorted(predicted.keys() & true.keys())
    if not both:
        raise DataError(
            f"no prediction has a label of the same name: {predictions} has {_some(predicted)}, {labels} has {_some(true)}. "
            "Give both files of a case the same name."
        )
    compared = _comparison(run)
    values = set[int]()
    counts: dict[str, NDArray[np.int64]] = {}
    for case in both:
        counts[case] = _case_counts(predicted[case], true[case], compared)
        values |= {int(value) for value in counts[case][:, 0] if value != 0}
    rows = tuple(_row(case, value, counts[case]) for case in both for value in sorted(values))
    return Evaluation(rows, tuple(sorted(predicted.keys() - true.keys())), tuple(sorted(true.keys() - predicted.keys())))


def _comparison(run: str | Path | Run | Checkpoint | None) -> Callable[[LabelMap, LabelMap], tuple[NDArray[Any], NDArray[Any]]]:
    """What turns a prediction and its label into the values that are compared."""
    if run is None:
        return lambda prediction, label: (prediction.array, label.array)
    from medssl.transfer.prediction import label_values_of_run
    from medssl.volumes.ingest import Unusable

    values = label_values_of_run(run)

    def classes(found: LabelMap) -> NDArray[Any]:
        try:
            return values.classes_in(found.array)
        except Unusable as error:
            raise DataError(f"{found.path} {error}") from error

    return lambda prediction, label: known(classes(prediction), classes(label))


def known(prediction: NDArray[Any], label: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both where the label is not ignored (-1)."""
    inside = label >= 0
    return (prediction, label) if inside.all() else (prediction[inside], label[inside])


def read_label_map(path: Path) -> LabelMap:
    """A NIfTI or PNG file of whole numbers, stored as integers or as floats; anything else is a `DataError`."""
    array, affine = (read_picture_labels(path), image_affine(())) if is_picture_name(path.name) else read_nifti(path)
    if not np.issubdtype(array.dtype, np.integer) and not np.array_equal(array, np.rint(array)):
        raise DataError(f"{path} is no label map: it holds values that are not whole numbers. Give label values, not probabilities.")
    return LabelMap(path, array.astype(np.int32), affine)


def class_counts(prediction: NDArray[Any], label: NDArray[Any]) -> NDArray[np.int64]:
    """(K, 4): for each value that occurs in either, the value and the voxels of intersection, prediction and label."""
    values = np.union1d(prediction, label)
    predicted, true = (np.searchsorted(values, array) for array in (prediction, label))
    confusion = np.bincount((predicted * len(values) + true).ravel(), minlength=len(values) ** 2).reshape(len(values), -1)
    return np.stack([values.astype(np.int64), confusion.diagonal(), confusion.sum(1), confusion.sum(0)], axis=1).astype(np.int64)


def dice_by_class(prediction: NDArray[Any], label: NDArray[Any], classes: Sequence[int]) -> list[float | None]:
    """Dice of each class; None where the label lacks it."""
    counts = class_counts(prediction, label)
    return [_row("", value, counts).dice for value in classes]


def _case_counts(
    prediction: Path, label: Path, compared: Callable[[LabelMap, LabelMap], tuple[NDArray[Any], NDArray[Any]]]
) -> NDArray[np.int64]:
    first = read_label_map(prediction)
    second = _turned(read_label_map(label), first)
    if first.array.shape != second.array.shape:
        what = f"{first.array.shape} against {second.array.shape} voxels"
    elif not np.allclose(first.affine, second.affine, rtol=0, atol=AFFINE_TOLERANCE):
        what = f"affines {_rounded(first.affine)} against {_rounded(second.affine)}"
    else:
        return class_counts(*compared(first, second))
    raise DataError(
        f"the prediction {prediction} and the label {label} lie on different grids: {what}. "
        "Predict on the image that the label was drawn on (medssl predict writes on its input's grid), or resample one of them."
    )


def _turned(label: LabelMap, prediction: LabelMap) -> LabelMap:
    """The label with its axes as the prediction's, where both have the same voxels in another order or direction."""
    place = place_of(Grid(label.sides, label.affine), Grid(prediction.sides, prediction.affine))
    if place is None or not place.is_whole(label.sides, prediction.sides):
        return label
    return LabelMap(label.path, place.flips.apply(label.array), place.flips.affine(label.affine, label.sides))


def _row(case: str, value: int, counts: NDArray[np.int64]) -> Row:
    found = counts[counts[:, 0] == value]
    both, predicted, true = (int(number) for number in found[0, 1:]) if len(found) else (0, 0, 0)
    return Row(case, value, 2 * both / (predicted + true) if true else None, true, predicted)


def _over_cases(value: int, rows: Sequence[Row]) -> ClassDice:
    absent = [row for row in rows if row.dice is None]
    mean = _mean([row.dice for row in rows])
    return ClassDice(value, mean, len(rows) - len(absent), len(absent), sum(row.predicted_voxels > 0 for row in absent))


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _text(dice: float | None) -> str:
    return "-" if dice is None else f"{dice:.4f}"


def _label_maps(folder: str | Path, what: str) -> dict[str, Path]:
    place = Path(folder)
    if not place.is_dir():
        raise MissingInput(f"no folder of {what} at {place}. Give the folder that holds them as NIfTI or PNG files.")
    files = image_files(place)
    if not files:
        raise MissingInput(f"the folder of {what} {place} holds no .nii, .nii.gz or .png file.")
    found: dict[str, Path] = {}
    for path in files:
        other = found.setdefault(stem(path), path)
        if other != path:
            raise DataError(f"{other} and {path} name the same case. Keep one of them.")
    return found


def _some(names: dict[str, Path]) -> str:
    return _listed([path.name for path in names.values()])


def _listed(names: Sequence[str]) -> str:
    first = ", ".join(names[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"


def _rounded(affine: NDArray[np.float64]) -> list[list[float]]:
    return [[round(float(value), 3) for value in line] for line in affine[:3]]
