"""Patients who have withdrawn: out of the index, the stores and what was written of their volumes; and which runs saw them."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl.archive.index.forgetting import forget_in_index
from medssl.config import load_config
from medssl.errors import ConfigError, MissingInput, UsageError
from medssl.faults import faults_as
from medssl.files import holds_file, open_regular, read_json
from medssl.train.checkpoint import list_checkpoints
from medssl.train.run_folder import CONFIG
from medssl.train.setup import store_fingerprint
from medssl.volumes import Store
from medssl.volumes.store.forgetting import forget_in_store


@dataclass(frozen=True)
class Forgetting:
    """What was removed, in numbers and pseudonyms."""

    patients: int
    """Of the list, of whom the index held something."""
    unknown: int
    """Of whom it held nothing; they will not be indexed either."""
    files: int
    """Rows of files that left the index."""
    volumes: tuple[str, ...]
    """That left the index."""
    stores: dict[str, int]
    """Store -> volumes that left it."""
    removed: int
    """Files and folders of these volumes that left the folders given."""
    runs: dict[str, str]
    """Run -> why it is known to have seen them. Their weights stay: what they learned cannot be taken out of them."""

    def document(self) -> dict[str, Any]:
        """The JSON of `medssl forget`."""
        return vars(self) | {"volumes": list(self.volumes)}


def forget(
    patients: str | Path | Iterable[str],
    index: str | Path,
    *,
    stores: Sequence[str | Path] = (),
    folders: Sequence[str | Path] = (),
    runs: Sequence[str | Path] = (),
) -> Forgetting:
    """Remove patients, by their PatientIDs or a file with one a line, from an index and the stores made of it.

    `folders` hold files that are called as volumes (`VOLUME.nii.gz`, label maps); `runs` are asked whether they saw one of the stores
    as it was. Nothing of the archive is changed; later builds of the index pass over the patients. Raises `UsageError`,
    `MissingInput`, `ArchiveError` or `StoreError`; what is interrupted goes on when it is called again.
    """
    wanted = _listed(Path(patients)) if isinstance(patients, str | Path) else [one for one in patients if one]
    if not wanted:
        raise UsageError("the list names no patient. Put one PatientID on each line.")
    seen = {str(store): store_fingerprint(Store(store)) for store in stores}
    found = forget_in_index(index, wanted)
    left = {str(store): forget_in_store(store, found.patients) for store in stores}
    concerned = {store: seen[store] for store, gone in left.items() if gone}
    names = found.volumes | {volume for gone in left.values() for volume in gone}
    return Forgetting(
        patients=len(set(wanted)) - found.unknown,
        unknown=found.unknown,
        files=found.files,
        volumes=tuple(sorted(found.volumes)),
        stores={store: len(gone) for store, gone in left.items()},
        removed=sum(_removed(Path(folder), names) for folder in folders),
        runs={str(run): why for run in runs if (why := _why_seen(Path(run), concerned))},
    )


def _listed(file: Path) -> list[str]:
    with faults_as(UsageError, f"the list {file} cannot be read"):
        if not holds_file(file):
            raise UsageError(f"there is no list at {file}. Give a file with one PatientID on each line.")
        with open_regular(file) as stream:
            lines = stream.read().decode("utf-8-sig", "surrogateescape").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _removed(folder: Path, volumes: Collection[str]) -> int:
    """Files and folders below it whose name up to the first dot is a volume's."""
    with faults_as(UsageError, f"{folder} cannot be changed"):
        gone = [path for path in sorted(folder.rglob("*")) if path.name.partition(".")[0] in volumes]
        for path in gone:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return len(gone)


def _why_seen(run: Path, stores: dict[str, str]) -> str:
    """Why a run saw one of the stores with the patients in it; empty where nothing says so."""
    for checkpoint in reversed(list_checkpoints(run)):
        try:
            data = str(read_json(checkpoint / "state.json").get("data"))
        except (OSError, ValueError, AttributeError):
            continue
        for store, fingerprint in stores.items():
            if fingerprint in data.split("-"):
                return f"its checkpoints say that it was trained on {store} as it was"
    try:
        told = load_config(run / CONFIG).get("data")
    except (ConfigError, MissingInput):
        return ""
    named = told.get("store") if isinstance(told, dict) else None
    same = [store for store in stores if isinstance(named, str) and Path(named).absolute() == Path(store).absolute()]
    return f"it names {same[0]} as its store, which may have held other volumes then" if same else ""
