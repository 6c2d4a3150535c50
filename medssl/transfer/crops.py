"""Unlabelled crops beside labelled ones, as one batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

from medssl.contracts import Crops
from medssl.errors import ConfigError
from medssl.volumes import CropLoader, Seen, Store, kinds_of


class Beside:
    """Iterates over (step, micro, `Crops`): the labelled crops of a micro batch first, then unlabelled ones, whose labels are -1.

    The unlabelled crops' places in the global batch (`Crops.index`) follow those of all labelled ones, `first` in number.
    """

    def __init__(self, labelled: CropLoader, unlabelled: CropLoader, first: int) -> None:
        self._labelled, self._unlabelled, self._first = labelled, unlabelled, first
        self._stack = ExitStack()

    def __iter__(self) -> Iterator[tuple[int, int, Crops]]:
        return self

    def __next__(self) -> tuple[int, int, Crops]:
        step, micro, labelled = next(self._labelled)
        _, _, others = next(self._unlabelled)
        others = replace(others, index=others.index + self._first, channels=labelled.channels)
        return step, micro, Crops.join([labelled, others])

    def __enter__(self) -> Beside:
        self._stack.enter_context(self._labelled)
        self._stack.enter_context(self._unlabelled)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()


def check_unlabelled(store: Store, labelled: Store) -> None:
    """Raise `ConfigError` where unlabelled volumes would look otherwise to the network than the labelled ones, `DataError` where their
    values are in another unit."""
    pairs = {
        "channels": (len(store.channels), len(labelled.channels)),
        "spacing in mm": (store.manifest.spacing, labelled.manifest.spacing),
        "preparation": (store.preparation, labelled.preparation),
    }
    for what, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise ConfigError(
                f"the unlabelled volumes of {store.folder} have another {what} than the labelled ones: {theirs} and {ours}. "
                "Make the store as the labelled images are prepared, or set data.spacing and preparation as the store's."
            )
    Seen(kinds_of(labelled), labelled.preparation).check_store(store, {})
