"""The shape of result.json, what `run` and `score` write and the leaderboard reads, and of the card beside it.

Values stay in the unit their metric declares (`percent` 0..100 or `fraction` 0..1); only the table multiplies by 100.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from beit3_bench.errors import BenchError

SCHEMA = 1


class MetricValue(TypedDict):
    """One number of a result."""

    value: float
    """At full precision, in `unit`."""
    unit: Literal["percent", "fraction"]
    """percent: 0..100; fraction: 0..1."""
    ci95: list[float] | None
    """[low, high] of the 95% bootstrap interval in `unit`; None where none was computed."""
    headline: bool
    """Whether the task's table shows this number first."""
    higher_is_better: bool
    """Direction of the metric."""
    decimals: int
    """Digits after the point of the paper's table, for the value in percent."""


class Subset(TypedDict):
    """The run saw only a part of its split."""

    limit: int
    """How many examples `--limit` let through."""


class ReadData(TypedDict):
    """The whole split as it was read, before `--limit`; `harness.record.released` compares it with the released one."""

    counts: dict[str, int]
    """What it holds, named as in `tasks.facts.Counts`."""
    ids: Literal["released", "other", "not known"]
    """Whether its ids are those of the released split."""
    changed: NotRequired[list[str]]
    """Names of its files that are not the official ones, of those whose hash is known."""


class ModelCard(TypedDict):
    """What was evaluated."""

    preset: str
    """Architecture: tiny, base, large, giant, or custom."""
    checkpoint: str
    """File name of the checkpoint, without folder."""
    sha256: str
    """Of the checkpoint file, hex."""
    weight: str | None
    """Name in the weight registry; None for a file that is not a released one."""
    image_size: int
    """Side of the square input in pixels."""
    params: int
    """Number of parameters of the network with its head."""
    allow_missing: list[str]
    """Patterns of tensors that were allowed to be absent from the checkpoint; normally empty."""


class Result(TypedDict):
    """One evaluated (task, split, checkpoint)."""

    schema: int
    """Version of this layout: 1."""
    task: str
    """Task name, e.g. ``"coco-retrieval"``."""
    split: str
    """Split name in the task's terms, e.g. ``"test"``, ``"val"``, ``"test-dev"``."""
    metrics: dict[str, MetricValue]
    """By metric name; empty for a submission that only the official server can score."""
    counts: dict[str, int]
    """What was scored: images, texts, questions."""
    notes: list[str]
    """Sentences that a reader of the number must know."""
    status: Literal["scored", "submitted", "not installed"]
    """scored: has metrics; submitted: a file for the official server; not installed: an optional stack is missing."""
    subset: Subset | None
    """None when the whole split was evaluated."""
    data: NotRequired[ReadData | None]
    """None on the tiny world, and for a split of which nothing is known; absent from results of earlier versions."""
    world: Literal["real", "tiny"]
    """tiny: the synthetic data of `beit3-bench data tiny`."""
    setting: Literal["fine-tuned", "zero-shot"]
    """Whether the checkpoint was fine-tuned for this task."""
    model: ModelCard
    """What was evaluated."""
    provenance: dict[str, Any]
    """Data fingerprint, config, versions, hardware, commit, seed, preprocessing canary."""
    timing: dict[str, Any]
    """Seconds spent on data, compute and scoring, images per second, peak memory."""
    chance: float | None
    """What guessing scores on the headline metric, in its unit; None where not defined."""


# ---- checking what a file says ---------------------------------------------------------------------------------------

NUMBER = (int, float)


class Each:
    """The shape of an object with any keys, whose values have one shape."""

    def __init__(self, shape: Any):
        self.shape = shape


