"""HTML taken apart as far as tests look at it."""

from __future__ import annotations

import html.parser


class Parsed(html.parser.HTMLParser):
    """Tags with their attributes, and the text of all; raises where tags do not nest."""

    VOID = frozenset({"meta", "link", "br", "input", "img"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        """Attributes of the elements of a tag with some attributes (``class_`` for class: one of them)."""
        return [
            attrs
            for name, attrs in self.tags
            if name == tag and all(_has(attrs, key, value) for key, value in wanted.items())
        ]


def _has(attrs: dict[str, str | None], key: str, value: str) -> bool:
    there = attrs.get(key.rstrip("_")) or ""
    return value in there.split() if key == "class_" else there == value
