"""What a run is given: the request, and every check that can be made before the network computes."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example, Task
from beit3_bench.tasks.files import check_images

if TYPE_CHECKING:
    from beit3_bench.backbones.beit3.checkpoint import LoadedModel
    from beit3_bench.backbones.beit3.config import BEiT3Config
    from beit3_bench.backbones.beit3.tokenizer import Tokenizer
    from beit3_bench.backbones.checkpoints import Checkpoint
    from beit3_bench.backbones.preprocess import Preprocessing
    from beit3_bench.harness.reuse.image_cache import ImageCache

TINY_WORLD = "tiny_world.json"
TOKENIZER = "beit3.spm"


@dataclass(frozen=True)
class RunRequest:
    """What `beit3-bench run` was asked for, for one task.

    output: the run folder; None = a folder below ``results/runs`` named after task, split, checkpoint and fingerprints.
    setting: ``"fine-tuned"``, ``"zero-shot"`` or None = known from the checkpoint.
    compile: ``"off"``, ``"on"``, or ``"auto"``: where it pays.
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
    compile: str = "off"
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
    return first_examples(task, read_split(task, split), limit)


def read_split(task: Task, split: str) -> list[Example]:
    """All examples of a split.

    Raises:
        BenchError: from the readers; an empty split, or an id that comes twice.
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
    return examples


def first_examples(
    task: Task, examples: list[Example], limit: int | None
) -> tuple[list[Example], dict[str, int] | None]:
    """As `read_examples`, from all examples of the split.

    Raises:
        BenchError: missing image files.
    """
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
    from beit3_bench.backbones.beit3.tokenizer import Tokenizer

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
        BenchError: from the checkpoint reader, a released file that differs from its pinned hash, or outputs that mean
            something else than the data takes them to mean.
    """
    from beit3_bench.backbones.beit3.checkpoint import load_model_for
    from beit3_bench.backbones.checkpoints import read_checkpoint
    from beit3_bench.backbones.pins import pin_or_check
    from beit3_bench.backbones.released import find_released

    own = getattr(task, "load_model", None)
    arguments = (request.preset, request.image_size)
    if own is not None:
        loaded = own(request.checkpoint, *arguments, request.allow_missing)
        notes = task.check_labels(request.checkpoint, loaded.metadata, None)
    else:
        source = read_checkpoint(request.checkpoint)
        notes = _check_outputs(task, source, request.allow_missing)
        loaded = load_model_for(task.head, source, *arguments, task.head_arguments(), request.allow_missing)
    weight = find_released(request.checkpoint)
    if weight is not None:
        pin_or_check(request.checkpoint, weight.name, loaded.sha256)
    loaded.report.notes += _random_tensors(loaded, request.allow_missing)
    loaded.assumptions += notes
    return loaded


def _check_outputs(task: Task, source: Checkpoint, allow_missing: Sequence[str]) -> list[str]:
    """`Task.check_labels` for a native head, before it is loaded; nothing for one that will stay random."""
    from beit3_bench.backbones.beit3.models import HEADS

    layer = HEADS[task.head].output_layer if task.head in HEADS else ""
    table = source.tensors.get(layer)
    outputs = len(table) if table is not None and table.ndim == 2 else None
    if any(fnmatch.fnmatchcase(layer, pattern) for pattern in allow_missing):
        labels = task.labels()
        if labels is None or outputs != len(labels):
            return []
    return task.check_labels(source.path, source.metadata, outputs)


def _random_tensors(loaded: LoadedModel, allow_missing: Sequence[str]) -> list[str]:
    """A note that names the tensors that a run with ``--allow-missing`` computes with, but no checkpoint ever had."""
    unread = getattr(loaded.model, "unread", ())
    missing = [n for n in loaded.report.missing if not any(fnmatch.fnmatchcase(n, pattern) for pattern in unread)]
    if not allow_missing or not missing:
        return []
    named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    kept = "1 tensor kept its random values" if len(missing) == 1 else f"{len(missing)} tensors kept random values"
    return [f"{kept} ({named}): this measures no trained model"]


