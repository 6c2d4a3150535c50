"""What a network saw: the kinds of volumes of its store, so that others can be prepared as one of them, or be told from them.

A checkpoint holds them beside the preparation. The rules alone do not say which of them was followed: CT is prepared by a window, MR
by its own mean and deviation, and a network that saw one of them knows nothing of the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from medssl.archive.nifti.modality import UNKNOWN, checked_modality
from medssl.errors import ConfigError, DataError
from medssl.volumes.preparation import Channel, IntensityRule, Preparation, Statistics, statistics
from medssl.volumes.store.reading import Store
from medssl.volumes.store.rows import statistics_of_row
from medssl.volumes.store.values import Doubts, Values, doubtful, unlike

ENOUGH = 8
"""Volumes that have to be seen before one whose values lie elsewhere is doubtful."""


@dataclass(frozen=True)
class Kind:
    """Volumes with the same channels."""

    channels: tuple[Channel, ...]
    volumes: int
    values: tuple[Values, ...] = ()
    """Of each channel; () where nobody knows."""

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


@dataclass(frozen=True)
class Seen:
    """What a network saw, for those who bring it other images."""

    kinds: tuple[Kind, ...]
    preparation: Preparation
    """What prepared them."""
    told: Preparation | None = None
    """What prepares the others to look as the kinds do, where these were stored as transforms of a user's own had made them."""

    def check(self, channels: Sequence[Channel], statistics: Sequence[Statistics], what: str) -> str | None:
        """Raise `DataError` where raw values are plainly of another kind than those that were seen; returns a doubt, if there is one.

        Where it is `told` what prepares them, the values are those that are shown.
        """
        doubts = [self._doubt(channel, numbers, what) for channel, numbers in zip(channels, statistics, strict=True)]
        return next((doubt for doubt in doubts if doubt is not None), None)

    def check_store(self, store: Store, called: Mapping[str, str]) -> None:
        """The same of every volume of a store; `called` says what its user calls one. Several are one error, and doubts one warning."""
        errors, doubts = [], []
        for place, (volume, channels, numbers) in enumerate(_volumes_of(store)):
            try:
                numbers = numbers if self.told is None else _shown(self.told, store.read_whole(place), channels, numbers)
                doubts.append(self.check(channels, numbers, called.get(volume, f"volume {volume}")))
            except DataError as error:
                errors.append(error)
        if len(errors) > 1:
            raise DataError(f"{len(errors)} of {len(doubts) + len(errors)} are not as the network saw its images, such as: {errors[0]}")
        if errors:
            raise errors[0]
        Doubts().say(next((doubt for doubt in doubts if doubt is not None), None))

    def check_modalities(self, channels: Sequence[Channel], what: str, origin: str, way: str) -> None:
        """Raise `ConfigError` where a channel is of a modality that no volume was of; `way` is how to take it all the same."""
        seen = {one.modality.upper() for kind in self.kinds for one in kind.channels}
        unseen = {one.modality for one in channels if one.modality.upper() not in (*seen, UNKNOWN.upper())}
        if seen and UNKNOWN.upper() not in seen and unseen:
            raise ConfigError(
                f"{what} are {', '.join(sorted(unseen))}, and {origin} saw {_listed(self.kinds)}: its network knows nothing of others. "
                f"Give such images, or say that you mean it: {way}."
            )

    def _doubt(self, channel: Channel, numbers: Statistics, what: str) -> str | None:
        near = self._nearest(channel)
        alike, seen = near[0][0] if near else channel, [values for _, values, _ in near]
        rule = self.preparation.rule(alike.modality, alike.name)
        plainly = unlike(numbers, seen, rule)
        enough = rule.kind == "raw" and all(volumes >= ENOUGH for _, _, volumes in near)
        if not plainly and not (enough and doubtful(numbers, seen)):
            return None
        found = f"the values of {what} lie between {numbers.low:.4g} and {numbers.high:.4g} (least {numbers.minimum:.4g})"
        images = "images" if alike.modality == UNKNOWN else alike.modality
        there = f"the {images} that the network learned on: there they lie {seen[0]}"
        if plainly and rule.kind in ("window", "raw"):
            raise DataError(f"{found}, in another unit than {there}. {self._remedy(rule)}")
        if rule.kind == "raw":
            return f"{found}, perhaps in another unit than {there}. {self._remedy(rule)}"
        return (
            f"{found}, and seem to be normalised already or of another kind, unlike {there}. They are normalised here: give images as "
            "they are stored. Further ones like it are not told."
        )

    def _nearest(self, channel: Channel) -> list[tuple[Channel, Values, int]]:
        """The channels that were seen which are most like this one, by name or modality, their values and volumes."""
        every = [(one, values, kind.volumes) for kind in self.kinds for one, values in zip(kind.channels, kind.values, strict=False)]
        same = [seen for seen in every if _key(seen[0]) == _key(channel)]
        alike = [seen for seen in every if seen[0].modality.upper() == channel.modality.upper()]
        return same or alike or [seen for seen in every if UNKNOWN in (seen[0].modality, channel.modality)]

    def _remedy(self, rule: IntensityRule) -> str:
        if rule.kind == "window":
            return (
                "Give the image as it is stored, its rescale slope and intercept applied (HU in CT), before any other intensity transform."
            )
        if self.told is not None:
            return "Say another preparation, one that makes the same of these."
        return (
            "Those were stored as transforms had made them: put the same transforms before (NormalizeIntensity, ScaleIntensityRange, ...), "
            "or say by preparation what makes the same of these."
        )


