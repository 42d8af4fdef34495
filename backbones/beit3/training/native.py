"""Fine-tuning of the native heads: what a batch of each holds, and what is lost on it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from beit3_bench.backbones.abilities import Batch, Item
from beit3_bench.backbones.beit3.checkpoint import official_state_dict
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.loading import TEXT_MULTIPLES, head_of, native_ability
from beit3_bench.backbones.beit3.models import HEADS
from beit3_bench.backbones.beit3.native import Captioner, NativeAbility, PairClassifier, TextImageClassifier
from beit3_bench.backbones.beit3.tokenizer import Tokenizer
from beit3_bench.backbones.beit3.tokens import compare_tokenizer
from beit3_bench.backbones.beit3.training.augment import BatchMixing, TrainingTransform, mixes_samples, refuse_mixing
from beit3_bench.backbones.beit3.training.groups import parameter_groups
from beit3_bench.backbones.beit3.training.losses import (
    captioning_loss,
    classification_loss,
    contrastive_loss,
    nlvr2_loss,
    vqa_loss,
)
from beit3_bench.backbones.beit3.training.masking import mask_caption
from beit3_bench.backbones.beit3.training.memory import gathered_parts, memory_bytes
from beit3_bench.backbones.beit3.training.start import InitialModel, find_tokenizer, initial_model, model_config
from beit3_bench.backbones.beit3.weights import TOKENIZER_FILE
from beit3_bench.backbones.family import Asked, digest
from beit3_bench.backbones.preprocess import Preprocessing, decode
from beit3_bench.backbones.reading import NativeReader
from beit3_bench.backbones.recipe import Recipe
from beit3_bench.backbones.seeds import derived
from beit3_bench.backbones.training import Training, TrainingOptions
from beit3_bench.errors import BenchError


@dataclass(frozen=True)
class NativeStart:
    """What a training of a native head is made from.

    arguments: of the head, as a checkpoint carries them.
    """

    asked: Asked
    options: TrainingOptions
    head: str
    arguments: dict[str, Any]
    config: BEiT3Config
    initial: InitialModel
    preprocessing: Preprocessing
    tokenizer: Tokenizer | None
    tokenizer_file: Path | None

    @property
    def reads_text(self) -> bool:
        """Whether the head reads or writes text."""
        return self.asked.text or self.head == "coco-caption"


class NativeTraining(Training):
    """What the native heads share; subclasses say what a batch holds and what is lost on it."""

    ability: NativeAbility
    shard_layers = ("Layer",)
    mixes: ClassVar[bool] = False
    """Whether samples can be mixed: images alone, with a class each."""

    def __init__(self, start: NativeStart):
        recipe, checkpoint = start.options.recipe, start.options.source and start.options.source.checkpoint
        if not self.mixes:
            refuse_mixing(recipe, start.asked.task)
        self.origin, self.recipe, self.config = start, recipe, start.config
        reader = NativeReader(
            start.preprocessing, start.tokenizer if start.reads_text else None, TEXT_MULTIPLES.get(start.head, 8)
        )
        self.ability = native_ability(start.head, start.initial.model, reader, start.preprocessing, start.asked.values)
        self.transform = training_transform(recipe)
        report, tokenizer = start.initial.report, start.tokenizer
        self.settings = start.config.to_dict()
        self.preprocessing = start.preprocessing.to_dict()
        self.fingerprints = {
            "model": digest(start.config.replace(checkpoint_activations=False).to_dict()),
            "tokenizer": tokenizer.fingerprint if tokenizer else "none",
            "start": checkpoint.sha256 if checkpoint else "from scratch",
        }
        self.start = {
            "checkpoint": checkpoint.path.name if checkpoint else None,
            "sha256": checkpoint.sha256 if checkpoint else None,
            "missing": list(report.missing) if report else [],
            "unexpected": list(report.unexpected) if report else [],
            "resized": dict(report.resized) if report else {},
        }
        self.new = start.initial.new
        self.notes = list(report.notes) if report else []
        self.companions = {TOKENIZER_FILE: start.tokenizer_file} if start.tokenizer_file else {}
        self.resolved = {}
        self.longest, self.most_images = 0, 1

    # ---- data -----------------------------------------------------------------------------------------------------

    def prepare(self, items: Sequence[Item]) -> None:
        super().prepare(items)
        self.longest = max([self.longest, *(len(self.ability.reader.ids(item)) for item in items)])
        self.most_images = max([self.most_images, *(len(item.images) for item in items)])

    def images(self, items: Sequence[Item], generator: torch.Generator) -> Tensor:
        """Augmented images of all items, one behind the other: uint8 (images, 3, S, S)."""
        return torch.stack([self.transform(opened(image), generator) for item in items for image in item.images])

    def texts(self, items: Sequence[Item]) -> Batch:
        """``token_ids`` (n, L), padded to the longest, and ``padding_mask``."""
        token_ids, padding_mask = self.ability.reader.pad(items, 1)
        return {"token_ids": token_ids, "padding_mask": padding_mask}

    # ---- what is kept ---------------------------------------------------------------------------------------------

    def groups(self) -> list[dict[str, Any]]:
        """The official optimizer's; see `groups.parameter_groups`."""
        r = self.recipe
        return parameter_groups(self.module, self.config.depth, r.weight_decay, r.layer_decay, r.head_lr_factor)

    def metadata(self) -> dict[str, Any]:
        start, labels = self.origin, self.origin.asked.labels
        vocabulary = start.head == "vqav2" and labels is not None
        return {
            "head": start.head,
            "preset": start.options.preset,
            "config": self.config.replace(drop_path_rate=0.0, checkpoint_activations=False).to_dict(),
            "preprocessing": {k: list(v) if isinstance(v, tuple) else v for k, v in self.preprocessing.items()},
            "tokenizer": start.tokenizer.fingerprint if start.tokenizer else None,
            "head_arguments": start.arguments,
            # by which readers of the first edition know the answers
            "vocabulary": hashlib.sha256("\n".join(labels or ()).encode()).hexdigest() if vocabulary else None,
            "labels": None if labels is None else list(labels),
        }

    def state_dict(self, module: nn.Module) -> dict[str, Tensor]:
        return official_state_dict(module)

    def memory(self, samples: int, dtype: str, average: bool, shards: int = 1) -> dict[str, int]:
        parameters = sum(p.numel() for p in self.module.parameters())
        parts = gathered_parts(self.module, self.shard_layers)
        passes = samples * self.most_images
        return memory_bytes(self.config, parameters, passes, self.longest, dtype, average, shards, **parts)


