"""Training of the native heads: what a batch holds, that a sample looks the same beside others, what is refused, what is kept."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from beit3_recipes import load_recipe
from goldens import COMMITTED
from PIL import Image

from beit3_bench.backbones.abilities import Answers, Captions, Classifies, Embeds, Item
from beit3_bench.backbones.beit3.family import BEiT3Family
from beit3_bench.backbones.beit3.training import native
from beit3_bench.backbones.family import Asked
from beit3_bench.backbones.training import Training, TrainingOptions
from beit3_bench.errors import BenchError

KINDS: dict[str, Asked] = {
    "flickr30k": Asked(Embeds, "flickr30k"),
    "vqav2": Asked(Answers, "vqav2", labels=("yes", "no", "red")),
    "nlvr2": Asked(Classifies, "nlvr2", images=2, labels=("False", "True")),
    "imagenet-linear": Asked(Classifies, "imagenet-linear", text=False, labels=("a", "b", "c", "d")),
    "coco-caption": Asked(Captions, "coco-caption", text=False, values={"max_length": 9}),
}
TARGETS: dict[str, list[Any]] = {
    "flickr30k": [7, 7, 2],
    "vqav2": [{0: 1.0, 2: 0.3}, {1: 0.6}, {2: 0.9}],
    "nlvr2": [1, 0, 1],
    "imagenet-linear": [3, 0, 1],
    "coco-caption": [None, None, None],
}
TEXTS = ["a red star", "a small blue ring above a green square", "two stars"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and six images."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copy(COMMITTED / "tokenizer" / "tiny.spm", folder / "beit3.spm")
    for n in range(6):
        noise = np.random.default_rng(n).integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{n}.png")
    return folder


def start(task: str, folder: Path, overrides: dict[str, str] | None = None, **options: Any) -> Training:
    recipe = load_recipe(task, "tiny", {"image_size": "32", **(overrides or {})})
    asked = KINDS[task]
    return BEiT3Family().start_training(asked, TrainingOptions(recipe, "tiny", data_root=folder, **options))


def items(task: str, folder: Path) -> list[Item]:
    asked = KINDS[task]
    files = [str(folder / f"{n}.png") for n in range(6)]
    texts = TEXTS if asked.text or task == "coco-caption" else [None] * 3
    images = [tuple(files[2 * n : 2 * n + asked.images]) for n in range(3)]
    parts = zip(images, texts, TARGETS[task], strict=True)
    return [Item(f"id{n}", files, text, target=target) for n, (files, text, target) in enumerate(parts)]


def generator(seed: int = 4) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("task", KINDS)
def test_a_sample_looks_the_same_whatever_stands_beside_it(task, folder):
    training, all_items = start(task, folder), items(task, folder)
    training.prepare(all_items)
    together = training.collate(all_items, generator())
    for n, item in enumerate(all_items):
        alone = training.collate([item], generator())
        per = KINDS[task].images
        assert torch.equal(alone["images"], together["images"][n * per : (n + 1) * per])
        for key in ("token_ids", "labels", "masked_positions"):
            if key in alone:
                part = together[key][n]
                assert torch.equal(alone[key][0], part[: alone[key].shape[1]] if part.ndim else part), key
    other = training.collate(all_items, generator(5))
    assert not torch.equal(other["images"], together["images"])


@pytest.mark.parametrize("task", KINDS)
def test_the_loss_reaches_the_head_and_is_finite(task, folder):
    training, all_items = start(task, folder), items(task, folder)
    training.prepare(all_items)
    loss = training.loss(training.module.train(), training.collate(all_items, generator()), lambda x: x, 0)
    assert loss.ndim == 0
    assert loss.isfinite()
    loss.backward()
    heads = [p.grad for name, p in training.module.named_parameters() if not name.startswith("beit3.")]
    assert any(grad is not None and bool(grad.abs().sum() > 0) for grad in heads)


def test_pairs_with_targets_are_groups_and_pairs_without_are_not(folder):
    training, pairs = start("flickr30k", folder), items("flickr30k", folder)
    training.prepare(pairs)
    assert training.collate(pairs, generator())["groups"].tolist() == [7, 7, 2]
    plain = [Item(item.id, item.images, item.text) for item in pairs]
    assert "groups" not in training.collate(plain, generator())


def test_answers_have_weights_and_pairs_two_images_each(folder):
    training, questions = start("vqav2", folder), items("vqav2", folder)
    training.prepare(questions)
    labels = training.collate(questions, generator())["labels"]
    np.testing.assert_allclose(labels, [[1, 0, 0.3], [0, 0.6, 0], [0, 0, 0.9]])
    training, sentences = start("nlvr2", folder), items("nlvr2", folder)
    training.prepare(sentences)
    batch = training.collate(sentences, generator())
    assert (len(batch["images"]), batch["image_index"].tolist(), batch["labels"].tolist()) == (
        6,
        [*range(6)],
        [1, 0, 1],
    )


def test_masks_hide_words_of_the_caption_and_the_rest_is_as_it_was(folder):
    training, captions = start("coco-caption", folder), items("coco-caption", folder)
    training.prepare(captions)
    batch = training.collate(captions, generator())
    hidden = batch["masked_positions"]
    assert (hidden.sum(dim=1) >= 1).all()
    assert not hidden[:, 0].any()
    assert torch.equal(batch["token_ids"][~hidden], batch["labels"][~hidden])
    assert not (hidden & batch["padding_mask"]).any()


def test_mixing_is_for_images_with_a_class(folder):
    overrides = {"mixup": "0.8", "erase": "0.5"}
    training, images = start("imagenet-linear", folder, overrides), items("imagenet-linear", folder)
    batch = training.mixed(training.collate([*images, images[0]], generator()), 3)
    assert batch["images"].is_floating_point()
    assert batch["labels"].shape == (4, 4)
    torch.testing.assert_close(batch["labels"].sum(dim=1), torch.ones(4))
    for task in set(KINDS) - {"imagenet-linear"}:
        with pytest.raises(BenchError, match=f"task {task}: erase, mixup and cutmix need class labels"):
            start(task, folder, overrides)


def test_label_smoothing_of_the_recipe_counts(folder):
    losses = []
    for smoothing in ("0", "0.3"):
        training = start("imagenet-linear", folder, {"label_smoothing": smoothing})
        batch = training.collate(items("imagenet-linear", folder), generator())
        losses.append(training.loss(training.module.eval(), batch, lambda x: x, 0).item())
    assert losses[0] != losses[1]


def test_images_that_are_no_files_are_taken_too(folder):
    training, images = start("imagenet-linear", folder), items("imagenet-linear", folder)
    opened = [Item(item.id, (Image.open(item.images[0]).convert("RGBA"),), target=item.target) for item in images]
    files, pictures = (training.collate(given, generator()) for given in (images, opened))
    assert torch.equal(files["images"], pictures["images"])


# ---- starts and checkpoints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", KINDS)
def test_a_checkpoint_carries_what_its_evaluation_needs(task, folder):
    training, labels = start(task, folder), KINDS[task].labels
    m = training.metadata()
    assert m["labels"] == (None if labels is None else list(labels))
    assert m["head_arguments"] == ({} if labels is None else {"num_classes": len(labels)})
    assert m["preprocessing"]["mode"] == ("crop" if task == "imagenet-linear" else "squash")
    assert m["tokenizer"] == training.fingerprints["tokenizer"]
    assert m["config"]["drop_path_rate"] == 0.0
    answers = hashlib.sha256(b"yes\nno\nred").hexdigest()
    assert m["vocabulary"] == (answers if task == "vqav2" else None)
    assert training.companions == {"beit3.spm": folder / "beit3.spm"}
    searched = {"num_beams": 3, "max_length": 9, "length_penalty": 0.6, "decoder": "official"}
    assert training.resolved == (searched if task == "coco-caption" else {})


def test_a_tokenizer_is_needed_where_there_is_text(folder, tmp_path):
    for task in set(KINDS) - {"imagenet-linear"}:
        with pytest.raises(BenchError, match=rf"task {task} needs the tokenizer and there is no {tmp_path}/beit3\.spm"):
            start(task, tmp_path)
    training = start("imagenet-linear", tmp_path)
    assert (training.companions, training.fingerprints["tokenizer"]) == ({}, "none")
    named = start("vqav2", tmp_path, tokenizer=folder / "beit3.spm")
    assert named.companions == {"beit3.spm": folder / "beit3.spm"}


def test_a_classifier_without_labels_is_refused(folder):
    recipe = load_recipe("vqav2", "tiny")
    with pytest.raises(BenchError, match="do not say what the outputs of the head mean"):
        native.start_native(Asked(Answers, "vqav2"), TrainingOptions(recipe, "tiny", data_root=folder))


def test_memory_grows_with_samples_images_and_text_and_shrinks_with_shards(folder):
    training, sentences = start("nlvr2", folder, shapes_only=True), items("nlvr2", folder)
    assert all(p.is_meta for p in training.module.parameters())
    without = training.memory(4, "fp32", False)
    training.prepare(sentences)
    one, two = training.memory(4, "fp32", False), training.memory(8, "fp32", False)
    assert one["activations"] > 2 * without["activations"]  # two images, and words beside them
    assert two["activations"] == 2 * one["activations"]
    assert one["weights"] == 16 * sum(p.numel() for p in training.module.parameters())
    assert training.memory(4, "fp32", False, shards=4)["weights"] == one["weights"] // 4
    assert training.memory(4, "bf16", False)["activations"] == one["activations"] // 2