def are_shown_raw(kinds: Sequence[Kind], preparation: Preparation) -> bool:
    """Whether a network saw values as they were stored: how files become like them the preparation does not say."""
    return bool(kinds) and all(preparation.rule(one.modality, one.name).kind == "raw" for kind in kinds for one in kind.channels)


def _shown(
    preparation: Preparation, arrays: NDArray[Any], channels: Sequence[Channel], numbers: Sequence[Statistics]
) -> tuple[Statistics, ...]:
    """Statistics of what a network sees."""
    pairs = zip(channels, numbers, strict=True)
    return tuple(statistics(preparation.apply(arrays[one.array], number, one.modality, one.name)) for one, number in pairs)


def _key(channel: Channel) -> tuple[str, str]:
    return channel.name, channel.modality.upper()


def kinds_of(store: Store) -> tuple[Kind, ...]:
    """The kinds of a store's volumes, the most frequent first."""
    volumes: dict[tuple[Channel, ...], list[tuple[Statistics, ...]]] = defaultdict(list)
    for _, channels, numbers in _volumes_of(store):
        volumes[channels].append(numbers)
    found = [Kind(channels, len(rows), tuple(map(Values.of, zip(*rows, strict=True)))) for channels, rows in volumes.items()]
    return tuple(sorted(found, key=lambda kind: -kind.volumes))


def _volumes_of(store: Store) -> Iterator[tuple[str, tuple[Channel, ...], tuple[Statistics, ...]]]:
    """Name, channels and their statistics of each volume."""
    columns = (store.column(name) for name in ("volume", "channels", "modalities", "arrays", "statistics"))
    for volume, names, modalities, arrays, numbers in zip(*columns, strict=True):
        yield volume, tuple(map(Channel, names, modalities, arrays)), statistics_of_row(numbers)


def kinds_document(kinds: Sequence[Kind]) -> list[dict[str, Any]]:
    """As a checkpoint's state holds them."""
    return [asdict(kind) for kind in kinds]


def kinds_seen(state: Mapping[str, Any]) -> tuple[Kind, ...]:
    """The kinds of a checkpoint's state; () where it does not say."""
    return tuple(
        Kind(
            tuple(Channel(**one) for one in kind["channels"]),
            kind["volumes"],
            tuple(Values(**{name: tuple(pair) for name, pair in one.items()}) for one in kind["values"]),
        )
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