class ContrastiveTraining(NativeTraining):
    """Pairs of image and text in one space (official `ClipLoss`, over the global batch)."""

    def collate(self, items: Sequence[Item], generator: torch.Generator) -> Batch:
        """``images``, ``token_ids``, ``padding_mask``, and ``groups`` int64 (n,) where pairs have targets."""
        batch = {**self.texts(items), "images": self.images(items, generator)}
        if items[0].target is not None:
            batch["groups"] = torch.tensor([item.target for item in items])
        return batch

    def loss(self, module: nn.Module, batch: Batch, gather: Callable, step: int) -> Tensor:
        """Symmetric cross-entropy; pairs of one group are not each other's negatives."""
        images = self.ability.normalise(batch["images"])
        image, text, scale = module(images, batch["token_ids"], batch["padding_mask"])
        return contrastive_loss(image, text, scale, gather, groups=batch.get("groups"))


class AnswerTraining(NativeTraining):
    """A question about an image, answered by weights over the answers (official `VQAHandler`)."""

    def collate(self, items: Sequence[Item], generator: torch.Generator) -> Batch:
        """``images``, ``token_ids``, ``padding_mask``, ``labels`` float32 (n, answers)."""
        labels = torch.zeros(len(items), len(self.origin.asked.labels or ()))
        for row, item in zip(labels, items, strict=True):
            row[list(item.target)] = torch.tensor(list(item.target.values()))
        return {**self.texts(items), "images": self.images(items, generator), "labels": labels}

    def loss(self, module: nn.Module, batch: Batch, gather: Callable, step: int) -> Tensor:
        """Binary cross-entropy with soft labels, times the number of labels."""
        logits = module(self.ability.normalise(batch["images"]), batch["token_ids"], batch["padding_mask"])
        return vqa_loss(logits, batch["labels"])


class TextTraining(NativeTraining):
    """A text about one image or two, classified (official `NLVR2Handler`; the same loss for SNLI-VE, which has no official one)."""

    ability: PairClassifier | TextImageClassifier

    def collate(self, items: Sequence[Item], generator: torch.Generator) -> Batch:
        """``images`` of all samples with their ``image_index``, ``token_ids``, ``padding_mask``, ``labels`` int64 (n,)."""
        images = self.images(items, generator)
        labels = torch.tensor([item.target for item in items])
        return {**self.texts(items), "images": images, "image_index": torch.arange(len(images)), "labels": labels}

    def loss(self, module: nn.Module, batch: Batch, gather: Callable, step: int) -> Tensor:
        """Cross-entropy."""
        return nlvr2_loss(self.ability.logits(module, batch), batch["labels"])