_MODEL = {
    "preset": str,
    "checkpoint": str,
    "sha256": str,
    "weight": (str, type(None)),
    "image_size": int,
    "params": int,
    "allow_missing": [str],
}
_METRIC = {
    "value": NUMBER,
    "unit": str,
    "ci95": (list, type(None)),
    "headline": bool,
    "higher_is_better": bool,
    "decimals": int,
}
_PROVENANCE = {
    "time?": str,
    "packages?": Each(str),
    "hardware?": dict,
    "git?": (dict, type(None)),
    "options?": (dict, type(None)),
}
_TIMING = {
    "seconds?": Each(NUMBER),
    "samples_per_second?": NUMBER,
    "images_per_second?": NUMBER,
    "peak_memory_bytes?": NUMBER,
    "peak_device_memory_bytes?": (*NUMBER, type(None)),
    "resumed_samples?": int,
    "samples_from_store?": int,
    "images_decoded?": int,
    "images_distinct?": int,
    "images_from_cache?": int,
    "images_encoded?": int,
    "text_tokens?": int,
    "text_tokens_real?": int,
}
RESULT_SHAPE = {
    "schema": int,
    "task": str,
    "split": str,
    "metrics": Each(_METRIC),
    "counts": Each(NUMBER),
    "notes": [str],
    "status": str,
    "subset": (dict, type(None)),
    "data?": (dict, type(None)),
    "world": str,
    "setting": str,
    "model": _MODEL,
    "provenance": _PROVENANCE,
    "timing": _TIMING,
    "chance": (*NUMBER, type(None)),
}
DATA_SHAPE = {"counts": Each(int), "ids": str, "changed?": [str]}
COMPILE_MODES = ("off", "on", "auto")
"""What ``--compile`` may be; a card writes the first two as false and true."""
CARD_SHAPE = {
    "task?": str,
    "split?": str,
    "limit?": (int, type(None)),
    "subset?": (dict, type(None)),
    "setting?": str,
    "checkpoint?": str,
    "data_root?": str,
    "tokenizer?": (str, type(None)),
    "options?": dict,
    "given_options?": Each(str),
    "given?": {"preset?": (str, type(None)), "image_size?": (int, type(None)), "setting?": (str, type(None))},
    "allow_missing?": [str],
    "dtype?": str,
    "device?": str,
    "compile?": (bool, str),
    "batch_size?": (int, str),
    "workers?": (int, type(None)),
    "seed?": int,
    "fingerprints?": Each(str),
}
"""config.json of a run folder. A key that is missing is told where it is needed."""


def check_shape(value: Any, shape: Any, where: str, mend: str) -> None:
    """Raise if a parsed JSON value has not the shape that it was written with.

    Args:
        shape: a type or several; a dict: an object with these keys (``"name?"`` may be missing), and perhaps others;
            ``[shape]``: a list of such values; `Each`.
        where: names file and place.  mend: what to do about it.

    Raises:
        BenchError: a missing key, a value of another kind, or a number that is not finite.
    """
    if isinstance(shape, dict):
        _check_kind(value, dict, where, mend)
        for name, inner in shape.items():
            key = name.removesuffix("?")
            if key in value:
                check_shape(value[key], inner, f"{where}: {key}", mend)
            elif key == name:
                raise BenchError(f"{where}: key {key!r} is missing; {mend}")
    elif isinstance(shape, Each):
        _check_kind(value, dict, where, mend)
        for key, item in value.items():
            check_shape(item, shape.shape, f"{where}[{key[:40]!r}]", mend)
    elif isinstance(shape, list):
        _check_kind(value, list, where, mend)
        for number, item in enumerate(value):
            check_shape(item, shape[0], f"{where}[{number}]", mend)
    else:
        _check_kind(value, shape, where, mend)


def _check_kind(value: Any, kind: type | tuple[type, ...], where: str, mend: str) -> None:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        file, _, key = where.rpartition(": ")
        place = f"{file}: key {key!r}" if file else where
        raise BenchError(f"{place} holds {_short(value)} of another kind than expected ({names}); {mend}")
    if float in kinds and isinstance(value, NUMBER) and not -1e300 < value < 1e300:
        raise BenchError(f"{where} is not a finite number of a usual size; {mend}")


def _short(value: Any) -> str:
    try:
        return repr(str(value)[:40])
    except ValueError:  # a whole number of more digits than Python converts
        return "a number of thousands of digits"
