"""What a store says of itself as a whole: its version, and how its volumes were made and are prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, field_validator

from medssl.config import BaseOptions
from medssl.errors import MissingInput, StoreError
from medssl.faults import fault, faults_as, is_fault
from medssl.files import holds_file, read_json
from medssl.volumes.grid import as_spacing
from medssl.volumes.preparation import Preparation

VERSION = 3
MANIFEST = "store.json"
_OLDER = {1: "holds one channel a volume", 2: "does not keep what its volumes are called by their data"}
"""What a store of an older version is or lacks."""


class Manifest(BaseOptions):
    """What `store.json` says."""

    format: Literal["medssl-store"] = "medssl-store"
    """Marks the folder as a store."""
    version: int = VERSION
    """Version of the layout; a store of a newer one is refused."""
    axes: Literal["RAS"] = "RAS"
    """Where the array's axes point to."""
    axis: Literal["slice", "time"] | None = None
    """What the channels count, when they are slices of a slab or frames."""
    dimensions: Literal[2, 3] = 3
    """3: volumes; 2: images by themselves."""
    spacing: tuple[float, ...] | None = None
    """mm that every volume was resampled to; none: each keeps its own grid."""
    preparation: Preparation = Preparation()
    """Applied when a crop is read."""

    @field_validator("spacing")
    @classmethod
    def _possible(cls, spacing: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return as_spacing(spacing)


def read_manifest(folder: Path) -> Manifest:
    """The checked content of `store.json`; raises `MissingInput` or `StoreError`."""
    path = folder / MANIFEST
    with faults_as(StoreError, f"the store {folder} cannot be read"):
        if not holds_file(path):
            raise MissingInput(f"no store at {folder}. Make one with: medssl store SOURCE --out {folder}")
    try:
        content = read_json(path)
    except (ValueError, OSError) as error:
        if is_fault(error):
            raise StoreError(fault(error, f"{path} cannot be read")) from error
        raise StoreError(f"{path} cannot be read: {error}. Make the store again in an empty folder.") from error
    version = content.get("version") if isinstance(content, dict) else None
    if type(version) is not int or version < 1:
        raise StoreError(f"{path} cannot be read: it states no version of a store. Make the store again in an empty folder.")
    if content.get("format") != "medssl-store":
        kind = ascii(content.get("format"))[:80]
        raise StoreError(f"{path} is not a medssl store but {kind}. Give the folder that `medssl store --out` wrote.")
    if version > VERSION:
        raise StoreError(f"the store {folder} is of version {version}, this medssl reads up to {VERSION}. Install a newer medssl.")
    if version < VERSION:
        raise StoreError(
            f"the store {folder} is of version {version} and {_OLDER[version]}; this medssl reads version {VERSION}. "
            f"Make it again: {_remake(folder, content)}"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path} cannot be understood: {where}: {first['msg']}. Make the store again in an empty folder.") from error


def _remake(folder: Path, manifest: dict[str, Any]) -> str:
    """The command that made a store, as far as it can be known; what it was made from may lie beside it."""
    beside = folder.with_name(folder.name + ".index")
    stated = manifest.get("spacing")
    sides = {side for side in stated if isinstance(side, float)} if isinstance(stated, list) else set()
    spacing = f" --spacing {sides.pop()}" if len(sides) == 1 else ""
    return f"medssl store {beside if beside.is_dir() else 'SOURCE'} --out {folder}-v{VERSION}{spacing}"