class ImageTraining(NativeTraining):
    """An image alone, classified (official `ImageNetHandler`)."""

    mixes = True

    def __init__(self, start: NativeStart):
        super().__init__(start)
        r = start.options.recipe
        self.mixing = None
        if mixes_samples(r):
            classes = start.arguments["num_classes"]
            self.mixing = BatchMixing(classes, r.erase, r.mixup, r.cutmix, r.mix_switch, r.label_smoothing)

    def collate(self, items: Sequence[Item], generator: torch.Generator) -> Batch:
        """``images``, ``labels`` int64 (n,)."""
        return {"images": self.images(items, generator), "labels": torch.tensor([item.target for item in items])}

    def mixed(self, batch: Batch, seed: int) -> Batch:
        """Erase and mix; images are then float, already normalised."""
        if self.mixing is None:
            return batch
        images, labels = self.mixing(self.ability.normalise(batch["images"]), batch["labels"], seed)
        return {**batch, "images": images, "labels": labels}

    def loss(self, module: nn.Module, batch: Batch, gather: Callable, step: int) -> Tensor:
        """Cross-entropy with label smoothing, or with soft targets where mixup made them (timm's losses)."""
        images = batch["images"]
        logits = module(images if images.is_floating_point() else self.ability.normalise(images))
        return classification_loss(logits, batch["labels"], self.recipe.label_smoothing)


class CaptionTraining(NativeTraining):
    """Masked words of a caption (official `BertCaptioningLoss`)."""

    def __init__(self, start: NativeStart):
        super().__init__(start)
        assert isinstance(self.ability, Captioner)
        self.resolved = dataclasses.asdict(self.ability.decoding)

    def collate(self, items: Sequence[Item], generator: torch.Generator) -> Batch:
        """``images``, ``token_ids`` with masks, ``padding_mask``, ``masked_positions`` bool (n, L), ``labels``: the ids without
        masks.
        """
        tokenizer = self.origin.tokenizer
        assert tokenizer is not None
        texts = self.texts(items)
        masked = [
            # A stream per caption: the masks must not depend on which process, or with which others, it is collated.
            mask_caption(
                row,
                len(self.ability.reader.ids(item)),
                self.recipe.mask_prob,
                tokenizer.mask_token_id,
                derived(generator, item.id),
            )
            for item, row in zip(items, texts["token_ids"], strict=True)
        ]
        return {
            "images": self.images(items, generator),
            "token_ids": torch.stack([ids for ids, _ in masked]),
            "padding_mask": texts["padding_mask"],
            "masked_positions": torch.stack([positions for _, positions in masked]),
            "labels": texts["token_ids"],
        }

    def loss(self, module: nn.Module, batch: Batch, gather: Callable, step: int) -> Tensor:
        """Label-smoothed masked language modelling at the masked positions."""
        positions, r = batch["masked_positions"], self.recipe
        images = self.ability.normalise(batch["images"])
        logits = module(images, batch["token_ids"], batch["padding_mask"], positions)
        target = batch["labels"][positions]
        return captioning_loss(logits, target, r.label_smoothing, r.drop_worst_ratio, r.drop_worst_after, step, gather)


TRAININGS: dict[str, type[NativeTraining]] = {
    "retrieval": ContrastiveTraining,
    "vqav2": AnswerTraining,
    "nlvr2": TextTraining,
    "snli-ve": TextTraining,
    "imagenet-linear": ImageTraining,
    "coco-caption": CaptionTraining,
}
"""By head."""


def opened(image: Any) -> Any:
    """A file or a PIL image as a PIL RGB image."""
    if isinstance(image, (str, Path)):
        return decode(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def training_transform(recipe: Recipe) -> TrainingTransform:
    """The augmentation that a recipe asks for."""
    r = recipe
    return TrainingTransform(r.image_size, r.crop_scale, r.flip, r.vl_randaugment, r.auto_augment, r.color_jitter)


def start_native(asked: Asked, options: TrainingOptions) -> NativeTraining:
    """See `family.Family.start_training`."""
    head, checkpoint = head_of(asked), options.source and options.source.checkpoint
    reads_text = asked.text or head == "coco-caption"
    arguments = {}
    if HEADS[head].output_layer:
        if asked.labels is None:
            raise BenchError(f"task {asked.task}: its training data do not say what the outputs of the head mean")
        arguments = {"num_classes": len(asked.labels)}
    tokenizer, file = find_tokenizer(asked.task, options, reads_text)
    trained = checkpoint.metadata.get("tokenizer") if checkpoint else None
    if checkpoint and tokenizer and trained and trained != tokenizer.fingerprint:
        raise BenchError(
            f"{checkpoint.path}: was trained with another tokenizer than {file}; give its own with --tokenizer"
        )
    with torch.device("meta") if options.shapes_only else nullcontext():
        config = model_config(options.recipe, options.preset, checkpoint, tokenizer)
        if checkpoint and tokenizer and file and reads_text:
            compare_tokenizer(tokenizer, file, config, checkpoint.metadata, checkpoint.path)
        initial = initial_model(head, arguments, config, checkpoint, options.seed, options.recipe.glorot)
    preprocessing = Preprocessing.for_head(head, options.recipe.image_size)
    start = NativeStart(asked, options, head, arguments, config, initial, preprocessing, tokenizer, file)
    return TRAININGS[head](start)
