"""What a network saw: the kinds of volumes of its store, so that others can be prepared as one of them, or be told from them.

A checkpoint holds them beside the preparation. The rules alone do not say which of them was followed: CT is prepared by a window, MR
by its own mean and deviation, and a network that saw one of them knows nothing of the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medssl.archive.nifti.modality import checked_modality
from medssl.errors import ConfigError, DataError
from medssl.volumes.preparation import Channel, Preparation, Statistics
from medssl.volumes.store.reading import Store
from medssl.volumes.store.rows import statistics_of_row

RESCALED = 0.05
"""An image whose values span less than this share of the narrowest one that was seen is in another unit."""


@dataclass(frozen=True)
class Kind:
    """Volumes with the same channels."""

    channels: tuple[Channel, ...]
    volumes: int
    minimum: tuple[float, ...] = ()
    """Of each channel: the highest of the volumes' least values."""
    span: tuple[float, ...] = ()
    """Of each channel: the narrowest of the volumes' ranges, between the percentiles 0.5 and 99.5 of the foreground."""

    def __str__(self) -> str:
        named = (f"{one.name} ({one.modality})" if one.name != one.modality else one.modality for one in self.channels)
        return " + ".join(named)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Of its channels."""
        return tuple(channel.modality for channel in self.channels)

    def is_named(self, names: Sequence[str]) -> bool:
        """Whether `names`, one or one a channel, are its modalities or the names of its channels."""
        each = [*names] * len(self.channels) if len(names) == 1 else names
        if len(each) != len(self.channels):
            return False
        return all(name.upper() in (one.modality.upper(), one.name.upper()) for name, one in zip(each, self.channels, strict=True))

    def check(self, statistics: Sequence[Statistics], preparation: Preparation, what: str) -> None:
        """Raise `DataError` where raw values are prepared by a window and are not in the unit of those that were seen."""
        for place, (channel, numbers) in enumerate(zip(self.channels, statistics, strict=True)):
            if not self.span or preparation.rule(channel.modality, channel.name).kind != "window":
                continue
            narrow = numbers.high - numbers.low < RESCALED * self.span[place]
            if narrow or (numbers.minimum >= 0 and self.minimum[place] < 0):
                raise DataError(
                    f"the values of {what} lie between {numbers.low:.4g} and {numbers.high:.4g} (least {numbers.minimum:.4g}), in another "
                    f"unit than the {channel.modality} that the network learned on: there a volume reaches down to "
                    f"{self.minimum[place]:.4g} or less and spans {self.span[place]:.4g} or more. Give the image as it is stored, its "
                    "rescale slope and intercept applied (HU in CT), before any other intensity transform."
                )


def kinds_of(store: Store) -> tuple[Kind, ...]:
    """The kinds of a store's volumes, the most frequent first."""
    names, modalities, arrays = (store.column(name) for name in ("channels", "modalities", "arrays"))
    numbers = store.column("statistics")
    channels = [tuple(map(Channel, *row)) for row in zip(names, modalities, arrays, strict=True)]
    least: dict[tuple[Channel, ...], tuple[float, ...]] = {}
    narrowest: dict[tuple[Channel, ...], tuple[float, ...]] = {}
    for kind, row in zip(channels, numbers, strict=True):
        every = statistics_of_row(row)
        minimum, span = tuple(one.minimum for one in every), tuple(one.high - one.low for one in every)
        least[kind] = tuple(map(max, least.get(kind, minimum), minimum))
        narrowest[kind] = tuple(map(min, narrowest.get(kind, span), span))
    return tuple(Kind(kind, count, least[kind], narrowest[kind]) for kind, count in Counter(channels).most_common())


def kinds_document(kinds: Sequence[Kind]) -> list[dict[str, Any]]:
    """As a checkpoint's state holds them."""
    return [asdict(kind) for kind in kinds]


def kinds_seen(state: Mapping[str, Any]) -> tuple[Kind, ...]:
    """The kinds of a checkpoint's state; () where it does not say."""
    return tuple(
        Kind(tuple(Channel(**one) for one in kind["channels"]), kind["volumes"], tuple(kind["minimum"]), tuple(kind["span"]))
        for kind in state.get("kinds") or ()
    )


def choose_kind(kinds: Sequence[Kind], preparation: Preparation, modality: str | Sequence[str] | None, origin: str, say: str) -> Kind:
    """The kind that is meant; without a name the only one, or any of several that are prepared alike.

    Raises `ConfigError` where `kinds` that `origin` saw leave it open, and where there is none of that name; `say` is how to name one.
    """
    names = [modality] if isinstance(modality, str) else list(modality or ())
    found = [kind for kind in kinds if not names or kind.is_named(names)]
    if not found:
        for name in names:
            checked_modality(name, [one.name for kind in kinds for one in kind.channels])
        raise ConfigError(
            f"{origin} saw {_listed(kinds)} and no {' + '.join(names)}: it does not say how that is to be prepared. "
            "Name one of those, or prepare these images by transforms of your own."
        )
    if len({_rules(kind, preparation) for kind in found}) > 1:
        raise ConfigError(f"{origin} saw several kinds of images, which are prepared differently: {_listed(found)}. Name yours: {say}")
    return found[0]


def _rules(kind: Kind, preparation: Preparation) -> tuple[tuple[str, int], ...]:
    return tuple((preparation.rule(one.modality, one.name).model_dump_json(), one.array) for one in kind.channels)


def _listed(kinds: Sequence[Kind]) -> str:
    return ", ".join(f"{kind} ({kind.volumes} volumes)" for kind in kinds)
