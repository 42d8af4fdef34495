"""Captioning on COCO (Karpathy split) and nocaps.

How captions are searched is the model's (for BEiT-3 paper, section 3.1.2, and official `CaptioningHandler`: no prompt, 3 beams,
length penalty 0.6, and the text length 64 of the official evaluation command; the training recipe uses 32: ``-o max_length=32``). Scored
with pycocoevalcap's formulas; references come from the split file itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from beit3_bench.backbones.abilities import Captions
from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example, Row, ScoreInputs, Split, Task
from beit3_bench.tasks.coverage import match_ids
from beit3_bench.tasks.files import field, identifier, read_json, read_records, unique, write_json
from beit3_bench.tasks.karpathy import read_karpathy, select
from beit3_bench.tasks.layouts.captions import read_captions
from beit3_bench.tasks.layouts.nocaps import read_nocaps
from beit3_bench.tasks.layouts.places import names_of
from beit3_bench.tasks.metrics.captions import CaptionScores, reduce_captions, score_captions
from beit3_bench.tasks.scores import ClusterTable, Metric, Scores

if TYPE_CHECKING:
    from beit3_bench.tasks.display import Display

METRICS = (
    Metric(
        "CIDEr",
        "fraction",
        headline=True,
        formula=reduce_captions,
        no_ratio="weighs words by how many of all images have them in their references",
    ),
    *(
        Metric(name, "fraction", formula=reduce_captions)
        for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "SPICE")
    ),
)
DOMAINS = ("in-domain", "near-domain", "out-domain")
RESULTS_FORM = 'a JSON list of {"image_id": 42, "caption": "a cat"}'


class CaptioningTask(Task):
    """What COCO captioning and nocaps share. An example is an image; its target is the list of reference captions."""

    ability = Captions
    uses_text = False
    metrics = METRICS
    score_files: ClassVar[tuple[str, ...]] = ("annotations", "allow_partial")
    row_shape: ClassVar[Mapping[str, Any]] = {"caption": str}
    training_file = "dataset_coco.json"

    @dataclass
    class Options:
        """num_beams: hypotheses kept per image; default: the model's own, 3 for BEiT-3.
        max_length: longest token sequence; default: the model's own, 64 for BEiT-3.
        length_penalty: exponent of the length by which a hypothesis is divided; default: the model's own, 0.6 for BEiT-3.
        decoder: official, with its quirks, or clean; default: official.
        """

        num_beams: int | None = None
        max_length: int | None = None
        length_penalty: float | None = None
        decoder: str | None = None

    def rows(self, examples: Sequence[Example], values: Sequence[Any], split: Split, ahead: Sequence[Any]) -> list[Row]:
        """The caption of each image, and its token ids as generated where the model says them."""
        return [
            {"id": e.id, "caption": caption.text}
            | ({} if caption.token_ids is None else {"token_ids": list(caption.token_ids)})
            for e, caption in zip(examples, values, strict=True)
        ]

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        """Caption metrics on pycocoevalcap's scale (CIDEr 0..10, the others fractions)."""
        examples = split.examples
        domains = {e.id: e.meta["domain"] for e in examples if e.meta.get("domain")}
        captions = {e.id: rows[e.id]["caption"] for e in examples}
        return self.scores_of(captions, {e.id: e.target for e in examples}, domains)

    def display(self, rows: Mapping[str, Row], split: Split, scores: Mapping[str, Mapping[str, float]]) -> Display:
        from beit3_bench.tasks.display.captions import CaptionDisplay

        return CaptionDisplay(self, split, rows, scores)

    def submission(self, rows: Mapping[str, Row], split: Split, folder: Path) -> list[Path]:
        """The official results file: ``[{"image_id", "caption"}]``."""
        path = folder / "captions_results.json"
        write_json(
            path,
            [
                {"image_id": int(e.id) if e.id.isdigit() else e.id, "caption": rows[e.id]["caption"]}
                for e in split.examples
            ],
        )
        return [path]

    @classmethod
    def score_file(cls, inputs: ScoreInputs) -> Scores:
        """Official results json against references in COCO caption format, or a Karpathy split file (its test images)."""
        if inputs.annotations is None:
            raise BenchError(f"scoring {cls.name} needs --annotations (COCO caption format or dataset_coco.json)")
        content = read_json(inputs.annotations, "caption annotations")
        references = references_of(content, inputs.annotations)
        path = inputs.predictions
        ids, captions = [], {}
        for n, record in enumerate(read_records(path, "caption results", RESULTS_FORM)):
            ids.append(identifier(record, "image_id", f"{path}: [{n}]"))
            captions[ids[-1]] = field(record, "caption", str, f"{path}: [{n}]")
        coverage = match_ids(ids, list(references), str(path), "images", inputs.allow_partial)
        references = {i: r for i, r in references.items() if i in captions}
        scores = cls.scores_of(captions, references, domains_of(content))
        if coverage < 1:
            scores.notes.append(f"partial: {len(captions)} images ({coverage:.1%} of those with references)")
        return scores

    @classmethod
    def scores_of(
        cls, captions: Mapping[str, str], references: Mapping[str, Sequence[str]], domains: Mapping[str, str]
    ) -> Scores:
        """Scores of captions by image id, in the order of ``references``.

        domains: of image ids, as far as they are known; for a task that is reported by domain.
        """
        return to_scores(score_captions(captions, references), references)

    # ---- fine-tuning ----------------------------------------------------------------------------------------------

    def training_split(self) -> Split:
        """One (image, caption) pair per reference of COCO's train and restval images."""
        data = read_captions(self.data_root, self.training_file)
        examples = []
        for image in data.select("train", "restval"):
            file = data.picture(image.path)
            examples += [
                Example(f"pair:{sentence}", (file.path,), text, image.id, None, names=names_of(file))
                for sentence, text in image.sentences
            ]
        return Split("train", tuple(examples))


