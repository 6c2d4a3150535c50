"""Label maps of new volumes: prepared as in the training, windowed, and put back on each input's own grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medssl.archive import Index, VolumeRecord, build_index, no_volume, without_previews, write_nifti
from medssl.archive.labels.writing import write_seg
from medssl.archive.nifti.modality import UNKNOWN
from medssl.archive.nifti.names import image_files, is_nifti_name, is_picture_name, stem
from medssl.archive.pictures.files import write_label_picture
from medssl.config import check
from medssl.errors import ArchiveError, CheckpointError, DataError, MedsslError, MissingInput, UsageError
from medssl.faults import faults_as
from medssl.files import as_paths, take_folder
from medssl.networks import NetworkSpec, as_spec, described_spec, stored_spec
from medssl.run import Run
from medssl.train.checkpoint import Checkpoint, find_checkpoint
from medssl.train.checkpoint_state import STATE
from medssl.train.device import choose_device, choose_dtype, fit_threads
from medssl.transfer.images import ImageForm, load_image, prepare_image
from medssl.transfer.segment import Windows
from medssl.volumes import ChannelOptions, LabelValues, Prepared, restore_labels
from medssl.volumes.cases import header
from medssl.volumes.cases.datalists import grouped_by_case
from medssl.volumes.ingest import Unusable, is_index
from medssl.volumes.ingest.channels import Group, grouped
from medssl.volumes.ingest.sources import load_group

FORMATS = ("nifti", "dicom-seg")


@dataclass(frozen=True)
class Segmenter:
    """A fine-tuned network with all that it takes to segment a volume."""

    network: nn.Module
    form: ImageForm
    windows: Windows
    device: torch.device
    values: LabelValues
    names: Mapping[int, str]
    """Class -> what it is called, for every class but the background."""

    def __call__(self, prepared: Prepared) -> NDArray[Any]:
        """(X, Y, Z) label map on the input's own grid, with the values of the labels it was trained on, uint8 where they fit."""
        return self.values.values_of(self.classes_in(prepared))

    def classes_in(self, prepared: Prepared) -> NDArray[Any]:
        """(X, Y, Z) classes on the input's own grid, uint8 where they fit."""
        inputs = torch.from_numpy(np.ascontiguousarray(prepared.array))[None].to(self.device)
        with torch.no_grad():
            labels = self.windows(inputs, self.network)[0].argmax(0).cpu().numpy()
        return restore_labels(labels.astype(np.uint8 if len(self.names) < 256 else np.int16), prepared)


@dataclass(frozen=True)
class _Input:
    name: str
    source: Path
    """The file or folder that was given, for messages."""
    prepare: Callable[[], Prepared]
    ending: Literal[".nii.gz", ".png"] = ".nii.gz"
    """Of its label map: a picture gets a picture."""
    original: tuple[Index, VolumeRecord] | None = None
    """The volume of an index that it is."""

    def file(self, format: str) -> str:
        """The name of its label map."""
        return self.name + (".dcm" if format == "dicom-seg" else self.ending)


@dataclass(frozen=True, eq=False)
class _Map:
    array: NDArray[Any]
    affine: NDArray[np.float64]


