"""Captioning on COCO (Karpathy split) and nocaps: masked conditional generation with beam search.

Protocol (BEiT-3 paper, section 3.1.2; official `CaptioningHandler`): no prompt, 3 beams, length penalty 0.6. The text length
is 64, as in the official evaluation command (the training recipe uses 32: ``-o max_length=32``). Scored with
pycocoevalcap's formulas; references come from the split file itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example, Row, ScoreInputs, Task
from beit3_bench.tasks.coverage import match_ids
from beit3_bench.tasks.files import field, find, identifier, read_json, read_records, unique, write_json
from beit3_bench.tasks.karpathy import read_karpathy, select
from beit3_bench.tasks.metrics.captions import CaptionScores, reduce_captions, score_captions
from beit3_bench.tasks.scores import ClusterTable, Metric, Scores

if TYPE_CHECKING:
    import torch

METRICS = (
    Metric("CIDEr", "fraction", headline=True),
    *(Metric(name, "fraction") for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "SPICE")),
)
DOMAINS = ("in-domain", "near-domain", "out-domain")
RESULTS_FORM = 'a JSON list of {"image_id": 42, "caption": "a cat"}'


class CaptioningTask(Task):
    """What COCO captioning and nocaps share. An example is an image; its target is the list of reference captions."""

    head = "coco-caption"
    metrics = METRICS
    row_shape: ClassVar[Mapping[str, Any]] = {"caption": str}
    training_file = "dataset_coco.json"

    @dataclass
    class Options:
        """num_beams, max_length, length_penalty, decoder: see `backbones.beit3.generation.Decoding`.

        length_penalty: exponent of the length by which a hypothesis is divided.
        """

        num_beams: int = 3
        max_length: int = 64
        length_penalty: float = 0.6
        decoder: str = "official"

    def __init__(self, data_root: str | Path, options: Mapping[str, str] | None = None):
        from beit3_bench.backbones.beit3.generation import Decoding

        super().__init__(data_root, options)
        o = self.options
        Decoding(o.num_beams, o.max_length, o.length_penalty, o.decoder)  # checked before a model is loaded
        self.recipe: dict[str, Any] = {}

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        return {"ids": [e.id for e in examples], "images": self.load_images([e.images[0] for e in examples])}

    def predict(self, model: torch.nn.Module, batch: dict[str, Any]) -> list[Row]:
        """The caption of each image, and its token ids as generated."""
        assert self.preprocessing is not None
        assert self.tokenizer is not None
        o = self.options
        images = self.preprocessing.normalise(batch["images"])
        ids = model.generate(images, o.num_beams, o.max_length, o.length_penalty, o.decoder)
        return [
            {"id": i, "caption": self.tokenizer.decode(tokens), "token_ids": tokens}
            for i, tokens in zip(batch["ids"], ids, strict=True)
        ]

    def score(self, rows: Mapping[str, Row], examples: Sequence[Example]) -> Scores:
        """Caption metrics on pycocoevalcap's scale (CIDEr 0..10, the others fractions)."""
        domains = {e.id: e.meta["domain"] for e in examples if e.meta.get("domain")}
        captions = {e.id: rows[e.id]["caption"] for e in examples}
        return self.scores_of(captions, {e.id: e.target for e in examples}, domains)

    def estimate(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return reduce_captions(sums)

    def submission(self, rows: Mapping[str, Row], examples: Sequence[Example], folder: Path) -> list[Path]:
        """The official results file: ``[{"image_id", "caption"}]``."""
        path = folder / "captions_results.json"
        write_json(
            path,
            [{"image_id": int(e.id) if e.id.isdigit() else e.id, "caption": rows[e.id]["caption"]} for e in examples],
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

    def configure_training(self, recipe: Mapping[str, Any]) -> None:
        self.recipe = dict(recipe)

    def training_examples(self) -> list[Example]:
        """One (image, caption) pair per reference of COCO's train and restval images."""
        path = self.data_root / self.training_file
        return [
            Example(f"pair:{sentence}", (str(self.data_root / image.path),), text, image.id, None)
            for image in select(read_karpathy(path), ("train", "restval"), path)
            for sentence, text in image.sentences
        ]

    def training_collate(
        self, examples: Sequence[Example], generator: torch.Generator, image_ops: Callable
    ) -> dict[str, Any]:
        """Images, captions with masks, and which positions were masked."""
        import torch

        from beit3_bench.backbones.beit3.training.augment import derived
        from beit3_bench.backbones.preprocess import decode

        assert self.tokenizer is not None
        images = torch.stack([image_ops(decode(e.images[0]), generator) for e in examples])
        # Truncation is the tokenizer's; a recipe with shorter text sets the tokenizer's length.
        token_ids, padding_mask = self.pad_text(examples)
        masked, positions = [], []
        for e, row in zip(examples, token_ids, strict=True):
            # A stream per caption: the masks must not depend on which process, or with which others, it is collated.
            own = derived(generator, e.id)
            ids, chosen = mask_caption(
                row, len(e.token_ids or ()), self.recipe["mask_prob"], self.tokenizer.mask_token_id, own
            )
            masked.append(ids)
            positions.append(chosen)
        return {
            "ids": [e.id for e in examples],
            "images": images,
            "token_ids": torch.stack(masked),
            "padding_mask": padding_mask,
            "masked_positions": torch.stack(positions),
            "labels": token_ids,
        }

    def loss(self, model: torch.nn.Module, batch: dict[str, Any], gather: Callable, step: int = 0) -> torch.Tensor:
        """Label-smoothed masked language modelling at the masked positions (official `BertCaptioningLoss`)."""
        from beit3_bench.backbones.beit3.training.losses import captioning_loss

        assert self.preprocessing is not None
        positions = batch["masked_positions"]
        logits = model(
            self.preprocessing.normalise(batch["images"]), batch["token_ids"], batch["padding_mask"], positions
        )
        r = self.recipe
        return captioning_loss(
            logits,
            batch["labels"][positions],
            r["label_smoothing"],
            r["drop_worst_ratio"],
            r["drop_worst_after"],
            step,
            gather,
        )


def mask_caption(
    token_ids: torch.Tensor, length: int, mask_prob: float, mask_id: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask a caption for training (official `CaptioningDataset._masking_on_text_tokens`).

    int(length * mask_prob + 0.5) of the positions 1..length-1 are drawn, at least one: SEP can be, CLS never. Of these
    80% become the mask, 10% stay, 10% become a random id from 3 on.

    Args:
        token_ids: int64 (L,), CLS first; ``length`` of them are not padding.

    Returns:
        The masked ids (L,), and bool (L,) of the drawn positions.
    """
    import torch

    count = max(min(int(length * mask_prob + 0.5), length - 1), 1)
    drawn = 1 + torch.randperm(length - 1, generator=generator)[:count]
    positions = torch.zeros(len(token_ids), dtype=torch.bool)
    positions[drawn] = True
    dice = torch.rand(count, generator=generator)
    random = torch.randint(3, mask_id + 1, (count,), generator=generator)
    old = token_ids[drawn]
    masked = token_ids.clone()
    masked[drawn] = torch.where(dice < 0.8, torch.full_like(old, mask_id), torch.where(dice < 0.9, old, random))
    return masked, positions


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
    scored: CaptionScores, references: Mapping[str, Sequence[str]], extra: Mapping[str, float] | None = None
) -> Scores:
    """Wrap caption scores as the Task contract's."""
    return Scores(
        metrics={**scored.metrics, **(extra or {})},
        counts={"images": len(scored.ids), "references": sum(len(references[i]) for i in scored.ids)},
        table=ClusterTable(scored.ids, dict(scored.statistics)),
        notes=list(scored.notes),
        samples={name: scored.per_image[name] for name in ("CIDEr",) if name in scored.per_image},
    )


class CocoCaption(CaptioningTask):
    """COCO captioning, Karpathy test: 5,000 images."""

    name = "coco-caption"
    title = "COCO captioning (Karpathy)"
    splits = ("test", "val")
    default_split = "test"
    layout = """\
DATA_ROOT/
  dataset_coco.json             Karpathy's split file; references come from it
  train2014/*.jpg  val2014/*.jpg"""

    def examples(self, split: str) -> list[Example]:
        path = self.data_root / self.training_file
        examples = []
        for image in select(read_karpathy(path), (split,), path):
            if not image.sentences:
                raise BenchError(
                    f"{path}: image {image.id} has no sentences to compare with; mend the file, or get it again"
                )
            file = str(self.data_root / image.path)
            examples.append(Example(image.id, (file,), None, image.id, [text for _, text in image.sentences], "image"))
        return examples


class NoCaps(CaptioningTask):
    """nocaps: novel objects; evaluated with a model fine-tuned on COCO captions."""

    name = "nocaps"
    title = "nocaps"
    splits = ("val", "test")
    default_split = "val"
    metrics = (*METRICS, *(Metric(f"CIDEr/{d}", "fraction") for d in DOMAINS))
    layout = """\
DATA_ROOT/
  nocaps_val_4500_captions.json     4,500 images with 10 captions each, by domain
  nocaps_test_image_info.json       10,600 images, truth on EvalAI
  val/*.jpg  test/*.jpg             also below images/, or all in one folder"""
    files = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}  # noqa: RUF012

    def examples(self, split: str) -> list[Example]:
        path = find(self.data_root, self.files[split], (".", "annotations"), "nocaps annotations")
        content = read_json(path, "nocaps")
        folder = find(self.data_root, split, (".", "images"), "nocaps image folder")
        references = references_of(content, path) if split == "val" else {}
        examples = []
        for n, record in enumerate(field(content, "images", list, str(path))):
            source = f"{path}: images[{n}]"
            image = identifier(record, "id", source)
            file = str(folder / field(record, "file_name", str, source))
            if split == "val" and image not in references:
                raise BenchError(f"{source}: image {image} has no captions; mend the file, or get it again")
            examples.append(
                Example(image, (file,), None, image, references.get(image), "image", {"domain": record.get("domain")})
            )
        if not examples:
            raise BenchError(f"{path}: holds no images; mend the file, or get it again")
        unique((e.id for e in examples), str(path), "image id")
        return examples

    @classmethod
    def scores_of(
        cls, captions: Mapping[str, str], references: Mapping[str, Sequence[str]], domains: Mapping[str, str]
    ) -> Scores:
        """Overall, and CIDEr per domain: each domain is scored as a set of its own, with its own document frequencies."""
        extra: dict[str, float] = {}
        columns: dict[str, np.ndarray] = {}
        notes: list[str] = []
        for domain in DOMAINS:
            part = [i for i in references if domains.get(i) == domain]
            if len(part) == 1:
                notes.append(f"no CIDEr/{domain}: it has a single image, and document frequencies need at least two")
            if len(part) > 1:
                one = score_captions({i: captions[i] for i in part}, {i: references[i] for i in part}, ["CIDEr"])
                extra[f"CIDEr/{domain}"] = one.metrics["CIDEr"]
                each = one.per_image["CIDEr"]
                columns[f"CIDEr/{domain}"] = np.array([[each.get(i, 0.0), float(i in each)] for i in references])
        scores = to_scores(score_captions(captions, references), references, extra)
        assert scores.table is not None
        scores.table.columns |= columns
        unknown = [i for i in references if domains.get(i) not in DOMAINS]
        if len(unknown) == len(references):
            notes.append("no CIDEr per domain: the annotation file does not tell the domains")
        elif unknown:
            first = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            notes.append(f"{len(unknown):,} images are of no known domain, and in the overall numbers only ({first})")
        scores.notes += notes
        return scores

    def estimate(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        domains = {name: pair[..., 0] / pair[..., 1] for name, pair in sums.items() if name.startswith("CIDEr/")}
        return reduce_captions(sums) | domains

    def training_examples(self) -> list[Example]:
        raise BenchError(
            "nocaps has no training split; fine-tune on coco-caption and evaluate that checkpoint with --task nocaps"
        )