def read_references(path: Path) -> dict[str, list[str]]:
    """References by image id of a file; see `references_of`."""
    return references_of(read_json(path, "caption annotations"), path)


def references_of(content: Any, path: Path) -> dict[str, list[str]]:
    """References by image id, in the file's order: COCO caption format, or the test images of a Karpathy split file.

    Args:
        content: of the file ``path``.
    """
    if isinstance(content, dict) and "annotations" in content:
        images = [
            identifier(r, "id", f"{path}: images[{n}]") for n, r in enumerate(field(content, "images", list, str(path)))
        ]
        unique(images, str(path), "image id")
        references: dict[str, list[str]] = {i: [] for i in images}
        for n, record in enumerate(field(content, "annotations", list, str(path))):
            source = f"{path}: annotations[{n}]"
            image = identifier(record, "image_id", source)
            if image not in references:
                raise BenchError(
                    f"{source}: caption of image {image}, which is not among the images; mend the file, or get it again"
                )
            references[image].append(field(record, "caption", str, source))
        references = {i: r for i, r in references.items() if r}
        if not references:
            raise BenchError(f"{path}: holds no captions; the truth of this split is not public?")
        return references
    return {i.id: [text for _, text in i.sentences] for i in select(read_karpathy(path), ("test",), path)}


def domains_of(content: Any) -> dict[str, str]:
    """Domains by image id, for the images of a nocaps file that tell them."""
    images = content.get("images") if isinstance(content, dict) else None
    known = [r for r in images or () if isinstance(r, dict) and "id" in r and r.get("domain") in DOMAINS]
    return {identifier(r, "id", "images"): r["domain"] for r in known}


def to_scores(
    scored: CaptionScores, references: Mapping[str, Sequence[str]], columns: Mapping[str, np.ndarray] | None = None
) -> Scores:
    """Wrap caption scores as the Task contract's. columns: further ones of the cluster table."""
    return Scores.of(
        NoCaps.metrics if columns else METRICS,
        ClusterTable(scored.ids, {**scored.statistics, **(columns or {})}),
        {"images": len(scored.ids), "references": sum(len(references[i]) for i in scored.ids)},
        scored.notes,
        {name: scored.per_image[name] for name in ("CIDEr",) if name in scored.per_image},
    )