def predict(
    run_dir: str | Path | Run | Checkpoint,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    precision: str = "fp32",
    trusted: Sequence[str] = (),
    network: Any = None,
    format: str = "nifti",
    channels: ChannelOptions | Mapping[str, Any] | None = None,
    unseen_modality: bool = False,
) -> list[Path]:
    """Write a NIfTI label map `NAME.nii.gz` for each volume of `inputs` into `out`, on its own grid; returns the paths.

    A PNG, JPEG or TIFF gets a PNG `NAME.png` of its size, turned as the picture is seen.

    `format="dicom-seg"` writes a DICOM SEG `NAME.dcm` instead, which refers to the original images of DICOM inputs and has a segment a
    class, named as in the training's `data.classes`; it says whose it is, as the images do.

    Maps have the values of the label files that the run was trained on; of several values that were one class the smallest.

    `run_dir` is a fine-tuning run (its best checkpoint, else its newest) or one of its checkpoints. An input is a NIfTI file or a
    picture, a folder of them (named as they are; by case where all are nnU-Net's `CASE_0000`, `CASE_0001` with as many channels as the
    network was trained on), an index folder (named by its volumes), or a folder, zip or tar of DICOM (named by the volumes of an
    index made for this call). It calculates in fp32; `precision="bf16"`, or "auto" (bf16 on GPUs that have it), is faster there and
    may move borders by a voxel. A run's network is MONAI's, of an installed plugin, or of one of the modules `trusted`; one that no file
    can hold (made by Python code, or a network that existed) is handed over again as `network`.

    `channels` says, as in a store's configuration, which series of a study in DICOM become the channels of a network that reads
    several: in the order of the network's own names where the names are the same, else in that of the rule.

    Images of DICOM of a modality that the network never saw are refused; with `unseen_modality` they are prepared as the training's were.
    Images whose values are in another unit than the training's are refused either way.

    An input that is damaged, or not what the network was trained on, costs no other: at the end one `DataError` names each of them.

    Raises:
        MissingInput: an input, run or checkpoint is not there.
        DataError: inputs that could not be predicted; the label maps of all others are written.
        ConfigError: bf16 on a device without units for it.
        UsageError: two inputs of one name, or an output that would overwrite its input.
    """
    rule = channels if isinstance(channels, ChannelOptions) else check(ChannelOptions, dict(channels or {}), "channels")
    if format not in FORMATS:
        raise UsageError(f"label maps are written as {' or '.join(FORMATS)}, not as {format!r}.")
    segmenter = load_segmenter(run_dir, precision=precision, trusted=trusted, network=network)
    segmenter = replace(segmenter, form=replace(segmenter.form, unseen_modality=unseen_modality))
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. Give a folder for the label maps.")
    written: list[Path] = []
    left_out: list[MedsslError] = []
    with ExitStack() as stack:
        volumes: list[_Input] = []
        for path in as_paths(inputs):
            with _left_out(left_out):
                volumes += _volumes(Path(path), segmenter.form, rule, stack)
        if not volumes and not left_out:
            raise UsageError("there is nothing to predict. Give at least one input.")
        _refuse_same_names(volumes, folder, format)
        with faults_as(UsageError, f"the label maps cannot be written to {folder}"):
            if not folder.exists():
                take_folder(folder)
        for volume in volumes:
            with _left_out(left_out):
                file, done = folder / volume.file(format), f"{len(written)} of {len(volumes)} are written and good."
                with faults_as(UsageError, f"the label map {file} cannot be written", done):
                    written.append(_write_seg(volume, segmenter, file) if format == "dicom-seg" else _write(volume, segmenter, file))
    _raise_left_out(left_out, written, folder)
    return written


def _write(volume: _Input, segmenter: Segmenter, file: Path) -> Path:
    prepared = volume.prepare()
    label_map = _Map(segmenter(prepared), prepared.original_affine)
    return write_label_picture(label_map.array, file) if volume.ending == ".png" else write_nifti(label_map, file)


def _write_seg(volume: _Input, segmenter: Segmenter, file: Path) -> Path:
    if volume.original is None:
        raise DataError(
            f"{volume.source} is no DICOM, and a SEG refers to DICOM images. Give an index or a folder of DICOM, or write NIfTI."
        )
    return write_seg(*volume.original, segmenter.classes_in(volume.prepare()), segmenter.names, file)


@contextmanager
def _left_out(errors: list[MedsslError]) -> Iterator[None]:
    """Notes what is wrong with an input instead of ending with it; what is not there at all, or asked for wrongly, still ends."""
    try:
        yield
    except (DataError, ArchiveError) as error:
        errors.append(error)


def _raise_left_out(errors: Sequence[MedsslError], written: Sequence[Path], out: Path) -> None:
    if len(errors) == 1 and not written:
        raise errors[0]
    if errors:
        reasons = "\n".join(f"  {error}" for error in errors)
        count = f"{len(errors)} of {len(errors) + len(written)} inputs could not be predicted"
        raise DataError(f"{count}; the label maps of the others are in {out}.\n{reasons}")


