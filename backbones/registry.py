"""Families by name, lazily, and the family of a file.

Another package adds a family with an entry point of the group `beit3_bench.families` (see docs/extending.md).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from beit3_bench.backbones.family import Family
from beit3_bench.backbones.sources import Source
from beit3_bench.errors import BenchError
from beit3_bench.plugins import add_plugins
from beit3_bench.spelling import did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    from beit3_bench.backbones.abilities import Ability

ENTRY_POINT_GROUP = "beit3_bench.families"

BUILT_IN = {
    "beit3": "beit3_bench.backbones.beit3.family:BEiT3Family",
    "vlmo": "beit3_bench.backbones.vlmo.family:VLMoFamily",
    "albef": "beit3_bench.backbones.albef.family:AlbefFamily",
    "blip": "beit3_bench.backbones.blip.family:BlipFamily",
    "vilt": "beit3_bench.backbones.vilt.family:ViLTFamily",
    "openclip": "beit3_bench.backbones.openclip.family:OpenClipFamily",
}

DEFAULT_FAMILY = "beit3"
"""The family that is trained from scratch where none is named."""

_NAMED = re.compile(r"([A-Za-z][\w-]+):(?!//)(.+)", re.DOTALL)
"""``FAMILY:SOURCE``; a single letter before the colon is a drive of Windows."""


@cache
def family_locations() -> dict[str, str]:
    """Every known family's name -> ``"module:Class"``, without importing any of them.

    Raises:
        BenchError: two sources claim one name; names both.
    """
    known = dict(BUILT_IN)
    add_plugins(known, entry_points(group=ENTRY_POINT_GROUP), "family")
    return known


@cache
def get_family(name: str) -> Family:
    """A family by name.

    Raises:
        BenchError: an unknown name (with the nearest known one), or a class that does not import.
    """
    known = family_locations()
    if name not in known:
        raise BenchError(f"unknown family {name!r}; {did_you_mean(name, known)}")
    module, _, attribute = known[name].partition(":")
    try:
        cls = vars(importlib.import_module(module))[attribute]
    except (ImportError, KeyError) as error:
        raise BenchError(
            f"family {name!r} at {known[name]} does not load ({error}); mend or uninstall that package"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Family)) or cls.name != name:
        raise BenchError(
            f"family {name!r} at {known[name]} is no Family of that name; give class and entry point one name"
        )
    return cls()


def families() -> list[Family]:
    """All families, the built-in ones first."""
    return [get_family(name) for name in family_locations()]


def split_source(text: str) -> tuple[Family | None, str]:
    """``FAMILY:SOURCE`` -> (family, SOURCE); (None, text) where no family is named.

    Raises:
        BenchError: what stands before the colon is no family, and the whole is no path either.
    """
    from pathlib import Path

    named = _NAMED.fullmatch(text)
    if named is None:
        return None, text
    if named[1] in family_locations():
        return get_family(named[1]), named[2]
    if Path(text).exists() or "/" in named[1]:
        return None, text
    raise BenchError(f"{text}: unknown family {named[1]!r}; {did_you_mean(named[1], family_locations())}")


def locate(text: str | Path) -> tuple[Family | None, Source]:
    """The file or folder that ``[FAMILY:]SOURCE`` names; the family where it is named.

    Raises:
        BenchError: there is no such file, or no such family.
    """
    from beit3_bench.backbones.file_kinds import checkpoint_file

    family, source = split_source(str(text))
    return family, Source(source, family.locate(source) if family else checkpoint_file(source))


def find_family(source: Source, ability: type[Ability] | None = None) -> Family:
    """The one family that claims a file or folder.

    Raises:
        BenchError: none claims it, or several do; says which were asked.
    """
    claiming: list[Family] = []
    unreadable: BenchError | None = None
    for family in families():
        try:
            if family.claims(source):
                claiming.append(family)
        except BenchError as error:  # no checkpoint that can be read; another family may know it by something else
            unreadable = unreadable or error
    if not claiming and unreadable is not None:
        raise BenchError(f"{unreadable} (families that were tried: {', '.join(family_locations())})") from unreadable
    if len(claiming) > 1 and ability is not None:
        able = [family for family in claiming if ability in family.abilities]
        claiming = able if len(able) == 1 else claiming
    if len(claiming) == 1:
        return claiming[0]
    if claiming:
        names = " and ".join(family.name for family in claiming)
        raise BenchError(
            f"{source.path}: could be of the families {names}; say which, as {claiming[0].name}:{source.text}"
        )
    raise BenchError(
        f"{source.path}: is of no known family ({', '.join(family_locations())} were tried); {_hint(source)}"
    )


def _hint(source: Source) -> str:
    names: Sequence[str] = sorted(source.names)
    return f"one of its names is {names[0]!r}; if it is one of these, say which, as FAMILY:{source.text}"
