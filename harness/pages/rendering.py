"""Templates of pages: every value is escaped, its control characters are written out, and style and script are put into the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from beit3_bench.text import visible

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent


@dataclass
class Page:
    """A page that has been made. cards: how many samples it shows.  facts: what an index and ``--json`` tell of it."""

    html: str
    cards: int
    facts: dict[str, str]
    warnings: list[str] = field(default_factory=list)


@cache
def environment(folders: tuple[Path, ...], filters: tuple[Callable[..., Any], ...] = ()) -> Environment:
    """Where templates are rendered; it keeps those that it has compiled. filters: functions that templates call by their names."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        finalize=printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {function.__name__: function for function in (anchor, *filters)}
    return made


def render(
    template: str,
    parts: Sequence[str] = (),
    filters: Sequence[Callable[..., Any]] = (),
    room: Path = HERE,
    **values: Any,
) -> str:
    """A page. parts: of style and script that it needs beside `base` and those of its own name; room: the folder of its template."""
    from markupsafe import Markup

    names = dict.fromkeys(("base", *parts, Path(template).stem))
    assets = {
        name: Markup("".join(asset(f"{part}.{kind}", room) for part in names))
        for name, kind in (("style", "css"), ("script", "js"))
    }
    return environment((room, HERE), tuple(filters)).get_template(template).render(**assets, **values)


def asset(name: str, room: Path = HERE) -> str:
    """A file beside the templates of a room, or of this one; "" where there is none."""
    path = next((path for path in (room / name, HERE / name) if path.is_file()), None)
    return "" if path is None else path.read_text(encoding="utf-8")


def printable(value: Any) -> Any:
    """What a template prints: nothing for None, and texts as `visible` has them; markup of the page's own stays."""
    if value is None:
        return ""
    return visible(value) if type(value) is str else value


def anchor(text: str) -> str:
    """The id of an element for a text that may hold anything: no two texts share one. `#` and this is its permalink."""
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


def summary_tag(facts: Mapping[str, Any]) -> str:
    """What an index reads of a page again (see `index`), as the content of its meta element."""
    return json.dumps(facts, ensure_ascii=True, sort_keys=True)
