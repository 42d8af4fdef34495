"""The shape of result.json, what `run` and `score` write and the leaderboard reads, and of the card beside it.

Each file is described once, as a TypedDict: for the reader, for the type checker, and for `shapes.check_shape`, which holds what a
file says against it. Keys that no type names may be there, too: later versions add some.

Values stay in the unit their metric declares (`percent` 0..100 or `fraction` 0..1); only the table multiplies by 100.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

SCHEMA = 1
TO_UPLOAD, PREDICTED = "to upload", "predicted"
"""Two statuses of a result."""
LINEAR_PROBE = "linear-probe"
"""The setting of a run of `probe --task`."""
IMAGES = "images"
"""Fingerprint of all image contents, in a finished run's result: it is known when the last image has been read."""
CODE = "code"
"""Fingerprint of the package's source; runs of the first edition have none, and their ``data`` no contents of truth files."""
COMPILE_MODES = ("off", "on", "auto")
"""What ``--compile`` may be; a card writes the first two as false and true."""


class MetricValue(TypedDict):
    """One number of a result."""

    value: float
    """At full precision, in `unit`."""
    unit: Literal["percent", "fraction"]
    """percent: 0..100; fraction: 0..1."""
    ci95: list[float] | None
    """[low, high] of the 95% bootstrap interval in `unit`, of an estimate that of its look; None where none was computed."""
    headline: bool
    """Whether the task's table shows this number first."""
    higher_is_better: bool
    """Direction of the metric."""
    decimals: int
    """Digits after the point of the paper's table, for the value in percent."""


class Estimate(TypedDict):
    """`--until-ci` stopped a run over randomly drawn clusters of its split. Intervals hold at every look (`tasks.metrics.sequential`)."""

    width: float
    """The interval of the headline is narrower than this, in points (hundredths of its range)."""
    examples: int
    """Drawn, and scored."""
    of_examples: int
    """That the split has; neither count holds those that are in every part."""
    clusters: int
    """Drawn as wholes; the unit of the intervals."""
    of_clusters: int
    """That the split has."""
    seed: int
    """Of the order in which they were drawn."""
    bound: float
    """Standard errors on either side, at every look."""


class Subset(TypedDict):
    """The run saw only a part of its split, for one of these reasons."""

    limit: NotRequired[int]
    """How many examples `--limit` let through."""
    estimate: NotRequired[Estimate]
    """What `--until-ci` drew; absent from results of earlier versions."""


class ReadData(TypedDict):
    """The whole split as it was read, before `--limit`; `harness.record.released` compares it with the released one."""

    counts: dict[str, int]
    """What it holds, named as in `tasks.facts.Counts`."""
    ids: Literal["released", "other", "not known"]
    """Whether its ids are those of the released split."""
    changed: NotRequired[list[str]]
    """Names of its files that are not the official ones, of those whose hash is known."""
    own: NotRequired[str]
    """Of data of one's own, SHA-256 (hex) of what its lines say."""


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
    family: NotRequired[str]
    """Family of models; absent from results of earlier versions, which knew beit3 alone."""
    protocol: NotRequired[str]
    """How the model was asked where families differ in it, e.g. ``"re-ranked 256"``; "" or absent: as its family always is."""


class Provenance(TypedDict, total=False):
    """Where a result comes from. Each key is absent where nothing is known of it."""

    time: str
    """UTC, ISO 8601."""
    command: str
    """As it can be pasted into a shell."""
    git: dict[str, Any] | None
    """``commit`` and ``dirty`` of the checkout that ran."""
    packages: dict[str, str]
    """Versions by package name."""
    hardware: dict[str, Any]
    """Processor, memory, graphics cards."""
    seed: int
    """Of intervals, and of tensors that are missing from the checkpoint."""
    dtype: str
    """fp32, bf16 or fp16."""
    device: str
    """Where the network ran."""
    compile: bool | str
    """As in `Card`."""
    data_root: str
    """Folder of the data."""
    fingerprints: dict[str, str]
    """What the run was made from, as in `Card`, with one for all image files."""
    options: dict[str, Any] | None
    """The task's options."""
    config: dict[str, Any]
    """Shape of the network."""
    preprocessing: dict[str, Any]
    """How images became pixels."""
    canary: str
    """Hash of a preprocessed synthetic image."""
    resized: dict[str, str]
    """Position tables that were interpolated: name -> ``"14x14 -> 30x30"``."""
    missing: list[str]
    """Tensors that the checkpoint has not."""
    unexpected: list[str]
    """Tensors of the checkpoint that the network has not."""


