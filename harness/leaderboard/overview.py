"""The overview table of the BEiT-3 paper (its Table 1), with the released and the measured checkpoints beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from beit3_bench.harness.leaderboard.board import BEIT3, Cell, TableRow, build_table
from beit3_bench.harness.record.results import Run, model_name
from beit3_bench.results.published.values import OVERVIEW_SOURCE, PublishedValue

SIZES = ("base", "large")


@dataclass(frozen=True)
class OverviewLine:
    """One line of the overview table of the BEiT-3 paper (its Table 1).

    label: task and metric as the reader knows them.  published: (task, metric) of the overview rows.
    regime: of those rows.  metrics: ours, whose mean is the number.
    """

    label: str
    task: str
    split: str
    regime: str
    metrics: tuple[str, ...]
    published: tuple[str, str]


PAPER_TABLE_1: tuple[OverviewLine, ...] = (
    OverviewLine(
        "ADE20K mIoU (multi-scale)",
        "ade20k-seg",
        "val",
        "fine-tuned",
        ("mIoU_ms",),
        ("ade20k_segmentation", "mIoU (multi-scale)"),
    ),
    OverviewLine(
        "COCO test-dev AP box", "coco-det", "test-dev", "fine-tuned", ("bbox/AP",), ("coco_detection", "AP box")
    ),
    OverviewLine(
        "COCO test-dev AP mask",
        "coco-det",
        "test-dev",
        "fine-tuned",
        ("segm/AP",),
        ("coco_instance_segmentation", "AP mask"),
    ),
    OverviewLine("ImageNet-1K top-1", "imagenet", "val", "fine-tuned", ("top1",), ("imagenet1k", "top-1")),
    OverviewLine(
        "NLVR2 test-P accuracy",
        "nlvr2",
        "test-P",
        "fine-tuned",
        ("accuracy",),
        ("nlvr2", "accuracy (Table 1, 1 decimal)"),
    ),
    OverviewLine(
        "VQAv2 test-std accuracy",
        "vqav2",
        "test-std",
        "fine-tuned",
        ("vqa_accuracy",),
        ("vqav2", "VQA accuracy (Table 1, 1 decimal)"),
    ),
    OverviewLine("COCO caption CIDEr", "coco-caption", "test", "fine-tuned", ("CIDEr",), ("coco_captioning", "CIDEr")),
    OverviewLine(
        "COCO retrieval, mean R@1",
        "coco-retrieval",
        "test",
        "fine-tuned",
        ("TR@1", "IR@1"),
        ("coco_retrieval", "mean of TR and IR R@1"),
    ),
    OverviewLine(
        "Flickr30K retrieval, mean R@1",
        "flickr30k",
        "test",
        "fine-tuned",
        ("TR@1", "IR@1"),
        ("flickr30k_retrieval", "mean of TR and IR R@1"),
    ),
    OverviewLine(
        "Flickr30K retrieval zero-shot, mean R@1",
        "flickr30k",
        "test",
        "zero-shot",
        ("TR@1", "IR@1"),
        ("flickr30k_retrieval", "mean of TR and IR R@1"),
    ),
)


@dataclass
class Overview:
    """A grid of texts: a header and one line per benchmark."""

    header: list[str]
    lines: list[list[str]]


def build_overview(runs: Sequence[Run], published: Sequence[PublishedValue]) -> Overview:
    """Columns: what the paper prints (best previous system, giant), the best released base and large row, and the best
    measured row of every model. Runs on anything but a whole released split have no place here.
    """
    table = build_table(runs, published, tasks=[line.task for line in PAPER_TABLE_1], systems=["all"])
    rows = {(s.task, s.split, s.regime): s.rows for s in table.sections if not s.view}
    compared = {row.name for section in rows.values() for row in section if row.measured}
    models = [name for name in dict.fromkeys(model_name(run.result["model"]) for run in runs) if name in compared]
    header = ["benchmark", "previous best", f"{BEIT3} giant", *(f"released {size}" for size in SIZES)]
    header += [f"measured {model.removeprefix(f'{BEIT3} ')}" for model in models]
    lines = [
        [
            line.label,
            *_printed(published, line),
            *_reached(rows.get((line.task, line.split, line.regime), []), models, line),
        ]
        for line in PAPER_TABLE_1
    ]
    return Overview(header, lines)


def _printed(published: Sequence[PublishedValue], line: OverviewLine) -> tuple[str, str]:
    """What the paper's table says: the best previous system, and the giant."""
    values = [
        value
        for value in published
        if value.source == OVERVIEW_SOURCE
        and (value.task, value.metric) == line.published
        and value.regime == line.regime
    ]
    previous = next((f"{value.printed} ({value.system})" for value in values if value.system != BEIT3), "")
    return previous, next((value.printed for value in values if value.system == BEIT3), "")


def _reached(rows: Sequence[TableRow], models: Sequence[str], line: OverviewLine) -> list[str]:
    """The best released row of each size, then the best measured row of each model."""
    released = [_released([r for r in rows if not r.measured and _released_size(r) == size], line) for size in SIZES]
    return released + [_best([r for r in rows if r.measured and r.name == model], line) for model in models]


def _released_size(row: TableRow) -> str:
    """``base`` or ``large`` for rows of a released checkpoint, else empty."""
    name = row.variant.split("_")
    return name[1] if row.name == BEIT3 and len(name) > 2 and name[0] == "beit3" else ""


def _released(rows: Sequence[TableRow], line: OverviewLine) -> str:
    """What the authors print; what somebody else measured only where they print nothing, and marked so."""
    own = _best([row for row in rows if row.source_kind == "primary"], line)
    other = _best(rows, line)
    return own or (f"{other} (third party)" if other else "")


def _best(rows: Sequence[TableRow], line: OverviewLine) -> str:
    scored = [[row.cells[name] for name in line.metrics] for row in rows if all(n in row.cells for n in line.metrics)]
    if not scored:
        return ""
    return _mean_text(max(scored, key=lambda cells: sum(cell.value for cell in cells)))


def _mean_text(cells: Sequence[Cell]) -> str:
    if len(cells) == 1:
        return cells[0].text
    return f"{sum(cell.value for cell in cells) / len(cells):.1f}"


def render_overview(overview: Overview, form: str) -> str:
    """The overview as ``markdown``, ``csv`` or ``latex``."""
    from beit3_bench.harness.leaderboard.latex import tex, tex_table
    from beit3_bench.harness.leaderboard.text import csv_grid, markdown_grid

    if form == "csv":
        return csv_grid(overview.header, overview.lines)
    caption = f"Overview after Table 1 of the {BEIT3} paper"
    if form == "latex":
        body = [[tex(cell) or "--" for cell in line] for line in overview.lines]
        return tex_table(caption, overview.header, body, "l" + "r" * (len(overview.header) - 1)) + "\n"
    grid = markdown_grid(overview.header, overview.lines, right=range(1, len(overview.header)))
    return f"# {caption}\n\n{grid}\n"
