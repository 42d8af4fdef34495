"""What a run is given: the request, and every check that can be made before the network computes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from beit3_bench.backbones.errors import BenchError
from beit3_bench.tasks.base import Example, Task
from beit3_bench.tasks.files import check_images

if TYPE_CHECKING:
    from beit3_bench.backbones.checkpoint import LoadedModel
    from beit3_bench.backbones.image_cache import ImageCache
    from beit3_bench.backbones.preprocess import Preprocessing
    from beit3_bench.backbones.tokenizer import Tokenizer

TINY_WORLD = "tiny_world.json"
TOKENIZER = "beit3.spm"


@dataclass(frozen=True)
class RunRequest:
    """What `beit3-bench run` was asked for, for one task.

    output: the run folder; None = a folder below ``results/runs`` named after task, split, checkpoint and fingerprints.
    setting: ``"fine-tuned"``, ``"zero-shot"`` or None = known from the checkpoint.
    options: the task's own, as strings (``-o key=value``).
    image_cache, features: folders of preprocessed images and of embeddings; None = neither kept nor used.
    """

    task: str
    checkpoint: Path
    data_root: Path
    tokenizer: Path | None = None
    split: str | None = None
    limit: int | None = None
    batch_size: int | str = "auto"
    device: str = "auto"
    dtype: str = "fp32"
    compile: bool = False
    workers: int | None = None
    seed: int = 0
    output: Path | None = None
    preset: str | None = None
    image_size: int | None = None
    allow_missing: tuple[str, ...] = ()
    setting: str | None = None
    overwrite: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    image_cache: Path | None = None
    features: Path | None = None


def choose_split(task: type[Task] | Task, split: str | None) -> str:
    """The split asked for, or the task's default.

    Raises:
        BenchError: a name that the task does not have.
    """
    if split is None:
        return task.default_split
    if split not in task.splits:
        near = difflib.get_close_matches(split, task.splits, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(task.splits)}"
        raise BenchError(f"task {task.name} has no split {split!r}; {hint}")
    return split


def read_examples(task: Task, split: str, limit: int | None = None) -> tuple[list[Example], dict[str, int] | None]:
    """The examples of a split (the first ``limit`` by the task's own rule), their image files checked.

    Returns:
        The examples, and ``{"limit": n}`` where they are not the whole split.

    Raises:
        BenchError: from the readers; an empty split, an id that comes twice, or missing image files.
    """
    examples = task.examples(split)
    if not examples:
        raise BenchError(
            f"{task.data_root}: split {split!r} of task {task.name} is empty; "
            f"check the files (see: beit3-bench tasks {task.name})"
        )
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise BenchError(
                f"{task.data_root}: id {example.id} comes twice in split {split!r} of task {task.name}; "
                "remove the duplicate"
            )
        seen.add(example.id)
    subset = None
    if limit is not None:
        shorten: Callable[[Sequence[Example], int], Sequence[Example]] = getattr(
            task, "limit", lambda all_, n: all_[:n]
        )
        part = list(shorten(examples, limit))
        if len(part) < len(examples):
            examples, subset = part, {"limit": limit}
    check_images((path for example in examples for path in example.images), task.data_root)
    return examples, subset


def world_of(data_root: Path) -> str:
    """``"tiny"`` for data inside a folder that `beit3-bench data tiny` wrote, else ``"real"``."""
    root = data_root.resolve()
    return "tiny" if any((folder / TINY_WORLD).is_file() for folder in (root, *root.parents)) else "real"


def tokenizer_file(task: type[Task] | Task, request: RunRequest) -> Path:
    """The tokenizer named, or the place beside the checkpoint."""
    return request.tokenizer or request.checkpoint.parent / TOKENIZER


def find_tokenizer(task: type[Task] | Task, request: RunRequest) -> Tokenizer | None:
    """The tokenizer named, or the one beside the checkpoint; None for a task without text.

    Raises:
        BenchError: none is found, or it is no SentencePiece model.
    """
    if not task.uses_text:
        return None
    from beit3_bench.backbones.tokenizer import Tokenizer

    path = tokenizer_file(task, request)
    if request.tokenizer is None and not path.is_file():
        raise BenchError(
            f"task {task.name} needs the tokenizer and there is no {path}; "
            f"put {TOKENIZER} there or give --tokenizer FILE"
        )
    return Tokenizer.load(path)


def load_model(task: Task, request: RunRequest) -> LoadedModel:
    """The task's model with the checkpoint's weights; a task with an engine of its own defines ``load_model``.

    Raises:
        BenchError: from the checkpoint reader, or a released file that differs from its pinned hash.
    """
    from beit3_bench.backbones.checkpoint import load_model_for
    from beit3_bench.backbones.weights import find_weight, pin_or_check

    own = getattr(task, "load_model", None)
    arguments = (request.checkpoint, request.preset, request.image_size)
    loaded = (
        own(*arguments, request.allow_missing)
        if own is not None
        else load_model_for(task.head, *arguments, task.head_arguments(), request.allow_missing)
    )
    weight = find_weight(request.checkpoint)
    if weight is not None:
        pin_or_check(request.checkpoint, weight.name, loaded.sha256)
    return loaded


def open_image_cache(folder: Path | None, preprocessing: Preprocessing) -> ImageCache | None:
    """The cache of preprocessed images, where one is asked for and the preprocessing is one that can be cached.

    Raises:
        BenchError: the folder cannot be made.
    """
    from beit3_bench.backbones.image_cache import ImageCache
    from beit3_bench.backbones.preprocess import Preprocessing

    return ImageCache(folder, preprocessing) if folder is not None and type(preprocessing) is Preprocessing else None


def check_tokenizer(tokenizer: Tokenizer | None, loaded: LoadedModel, examples: Sequence[Example]) -> None:
    """Raise if the tokenizer is not the one that the checkpoint was trained with."""
    if tokenizer is None:
        return
    trained = loaded.metadata.get("tokenizer")
    trained = trained.get("fingerprint") if isinstance(trained, Mapping) else trained
    if trained and trained != tokenizer.fingerprint:
        raise BenchError(
            f"{loaded.path}: was fine-tuned with another tokenizer (sha256 {str(trained)[:12]}..., "
            f"given {tokenizer.fingerprint[:12]}...); "
            "give the right one with --tokenizer"
        )
    largest = max((max(example.token_ids) for example in examples if example.token_ids), default=0)
    if largest >= loaded.config.vocab_size:
        raise BenchError(
            f"{loaded.path}: has {loaded.config.vocab_size} token embeddings, but the tokenizer emits id {largest}; "
            "give the tokenizer of this checkpoint"
        )