def load_segmenter(
    run_dir: str | Path | Run | Checkpoint, precision: str = "fp32", trusted: Sequence[str] = (), network: Any = None
) -> Segmenter:
    """The network of a fine-tuning run or checkpoint, every tensor of it loaded, in evaluation mode; `network` as for training."""
    checkpoint = find_checkpoint(run_dir, series="best")
    if checkpoint.state.get("kind") != "finetune":
        raise CheckpointError(
            f"{checkpoint.path} is no fine-tuning: its network has no trained head. "
            f"Run medssl finetune --pretrained {checkpoint.path} first."
        )
    checkpoint.need("network", "size", "overlap", "preparation", "spacing", "channel_names", "modalities", "arrays")
    fit_threads()
    state, place = checkpoint.state, choose_device("auto")
    stored = described_spec(state["network"], f"the network in {checkpoint.path}")
    if network is None:
        spec = stored_spec(state["network"], f"the network in {checkpoint.path}", trusted)
    else:
        spec = as_spec(network).model_copy(update={"out_channels": stored.out_channels})
    _check_crop(spec, state["size"], checkpoint)
    built = spec.build(seed=0)
    _load_all(built, checkpoint)
    windows = Windows(tuple(state["size"]), state["overlap"], choose_dtype(precision, place))
    classes, values = int(spec.out_channels or 0), _values(checkpoint)
    if values.outputs is not None and classes > values.outputs:
        raise CheckpointError(
            f"the network in {checkpoint.path} has {classes} outputs and {values.said_by} names {values.outputs} classes: what the others "
            f"predict has no value in a label map. Fine-tune again with network.out_channels={values.outputs}."
        )
    called = state.get("label_names") or {}
    names = {number: str(called.get(str(number), f"class {number}")) for number in range(1, classes)}
    return Segmenter(built.to(place).eval(), ImageForm.of_document(state), windows, place, values, names)


def label_values_of_run(run_dir: str | Path | Run | Checkpoint) -> LabelValues:
    """Which class each value of the label files was in a fine-tuning run."""
    return _values(find_checkpoint(run_dir, series="best"))


def _values(checkpoint: Checkpoint) -> LabelValues:
    return LabelValues.of_document(checkpoint.state.get("label_values"))


def _load_all(network: nn.Module, checkpoint: Checkpoint) -> None:
    try:
        network.load_state_dict(checkpoint.tensors["network"])
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{checkpoint.path} does not fit its own network: {str(error)[:500]}. Was MONAI updated since it was written?"
        ) from error


def _check_crop(spec: NetworkSpec, size: Sequence[int], checkpoint: Checkpoint) -> None:
    if len(size) != spec.spatial_dims or not spec.out_channels:
        raise CheckpointError(
            f"{checkpoint.path / STATE} is damaged: windows of {len(size)} sides and {spec.out_channels} outputs do not fit a network of "
            f"{spec.spatial_dims} dimensions. Copy the checkpoint again from where it came."
        )


def _volumes(path: Path, form: ImageForm, rule: ChannelOptions, stack: ExitStack) -> list[_Input]:
    if not path.exists():
        raise MissingInput(f"there is no input at {path}. Give NIfTI files or pictures, or folders of them or of DICOM files.")
    if is_index(path):
        return _indexed(Index(path), form, rule, path)
    if path.is_file() and (is_nifti_name(path.name) or is_picture_name(path.name)):
        return [_case(stem(path), (path,), form)]
    files = image_files(path) if path.is_dir() else []
    if files:
        return [_case(name, images, form) for name, images in grouped_by_case(files, _files_a_case(files, form)).items()]
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="medssl-"))) / "index"
    build_index([path], folder)
    return _indexed(Index(folder), form, rule, path)


def _files_a_case(files: Sequence[Path], form: ImageForm) -> int:
    """As many as the network reads arrays, unless these lie in one file's fourth axis, as the first one that can be read says."""
    shape: tuple[int, ...] = ()
    for file in files:
        with suppress(DataError):
            shape, _ = header(file)
            break
    return _arrays(form) if len(shape) < 4 else 1


def _case(name: str, files: tuple[Path, ...], form: ImageForm) -> _Input:
    return _Input(name, files[0], lambda: load_image(files, form), ".png" if is_picture_name(files[0].name) else ".nii.gz")


