"""What engines call the volumes of a store: whose each one is, and which one a name or the beginning of an id means."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from dmthin.errors import InUse, InvalidValue, NotFound
from dmthin.store.state.model import Kind, State, Volume

_ID = re.compile(r"(?<![0-9a-f])([0-9a-f]{12})[0-9a-f]{52}(?![0-9a-f])")
_START_OF_ID = re.compile(r"[0-9a-f]{1,64}|[0-9a-z]{1,25}")
_SHOWN = 5
_DIGITS = 12
"""Digits of an id that are taken for the whole: as many as docker and the command's tables show."""


@dataclass(frozen=True, slots=True)
class Owner:
    """What an engine has of a volume.

    `what` is the end of a sentence about it: `the root of dockerd's container "web"`. `name` is how the engine shows
    it, empty if it has no name; `id` is the engine's id, empty for a key that is no id. `remedy` is what to do instead
    of a change by an administrator. `names` mean this volume, and so does the beginning of one of `ids` that no other
    volume's begins with.
    """

    engine: str
    what: str
    remedy: str
    name: str = ""
    id: str = ""
    names: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


class Owners:
    """The owners of a store's volumes, by the name of the volume. A volume without one is an administrator's."""

    def __init__(self, found: Mapping[str, Owner]) -> None:
        self._found = found

    def __bool__(self) -> bool:
        return bool(self._found)

    def of(self, volume: str) -> Owner | None:
        """Return the owner of the volume with that name, None if no engine has it."""
        return self._found.get(volume)

    def require_none(self, volume: str) -> None:
        """Raise InUse, which says whose it is, if an engine has the volume with that name."""
        if owner := self.of(volume):
            raise InUse(f"volume {short(volume)} is {owner.what}", hint=f"{owner.remedy}, or give --force")

    def require_none_of(self, volumes: Iterable[Volume]) -> None:
        """Raise InUse, which names one of them, if an engine has any of the volumes."""
        owned = [(volume, owner) for volume in volumes if (owner := self.of(volume.name))]
        if owned:
            # A container says more than the layers below it.
            volume, owner = max(owned, key=lambda pair: (pair[0].kind is Kind.CONTAINER, bool(pair[1].names)))
            engines = " and ".join(sorted({owner.engine for _, owner in owned}))
            count = f"{len(owned)} volumes belong" if len(owned) > 1 else "a volume belongs"
            raise InUse(
                f"{count} to {engines}: {short(volume.name)} is {owner.what}",
                hint="remove its containers and images first, or give --force",
            )

    def meant(self, text: str, volumes: Iterable[Volume], *kinds: Kind, whole: bool = False) -> str:
        """Return the name of the volume that a user means: its own, an engine's, or the beginning of an id.

        A volume's own name goes first; then a full name or id of an engine, where a container goes before an image,
        as with docker inspect; then the beginning of an id. Return `text` itself if nothing matches. `kinds` limits
        what an engine's name can mean. Raise InvalidValue, which names the candidates, if it may be several; NotFound
        with `whole`, for the beginning of an id that has less than the 12 digits of a table.
        """
        there = [volume for volume in volumes if volume.state is not State.MAKING]
        if any(volume.name == text for volume in there):
            return text
        owned = [
            (volume, owner)
            for volume in there
            if (owner := self.of(volume.name)) and (not kinds or volume.kind in kinds)
        ]
        bare = text.removeprefix("sha256:")
        exact = [volume for volume, owner in owned if text in owner.names or bare in owner.ids]
        exact = [volume for volume in exact if volume.kind is Kind.CONTAINER] or exact
        begun = exact or [volume for volume, owner in owned if _begins(bare, owner) or short(volume.name) == text]
        if whole and begun and not exact and len(bare) < _DIGITS:
            raise NotFound(
                f"there is no {' or '.join(kinds) or 'volume'} {text!r}, only {' and '.join(self._described(begun))}",
                hint=f"with --force write the whole id, or {_DIGITS} digits of it",
            )
        if len(begun) > 1:
            raise InvalidValue(
                f"{text!r} may be {' or '.join(self._described(begun))}",
                hint="write more of the id, or the name of the volume",
            )
        return begun[0].name if begun else text

    def _described(self, volumes: list[Volume]) -> Iterator[str]:
        for volume in volumes[:_SHOWN]:
            owner = self.of(volume.name)
            yield short(volume.name) + (f" ({owner.name})" if owner and owner.name else "")
        if len(volumes) > _SHOWN:
            yield "others"


NO_OWNERS = Owners({})


def short(name: str) -> str:
    """Return a name with each id of 64 hexadecimal digits cut to 12, as docker shows ids."""
    return _ID.sub(r"\1", name)


def _begins(text: str, owner: Owner) -> bool:
    return bool(_START_OF_ID.fullmatch(text)) and any(known.startswith(text) for known in owner.ids)