def reduce_domains(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """CIDEr by domain, from columns of (sum, images)."""
    return {name: pair[..., 0] / pair[..., 1] for name, pair in sums.items() if name.startswith("CIDEr/")}


class CocoCaption(CaptioningTask):
    """COCO captioning, Karpathy test: 5,000 images."""

    name = "coco-caption"
    splits = ("test", "val")
    default_split = "test"
    layout = """\
DATA_ROOT/
  dataset_coco.json             Karpathy's split file; references come from it
  train2014/*.jpg  val2014/*.jpg"""

    def read(self, split: str) -> Split:
        data = read_captions(self.data_root, self.training_file)
        examples = []
        for image in data.select(split):
            if not image.sentences:
                raise BenchError(
                    f"{data.source}: image {image.id} has no sentences to compare with; mend the file, or get it again"
                )
            file, references = data.picture(image.path), [text for _, text in image.sentences]
            names = names_of(file)
            examples.append(Example(image.id, (file.path,), None, image.id, references, "image", names=names))
        return Split(split, tuple(examples))


class NoCaps(CaptioningTask):
    """nocaps: novel objects; evaluated with a model fine-tuned on COCO captions."""

    name = "nocaps"
    splits = ("val", "test")
    default_split = "val"
    metrics = (*METRICS, *(Metric(f"CIDEr/{d}", "fraction", formula=reduce_domains) for d in DOMAINS))
    layout = """\
DATA_ROOT/
  nocaps_val_4500_captions.json     4,500 images with 10 captions each, by domain
  nocaps_test_image_info.json       10,600 images, truth on EvalAI
  val/*.jpg  test/*.jpg             also below images/, or all in one folder"""
    files = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}  # noqa: RUF012

    def read(self, split: str) -> Split:
        data = read_nocaps(self.data_root, split, self.files[split])
        content, path = data.content, data.source
        references = references_of(content, path) if split == "val" else {}
        examples = []
        for n, record in enumerate(field(content, "images", list, str(path))):
            source = f"{path}: images[{n}]"
            image = identifier(record, "id", source)
            file = data.picture(field(record, "file_name", str, source))
            if split == "val" and image not in references:
                raise BenchError(f"{source}: image {image} has no captions; mend the file, or get it again")
            meta, names = {"domain": record.get("domain")}, names_of(file)
            examples.append(
                Example(image, (file.path,), None, image, references.get(image), "image", meta, names=names)
            )
        if not examples:
            raise BenchError(f"{path}: holds no images; mend the file, or get it again")
        unique((e.id for e in examples), str(path), "image id")
        return Split(split, tuple(examples))

    @classmethod
    def scores_of(
        cls, captions: Mapping[str, str], references: Mapping[str, Sequence[str]], domains: Mapping[str, str]
    ) -> Scores:
        """Overall, and CIDEr per domain: each domain is scored as a set of its own, with its own document frequencies."""
        columns: dict[str, np.ndarray] = {}
        notes: list[str] = []
        for domain in DOMAINS:
            part = [i for i in references if domains.get(i) == domain]
            if len(part) == 1:
                notes.append(f"no CIDEr/{domain}: it has a single image, and document frequencies need at least two")
            if len(part) > 1:
                one = score_captions({i: captions[i] for i in part}, {i: references[i] for i in part}, ["CIDEr"])
                each = one.per_image["CIDEr"]
                columns[f"CIDEr/{domain}"] = np.array([[each.get(i, 0.0), float(i in each)] for i in references])
        scores = to_scores(score_captions(captions, references), references, columns)
        unknown = [i for i in references if domains.get(i) not in DOMAINS]
        if len(unknown) == len(references):
            notes.append("no CIDEr per domain: the annotation file does not tell the domains")
        elif unknown:
            first = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            notes.append(f"{len(unknown):,} images are of no known domain, and in the overall numbers only ({first})")
        scores.notes += notes
        return scores

    def training_split(self) -> Split:
        raise BenchError(
            "nocaps has no training split; fine-tune on coco-caption and evaluate that checkpoint with --task nocaps"
        )