def _indexed(index: Index, form: ImageForm, rule: ChannelOptions, path: Path) -> list[_Input]:
    records = without_previews(index.volumes())
    if not records:
        raise DataError(no_volume(index, path))
    groups = _groups(index, records, _ordered(rule, form), form)
    if not groups:
        raise DataError(f"no volume of {path} is one of the channels {', '.join(rule.series)}. Look at its volumes: medssl volumes INDEX")
    return [_from_index(index, group, form, path) for group in groups]


def _groups(index: Index, records: Sequence[VolumeRecord], rule: ChannelOptions, form: ImageForm) -> list[Group]:
    """What becomes the arrays of one input: by the rule, else as far as the network reads several, a fourth axis and numbered files."""
    if rule.series or rule.frames:
        return grouped(index, records, rule, None)
    images = [Group((record,)) for record in records if record.is_image]
    volumes = [record for record in records if not record.is_image]
    deep = [record for record in volumes if len(record.shape) == 4]
    flat = [record for record in volumes if len(record.shape) < 4]
    single = [Group((record,)) for record in flat] if _arrays(form) == 1 else grouped(index, flat, ChannelOptions(), None)
    return [*images, *single, *grouped(index, deep, ChannelOptions(fourth_axis=True), None)]


def _arrays(form: ImageForm) -> int:
    return 1 + max(channel.array for channel in form.channels)


def _ordered(rule: ChannelOptions, form: ImageForm) -> ChannelOptions:
    """The rule's series in the order of the network's arrays, where they have the same names."""
    names = [channel.name for channel in sorted(form.channels, key=lambda channel: channel.array)]
    if sorted(names) != sorted(rule.series):
        return rule
    return rule.model_copy(update={"series": {name: rule.series[name] for name in names}})


def _from_index(index: Index, group: Group, form: ImageForm, path: Path) -> _Input:
    record = group.records[0]
    name = f"volume {record.volume} of {path}"

    def prepare() -> Prepared:
        if group.reason is None:
            _check(group, form, name)
        try:
            array, affine = load_group(index, group, form.preparation)
        except Unusable as error:
            raise DataError(f"{name}: {error}.") from None
        return prepare_image(array, affine, form, name, bool(record.spacing))

    return _Input(record.volume, path, prepare, original=(index, record))


def _check(group: Group, form: ImageForm, name: str) -> None:
    """What the index says of a volume must be what the network reads."""
    record = group.records[0]
    if record.is_image:
        if record.frames > 1:
            raise DataError(f"{name} has {record.frames} frames over time. Give the frames as images of their own.")
        if record.kind != "picture":
            _check_modalities([record.modality] * _arrays(form), form, name)
        return
    found = [channel.modality for channel in group.channels(ChannelOptions(), None)]
    if len(found) != _arrays(form):
        known = ", ".join(channel.name for channel in form.channels)
        raise DataError(
            f"{name} has {len(found)} channel(s), the network reads {_arrays(form)} ({known}). "
            "Say by `channels: {series: ...}` in a file for --config which series of a study they are."
        )
    _check_modalities(found, form, name)


def _check_modalities(found: Sequence[str], form: ImageForm, name: str) -> None:
    """DICOM says its modality; one that the network never saw is refused."""
    if form.unseen_modality:
        return
    for channel in form.channels:
        modality = found[channel.array]
        if UNKNOWN not in (modality, channel.modality) and modality.upper() != channel.modality.upper():
            known = ", ".join(dict.fromkeys(one.modality for one in form.channels))
            raise DataError(
                f"{name} is {modality}, the network was fine-tuned on {known} images. Leave it out, give the folder of one series, or say "
                "that you mean it: unseen_modality=True, medssl predict --unseen-modality."
            )


def _refuse_same_names(volumes: Sequence[_Input], out: Path, format: str) -> None:
    first: dict[str, _Input] = {}
    for volume in volumes:
        other = first.setdefault(volume.name, volume)
        if other is not volume:
            raise UsageError(
                f"{other.source} and {volume.source} would both be written as {volume.file(format)}. Predict them into two folders."
            )
        if volume.source.resolve() == (out / volume.file(format)).resolve():
            raise UsageError(f"the label map of {volume.source} would overwrite it. Give another folder for the maps.")
