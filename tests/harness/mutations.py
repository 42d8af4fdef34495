"""Ways to spoil a file, drawn from a seed: bytes, encodings, JSON values and structure, arrays."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np

Spoil = Callable[[random.Random, bytes], bytes]

HUGE = 10**5000  # more digits than Python converts
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    2**63,
    -(2**70),
    HUGE,
    10**400,  # beyond any float, and yet valid JSON
    1.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "\x00",
    "\ud800",
    "\u202e\u2028 ́é日本語🦆",
    "../../../etc/passwd",
    "/",
    "x" * 70_000,
    "NaN",
    "1",
    [],
    {},
    [[]],
    [None],
    {"": None},
    ["a", 1, {"b": []}],
    {"size": [1, 1], "counts": "x"},
)


def json_text(random_: random.Random, value: Any, twice: bool = False) -> str:
    """JSON that `json.dumps` does not write: NaN, very long numbers, and, with ``twice``, a key that comes twice."""
    import sys

    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        text = json.dumps(value)
    finally:
        sys.set_int_max_str_digits(limit)
    if twice and '":' in text:
        places = [i for i, c in enumerate(text) if c == "{"]
        at = random_.choice(places) + 1
        key = random_.choice(["id", "image_id", "question_id", "images", "annotations", "answer", "split", "label"])
        text = f'{text[:at]}"{key}": {json.dumps(random_.choice([1, "x", None, []]))}{"" if text[at] == "}" else ", "}{text[at:]}'
    return text


def spoil_structure(random_: random.Random, value: Any) -> Any:
    """Change one to three places of a parsed JSON value."""
    for _ in range(random_.choice((1, 1, 2, 3))):
        value = _changed(random_, value, random_.choice((0, 1, 2, 2, 3, 3, 3, 4, 5)))
    return value


def _changed(random_: random.Random, value: Any, depth: int) -> Any:
    if depth and isinstance(value, dict) and value:
        key = random_.choice(list(value))
        change = random_.random()
        rest = {k: v for k, v in value.items() if k != key}
        if change < 0.15:
            return rest
        if change < 0.25:
            return {**rest, random_.choice([key.upper(), key + "s", "", "\ud800"]): value[key]}
        return {**value, key: _changed(random_, value[key], depth - 1)}
    if depth and isinstance(value, list) and value:
        at = random_.randrange(len(value))
        change = random_.random()
        if change < 0.1:
            return value[:at] + value[at + 1 :]
        if change < 0.2:
            return [*value, value[at]]
        if change < 0.25:
            return value[:at]
        return [*value[:at], _changed(random_, value[at], depth - 1), *value[at + 1 :]]
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) < 2**80
        and random_.random() < 0.3
    ):
        return random_.choice([-value, value * 1e290, str(value), [value], value + 1, float(value)])
    if isinstance(value, str) and random_.random() < 0.3:
        return random_.choice([value.upper(), value[::-1], value + "\n", value * 2, "\ufeff" + value, [value]])
    return random_.choice(VALUES)


def spoil_json(random_: random.Random, data: bytes) -> bytes:
    if random_.random() < 0.35:
        return spoil_bytes(random_, data)
    changed = spoil_structure(random_, json.loads(data))
    return json_text(random_, changed, twice=random_.random() < 0.2).encode()


def spoil_json_lines(random_: random.Random, data: bytes) -> bytes:
    if random_.random() < 0.35:
        return spoil_bytes(random_, data)
    lines = data.decode().splitlines()
    at = random_.randrange(len(lines))
    lines[at] = json_text(random_, spoil_structure(random_, json.loads(lines[at])), twice=random_.random() < 0.2)
    return "\n".join(lines).encode()


def spoil_csv(random_: random.Random, data: bytes) -> bytes:
    if random_.random() < 0.4:
        return spoil_bytes(random_, data)
    lines = data.decode().splitlines()
    at = random_.randrange(len(lines))
    field = random_.choice(["True", "yes", "", "nan", '"', '"a\nb"', "\x00", "🦆", "x" * 200_000, "1,2,3", "dev-1-1-1"])
    lines[at] = random_.choice([field, f"{field},True", f"{lines[at]},{field}", f"{lines[at].split(',')[0]},{field}"])
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def spoil_bytes(random_: random.Random, data: bytes) -> bytes:
    """Truncation, noise, other encodings, nothing at all, or nesting without end."""
    cut = random_.randrange(len(data) + 1)
    noise = random_.randbytes(random_.choice((1, 4, 40)))
    kind = random_.randrange(14)
    if kind <= 2:
        return data[:cut]
    if kind == 3:
        return data[:cut] + noise + data[cut:]
    if kind == 4:
        return data[:cut] + noise + data[cut + len(noise) :]
    if kind == 5:
        return random_.choice([b"", b" ", b"\n\n", b"\x00" * 64, b"null", b"[]", b"{}", b"3", b'"x"'])
    if kind == 6:
        return b"\xef\xbb\xbf" + data
    if kind == 7:
        return data.decode("utf-8", "replace").encode(random_.choice(["utf-16", "utf-32", "utf-7"]), "replace")
    if kind == 8:
        return data.replace(b"a", "é".encode("latin-1"))
    if kind == 9:
        return random_.choice([b"[", b'{"images":[', b'{"a":']) * 100_000
    if kind == 10:
        return data + data
    if kind == 11:
        return data[cut:]
    if kind == 12:
        return b"\x1f\x8b\x08\x00" + data
    return data.replace(b"\n", b"\r").replace(b"1", random_.choice([b"1e999", b"1" * 5000, b"-", b"0x1", b"1."]))


def spoil_npz(random_: random.Random, data: bytes) -> bytes:
    if random_.random() < 0.4:
        return spoil_bytes(random_, data)
    with np.load(io.BytesIO(data)) as file:
        arrays = {name: file[name] for name in file.files}
    name = random_.choice(list(arrays))
    array = arrays[name]
    kind = random_.randrange(12)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[name] = array[: random_.randrange(len(array))]
    elif kind == 2:
        arrays[name] = array.astype(random_.choice(["f8", "f2", "c8", "U8", "i8", "u1", "?"]), casting="unsafe")
    elif kind == 3 and array.dtype.kind == "f":
        arrays[name] = np.where(
            np.arange(array.size).reshape(array.shape) == 3, random_.choice([np.nan, np.inf]), array
        )
    elif kind == 4:
        arrays[name] = array.reshape(-1, 1, 1)
    elif kind == 5:
        arrays[name] = array[()] if array.ndim == 0 else array[0]
    elif kind == 6:
        arrays[name] = np.array([{"a": 1}, None], dtype=object)  # stored as a pickle
    elif kind == 7:
        arrays[name] = np.zeros_like(array)
    elif kind == 8:
        arrays[name] = np.concatenate([array, array])
    elif kind == 9:
        arrays[name] = np.array("2020-01-01", dtype="datetime64[D]")
    elif kind == 10:
        arrays = {key + "s": value for key, value in arrays.items()}
    else:
        arrays[name] = np.empty((0, *array.shape[1:]), array.dtype)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
