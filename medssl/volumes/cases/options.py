"""The `data:` key of a fine-tuning configuration: where the labelled cases are, what their labels mean, which are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, model_validator

from medssl.archive.labels.merging import Classes, Overlaps
from medssl.config import Seed
from medssl.volumes.cases.label_values import check_given, check_named
from medssl.volumes.crops import LoadOptions
from medssl.volumes.patients import check_pattern
from medssl.volumes.preparation import check_windows

Said = int | str
"""A value of label maps, or the name or number of a segment."""


class LabelledOptions(LoadOptions):
    """The `data:` key of a fine-tuning configuration."""

    dataset: str | None = None
    """A folder with `dataset.json` (Decathlon or nnU-Net), or a datalist JSON file; or give `images` and `labels`, or `index`."""
    images: str | None = None
    """Folder of images: NIfTI files, or PNG, JPEG and TIFF."""
    labels: str | None = None
    """Folder of label files, named as their images: NIfTI, NRRD (`CASE.nrrd`, Slicer's `CASE.seg.nrrd`), PNG, DICOM
    segmentations of voxels or surfaces, or RTSTRUCT (`CASE.dcm`). Beside `dataset` or `index`, which bring their own labels, a mapping
    here is read as `classes`."""
    index: str | None = None
    """An index folder: its volumes that a DICOM segmentation or RTSTRUCT of the index was drawn on are the cases. Needs `classes`."""
    where: str | None = None
    """SQL condition over the volume table of the index."""
    classes: dict[str, Said | tuple[Said, ...]] | None = None
    """Class -> its values in label maps, or the names of its segments (any case, `*` and `?` stand for others) or their numbers, such as
    `{lesion: 255}` or `{liver: [Liver, hepar*], tumour: GTV}`. Classes count from 1 in this order; `background` and `ignore` are no
    classes. Segments that no class names are left out; a value that none names is an error."""
    label_overlaps: Overlaps = "refuse"
    """Voxels of two segments of different classes: refuse them, or take the class that `classes` names later."""
    resample_labels: bool = False
    """Put labels of another grid onto their image's, each voxel by the nearest one of the label; false: they are an error. A label map
    whose voxels are the image's in another order or direction is turned exactly in any case."""
    label_values: dict[int, int | Literal["ignore"]] | None = None
    """Value in the label files -> class that is trained, such as `{0: 0, 63: 1, 126: 2, 255: ignore}`: renumbers, merges (two values, one
    class), drops (class 0) or ignores; 0 is the background unless named. Null: each value is its class, and nnU-Net's label "ignore" is
    ignored. Predictions have the values of the files."""
    splits: str | None = None
    """JSON file: split name -> list of case names, or nnU-Net's list of folds."""
    split: str = "train"
    """The split to train on."""
    fold: int | None = Field(default=None, ge=0)
    """Fold of a datalist or of nnU-Net's splits that is kept for validation."""
    labelled: int | None = Field(default=None, ge=1)
    """Train on the first N cases of a seeded order, so that 8 labelled cases are among the 16 of a larger run."""
    labelled_seed: Seed = 0
    """Seed of that order."""
    validation: float = Field(default=0.2, ge=0, lt=1)
    """Share of the patients kept for validation where neither splits nor fold say which."""
    patient: str | None = None
    """Regular expression whose group is the patient in a case's name, such as `(p[0-9]+)_visit`; null: as the list of cases says, or
    names of known forms (BIDS, patient001_..., TCGA, BraTS), else each case counts as a patient."""
    patients: str | None = None
    """CSV file with the columns case and patient, in place of `patient`."""
    modality: str | tuple[str, ...] | None = None
    """DICOM modality of the images, such as CT or MR, for the image preparation, or one for each channel; null: what dataset.json says,
    else that of the pretraining's images, else MR, and unknown of pictures."""
    windows: dict[str, tuple[tuple[float, float], ...]] = Field(default_factory=dict)
    """Intensity windows by modality, such as `{CT: [[-1000, 200], [-160, 240]]}`: each becomes a channel of its own, as in a store. A
    pretrained network that was shown windows is shown the same without it."""
    spacing: float | tuple[float, float, float] | None = None
    """Resample images and labels to this spacing in mm; null: the pretrained network's, or each image's own."""
    foreground: float = Field(default=0.75, ge=0, le=1)
    """Share of the crops that are placed around a labelled voxel, each class alike; the others lie anywhere."""

    @model_validator(mode="before")
    @classmethod
    def _labels_by_name_are_classes(cls, values: Any) -> Any:
        """`labels: {liver: 1}` beside cases that bring their own labels names classes, as whoever writes it means."""
        if not isinstance(values, Mapping) or not isinstance(values.get("labels"), Mapping):
            return values
        if values.get("images") is not None:
            raise ValueError("labels names the folder of the labels of images: name the classes by classes")
        if values.get("classes") is not None:
            raise ValueError("labels as a mapping is read as classes, and there are classes too: leave one out")
        return {**values, "labels": None, "classes": values["labels"]}

    @model_validator(mode="after")
    def _one_form(self) -> LabelledOptions:
        if sum(form is not None for form in (self.dataset, self.images, self.index)) != 1:
            raise ValueError("give one of dataset, images with labels, and index")
        if self.fold is not None and self.dataset is None and self.splits is None:
            raise ValueError("fold is one of a dataset or of splits, and there are none: give splits, or leave fold out")
        if self.where is not None and self.index is None:
            raise ValueError("where chooses volumes of an index: give index, or leave where out")
        if self.images is None and self.labels is not None:
            raise ValueError("labels is a folder beside images alone: name the classes, such as classes: {liver: [Liver, hepar]}")
        return self

    @model_validator(mode="after")
    def _classes_are_told_once(self) -> LabelledOptions:
        if self.label_values is not None:
            check_given(self.label_values)
        if self.label_values is not None and self.classes is not None:
            raise ValueError("give classes or label_values, not both")
        if self.named is None and self.index is not None:
            raise ValueError("an index has named segments: say which become which class, such as classes: {liver: [Liver, hepar]}")
        return self

    @property
    def named(self) -> Classes | None:
        """Which values and segments are which class, where it is said by names; raises `ValueError`."""
        return None if self.classes is None else replace(check_named(self.classes), overlaps=self.label_overlaps)

    @model_validator(mode="after")
    def _spacing_makes_crops_physical(self) -> LabelledOptions:
        if self.size_mm is not None:
            raise ValueError("labelled volumes are predicted whole, and so are resampled whole: give spacing instead of size_mm")
        return self

    @model_validator(mode="after")
    def _slices_are_no_channels(self) -> LabelledOptions:
        if self.slab > 1:
            raise ValueError("slab: volumes are predicted slice by slice, so a labelled training takes one slice at a time: leave slab out")
        return self

    @model_validator(mode="after")
    def _windows_are_some(self) -> LabelledOptions:
        check_windows(self.windows)
        return self

    @model_validator(mode="after")
    def _patients_are_told_once(self) -> LabelledOptions:
        if self.patient is not None and self.patients is not None:
            raise ValueError("give patient or patients, not both")
        if self.patient is not None:
            check_pattern(self.patient)
        return self