def open_image_cache(folder: Path | None, preprocessing: Preprocessing) -> ImageCache | None:
    """The cache of preprocessed images, where one is asked for and the preprocessing is one that can be cached.

    Raises:
        BenchError: the folder cannot be made.
    """
    from beit3_bench.backbones.preprocess import Preprocessing
    from beit3_bench.harness.reuse.image_cache import ImageCache

    return ImageCache(folder, preprocessing) if folder is not None and type(preprocessing) is Preprocessing else None


def check_tokenizer(
    tokenizer: Tokenizer | None, file: Path, loaded: LoadedModel, examples: Sequence[Example]
) -> list[str]:
    """`compare_tokenizer`, and every id of the examples.

    Returns:
        Notes for the result: what could not be known.

    Raises:
        BenchError: the tokenizer is not the one that the checkpoint was trained with.
    """
    if tokenizer is None:
        return []
    notes = compare_tokenizer(tokenizer, file, loaded.config, loaded.metadata, loaded.path)
    largest = max((max(example.token_ids) for example in examples if example.token_ids), default=0)
    if largest >= loaded.config.vocab_size:
        raise BenchError(
            f"{loaded.path}: has {loaded.config.vocab_size} token embeddings, but the tokenizer emits id {largest}; "
            "give the tokenizer of this checkpoint"
        )
    return notes


def compare_tokenizer(
    tokenizer: Tokenizer, file: Path, config: BEiT3Config, metadata: Mapping[str, Any], checkpoint: Path
) -> list[str]:
    """Compare a tokenizer with the one that a checkpoint was trained with, as far as anything tells.

    Args:
        file: that the tokenizer was read from.
        metadata: what the checkpoint carries beside its weights; ``tokenizer`` is the fingerprint of its own.

    Returns:
        Notes for a result: what could not be known.

    Raises:
        BenchError: it is another one: by the fingerprint in the checkpoint, by the number of pieces that its token table is
            for, or by the hash that was pinned when the released tokenizer was downloaded.
    """
    from beit3_bench.backbones.beit3.config import RELEASED_VOCABULARY
    from beit3_bench.backbones.beit3.weights import TOKENIZER_FILE
    from beit3_bench.backbones.pins import read_pins

    trained = metadata.get("tokenizer")
    trained = trained.get("fingerprint") if isinstance(trained, Mapping) else trained
    if trained:
        if trained != tokenizer.fingerprint:
            raise BenchError(
                f"{checkpoint}: was fine-tuned with another tokenizer (sha256 {str(trained)[:12]}..., "
                f"given {tokenizer.fingerprint[:12]}...); "
                "give the right one with --tokenizer"
            )
        return []
    if tokenizer.num_pieces != config.num_pieces:
        assert config.num_pieces is not None
        specials = tokenizer.num_pieces - tokenizer.spm.get_piece_size()
        raise BenchError(
            f"{checkpoint}: has {config.vocab_size:,} token embeddings, for a tokenizer of {config.num_pieces - specials:,} "
            f"pieces, but {file} has {tokenizer.num_pieces - specials:,}; give the tokenizer of this checkpoint with --tokenizer"
        )
    if config.vocab_size != RELEASED_VOCABULARY:
        return [f"the checkpoint does not say which tokenizer it was trained with; {file.name} has as many pieces"]
    pin = read_pins().get(TOKENIZER_FILE)
    if pin is None:
        return [f"{file.name} was not compared with the released {TOKENIZER_FILE}, which was never downloaded here"]
    if pin != tokenizer.fingerprint:
        raise BenchError(
            f"{file}: sha256 {tokenizer.fingerprint[:12]}... is not that of the released {TOKENIZER_FILE} ({pin[:12]}..., "
            "pinned when it was downloaded); give the released one with --tokenizer"
        )
    return []