class Timing(TypedDict, total=False):
    """What a run cost; empty where nothing ran."""

    seconds: dict[str, float]
    """By stage: read, load, features, data, compute, write, score, total."""
    samples_per_second: float
    """Of what was computed now, resumed samples left out."""
    images_per_second: float
    """Decoded and from the cache, of what was computed now."""
    peak_memory_bytes: float
    """Of the largest process."""
    peak_device_memory_bytes: float | None
    """Of the fullest card; None without one."""
    batch_size: int
    """In use at the end."""
    resumed_samples: int
    """Rows that were there already."""
    samples_from_store: int
    """Rows that the feature store had."""
    images_decoded: int
    """Image files that were decoded."""
    images_distinct: int
    """Different image files among them."""
    images_from_cache: int
    """Images that the cache of preprocessed images had."""
    images_encoded: int
    """Passes of an image through the network."""
    text_tokens: int
    """Computed, padding included."""
    text_tokens_real: int
    """Computed, without padding."""
    gflop_per_sample: dict[str, float]
    """By kind of sample (image, text, pair; match: an image with all the texts that re-ranking compares it with), counted from shapes;
    empty where that cannot be, absent from results of earlier versions."""
    joules_per_sample: float | None
    """Of what was computed now; None where the device does not tell, or several processes ran."""
    energy_source: str | None
    """Who counted them, and of what."""


class Result(TypedDict):
    """One evaluated (task, split, checkpoint)."""

    schema: int
    """Version of this layout: 1."""
    task: str
    """Task name, e.g. ``"coco-retrieval"``."""
    split: str
    """Split name in the task's terms, e.g. ``"test"``, ``"val"``, ``"test-dev"``; the name of data of one's own."""
    metrics: dict[str, MetricValue]
    """By metric name; empty for a submission that only the official server can score."""
    counts: dict[str, int]
    """What was scored: images, texts, questions."""
    notes: list[str]
    """Sentences that a reader of the number must know."""
    status: Literal["scored", "to upload", "predicted", "not installed"]
    """scored: has metrics; to upload: a file for the official server, which earlier versions called "submitted"; predicted: data of one's
    own that holds no truth; not installed: an optional stack is missing."""
    subset: Subset | None
    """None when the whole split was evaluated."""
    data: NotRequired[ReadData | None]
    """None on the tiny world, and for a split of which nothing is known; absent from results of earlier versions."""
    world: Literal["real", "tiny"]
    """tiny: the synthetic data of `beit3-bench data tiny`."""
    corrupt: NotRequired[str | None]
    """What every image was corrupted with (`backbones.corruptions`), ``"gaussian_noise:3"``; None, or absent from results of earlier
    versions: images are as they are."""
    setting: Literal["fine-tuned", "zero-shot", "linear-probe"]
    """Whether the checkpoint was fine-tuned for this task; linear-probe: a linear layer was, on its frozen features."""
    model: ModelCard
    """What was evaluated."""
    provenance: Provenance
    """Data fingerprint, config, versions, hardware, commit, seed, preprocessing canary."""
    timing: Timing
    """Seconds spent on data, compute and scoring, images per second, peak memory."""
    chance: float | None
    """What guessing scores on the headline metric, in its unit; None where not defined."""


class Given(TypedDict, total=False):
    """What the command line said of a run, None where it said nothing."""

    preset: str | None
    image_size: int | None
    setting: str | None


class Card(TypedDict, total=False):
    """config.json of a run folder: what was asked for, resolved. A key that is missing is told where it is needed."""

    task: str
    split: str
    limit: int | None
    subset: Subset | None
    setting: str
    family: str
    source: str | None
    """``FAMILY:SOURCE`` where the family was named."""
    checkpoint: str
    """Absolute path, as are ``data_root`` and ``tokenizer``."""
    data_root: str
    tokenizer: str | None
    options: dict[str, Any]
    """Every option of the task, resolved."""
    given_options: dict[str, str]
    """Options as ``-o`` gave them, files by absolute path."""
    given: Given
    allow_missing: list[str]
    corrupt: NotRequired[str | None]
    """As in `Result`."""
    dtype: str
    device: str
    compile: bool | str
    """False, True or ``"auto"``."""
    batch_size: int | str
    """Samples, or ``"auto"``."""
    workers: int | None
    seed: int
    fingerprints: dict[str, str]
    """What has to be the same for rows to belong to one run, by name."""
    second_pass: NotRequired[dict[str, Any]]
    """How many of a query's best were looked at again (null: there was no first pass, and all pairs were compared), and whether the first
    score was added; absent without a second pass.
    """
    resolved_from: NotRequired[dict[str, str]]
    """Where it was said: option -> command line, environment variable, or file and key; absent where a program asked."""
