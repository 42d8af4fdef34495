"""Text that comes from files and names, made safe to show: no character of it moves a cursor or hides another."""

from __future__ import annotations

import re
from typing import Any

# Controls (C0, DEL, C1), lone surrogates, line and paragraph separators, and characters without width that reorder or hide;
# not the joiners U+200C and U+200D, without which Persian, Hindi and emoji cannot be spelled.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
_ESCAPE = re.compile(rb"\\[bfnrtu]")
_HIDDEN_IN_LINES = re.compile(_HIDDEN.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))


def visible(text: str) -> str:
    r"""One line of text with every control, lone surrogate and hidden character written as ``\x1b``, ``\n``, ``\u202e``, ...

    It can be printed on a terminal, written as UTF-8, and stands in one cell of a table.
    """
    if text.isascii() and text.isprintable():  # most texts, at a tenth of the time of a search
        return text
    return _HIDDEN.sub(_written, text)


def visible_lines(text: str) -> str:
    """As `visible`, for a text of several lines."""
    return _HIDDEN_IN_LINES.sub(_written, text)


def visible_json(text: str) -> str:
    r"""JSON text in which what `visible` writes out stands as ``\u`` escapes: equal to the values that came in."""
    return _HIDDEN_IN_LINES.sub(lambda match: "".join(f"\\u{unit:04x}" for unit in _utf16(match[0])), text)


def visible_values(value: Any) -> Any:
    """As `visible`, for every text in nested lists and dicts, keys included."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [visible_values(item) for item in value]
    if isinstance(value, dict):
        return {visible_values(key): visible_values(item) for key, item in value.items()}
    return value


def is_visible_json(content: bytes) -> bool:
    """Whether `visible_values` changes nothing of this JSON, for all that can be seen before it is parsed: it is ASCII, in an encoding
    that is, without escapes but those of quotes and slashes. The parser refuses other controls within a text.
    """
    return content.isascii() and b"\0" not in content and b"\x7f" not in content and _ESCAPE.search(content) is None


def in_words(size: float) -> str:
    """A number of bytes for people: ``6.6 GB``, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _written(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def _utf16(character: str) -> list[int]:
    data = character.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]
