"""What `state.json` of a checkpoint may hold: it comes from anywhere, so everything in it is checked before it is used."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Annotated, Any

import xxhash
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from medssl.config import check, shown
from medssl.errors import RESUME, CheckpointError, ConfigError
from medssl.faults import fault, is_fault
from medssl.files import is_plain_name, open_regular

FORMAT = "medssl-checkpoint"
VERSION = 3
"""1: heads and terms by class name, one line of preparation a volume, and no word of what a task made the network take. 2: of each
kind's values only the highest minimum and the narrowest span."""
STATE = "state.json"
BLANK = "0" * 16
TENSORS = ".safetensors"
MOST_BYTES = 2**24
MOST_LEVELS = 50
_BEGIN = b'{\n "checksum": "'

Checksum = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Channels = Annotated[int, Field(ge=1, le=10_000)]
Place = Annotated[int, Field(ge=0, le=10_000)]
Text = Annotated[str, Field(max_length=4096)]
Spacing = Annotated[list[Annotated[float, Field(ge=0.01, le=1000)]], Field(min_length=3, max_length=3)]
LabelValue = Annotated[str, StringConstraints(pattern=r"^-?[0-9]{1,9}$")]


class UnreadableCheckpoint(CheckpointError):
    """A checkpoint that the system does not let this process read: nothing is known of what it holds."""


class _Best(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    dice: float
    step: Count


class _Change(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    step: Count
    key: Text
    before: Any
    now: Any


class _Channel(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    name: Text
    modality: Text
    array: Place = 0


_Range = Annotated[list[float], Field(min_length=2, max_length=2)]


class _Values(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    minimum: _Range
    low: _Range
    high: _Range
    span: _Range
    mean: _Range
    std: _Range


class _Kind(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    channels: Annotated[list[_Channel], Field(min_length=1)]
    volumes: Count
    values: list[_Values]

    @model_validator(mode="after")
    def _one_each(self) -> _Kind:
        if len(self.values) != len(self.channels):
            raise ValueError(f"{len(self.channels)} channels have {len(self.values)} values")
        return self


class _State(BaseModel):
    """Keys that are read somewhere; whoever needs one that is not there says so (`Checkpoint.need`)."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    step: Count
    files: dict[str, Checksum]
    aliases: dict[str, dict[str, str]]
    kind: Text = ""
    network: dict[str, Any] = {}
    head: list[str] = []
    data: Text = ""
    preparation: dict[str, Any] = {}
    spacing: Spacing | None = None
    channels: Channels = 1
    channel_names: list[Text] = []
    modalities: list[Text] = []
    arrays: list[Place] = []
    kinds: list[_Kind] = []
    size: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=2, max_length=3)] = []
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0
    label_values: dict[LabelValue, Annotated[int, Field(ge=-1, lt=2**15)]] | None = None
    citations: dict[str, Text] = {}
    lineage: list[dict[str, Any]] = []
    versions: dict[str, Text] = {}
    compute: dict[str, int | str] = {}
    changed: list[_Change] = []
    skipped: Count = 0
    skipping: Count = 0
    best: _Best | None = None

    @model_validator(mode="after")
    def _channels_agree(self) -> _State:
        said = {"channels": self.channels} | {
            key: len(getattr(self, key)) for key in ("channel_names", "modalities", "arrays") if key in self.model_fields_set
        }
        if "channels" in self.model_fields_set and len(set(said.values())) > 1:
            raise ValueError(f"the channels disagree: {', '.join(f'{count} {key}' for key, count in said.items())}")
        return self


def read_state(file: Path) -> dict[str, Any]:
    """The content of a `state.json`, its checksum and every key that is known verified; raises `CheckpointError`."""
    content = read_whole(file, MOST_BYTES)
    said = content[len(_BEGIN) : len(_BEGIN) + len(BLANK)]
    if not content.startswith(_BEGIN):
        raise damaged(file, "its first lines are not those of a medssl checkpoint")
    if checksum_of(content.replace(said, BLANK.encode(), 1)).encode() != said:
        raise damaged(file, "its checksum does not fit its content")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged(file, f"it is no JSON that can be read ({str(error)[:100]})") from error
    _check_format(file, document)
    if _levels(document) > MOST_LEVELS:
        raise damaged(file, f"it is nested in more than {MOST_LEVELS} levels")
    try:
        check(_State, document, "it")
    except ConfigError as error:
        raise damaged(file, str(error).removeprefix("it: ")) from error
    odd = [name for name in document["files"] if not (is_plain_name(name) and name.endswith(TENSORS))]
    if odd:
        raise damaged(file, f"it calls a file {shown(odd[0])}")
    return {key: value for key, value in document.items() if key not in ("checksum", "format", "version")}


def _check_format(file: Path, document: dict[str, Any]) -> None:
    form, number = document.get("format"), document.get("version")
    if form != FORMAT or isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise damaged(file, f"it says that it is of format {shown(form)}, version {shown(number)}")
    if number > VERSION:
        raise CheckpointError(f"{file} has format version {shown(number)}, this medssl reads up to {VERSION}. Update medssl.")
    if number < VERSION:
        versions = document.get("versions")
        writer = versions.get("medssl", "unknown") if isinstance(versions, dict) else "unknown"
        raise CheckpointError(
            f"{file} has format version {number}, of an earlier medssl ({str(writer)[:20]}): "
            "it does not say all that this one needs to know of channels, preparation and terms, so it is not read in part. "
            "Train again with this medssl, or go on with the earlier one."
        )


def _levels(value: Any) -> int:
    """How deep mappings and lists are nested."""
    depth, level = 0, [value]
    while level:
        inner = [one for item in level if isinstance(item, dict | list) for one in (item.values() if isinstance(item, dict) else item)]
        depth, level = depth + 1, inner
    return depth


def read_whole(file: Path, most: int | None = None) -> bytes:
    """The bytes of a file of a checkpoint; `CheckpointError` where it is missing, no regular file or larger than `most`."""
    try:
        with open_regular(file) as stream:
            content = stream.read() if most is None else stream.read(most + 1)
    except FileNotFoundError as error:
        raise damaged(file, "the file is missing") from error
    except Exception as error:
        if is_fault(error) and getattr(error, "errno", None) == errno.EIO:
            raise damaged(file, "the disk does not give its content") from error
        if is_fault(error):
            raise UnreadableCheckpoint(fault(error, f"the checkpoint's file {file} cannot be read")) from error
        if isinstance(error, OSError):
            raise damaged(file, str(error)) from error
        raise
    if most is not None and len(content) > most:
        raise damaged(file, f"it is larger than {most} bytes")
    return content


def checksum_of(content: bytes) -> str:
    """xxh3 (64 bit) as 16 hexadecimal digits."""
    return str(xxhash.xxh3_64_hexdigest(content))


def damaged(file: Path, what: str) -> CheckpointError:
    """The error of a file that is not what was written."""
    return CheckpointError(
        f"{file} is damaged: {what}. Delete the folder {file.parent.name}; {RESUME} then goes on from the one before, "
        "or copy the checkpoint again from where it came."
    )
