"""The leak guard: which checkpoint is warned about on which split, and that the table fits the registries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from native import invoke, run_words

from beit3_bench.backbones.released import released_files
from beit3_bench.harness.evidence.leaks import SEEN, find_leaks, trained_on
from beit3_bench.tasks.facts import read_facts
from beit3_bench.tasks.registry import get_task, task_names


def test_every_leak_is_of_data_that_something_is_trained_on_and_of_a_split_of_its_task():
    facts = {task: read_facts(task) for task in task_names()}
    known = {data for weight in released_files() for data in weight.trained_on}
    known |= {data for of_task in facts.values() for data in of_task.trained_on}
    assert sum(len(of_task.leaks) for of_task in facts.values()) >= 44
    for task, of_task in facts.items():
        for leak in of_task.leaks:
            assert leak.data in known, leak
            assert leak.seen in SEEN
            assert set(leak.splits) <= set(get_task(task).splits), leak
        pairs = [(leak.data, split) for leak in of_task.leaks for split in leak.splits]
        assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize(
    ("task", "split", "checkpoint", "metadata", "words"),
    [
        ("vqav2", "val", "beit3_base_patch16_480_vqa.pth", {}, ["has seen these very samples"]),
        ("vqav2", "minival", "beit3_base_patch16_480_vqa.pth", {}, ["has seen these very samples"]),
        ("vqav2", "val", "model_base_vqa_capfilt_large.pth", {}, ["these very samples", *["some of these images"] * 3]),
        ("coco-retrieval", "test", "model_base_retrieval_coco.pth", {}, ["some of these images"] * 2),
        ("flickr30k", "test", "mscoco.pth", {}, ["some of these images"]),
        ("vqav2", "val", "albef_vqav2_lavis.pt", {}, ["these very samples", *["some of these images"] * 3]),
        ("vqav2", "val", "vilt_vqa.ckpt", {}, ["these very samples", *["some of these images"] * 3]),
        ("coco-retrieval", "test", "vilt_irtr_coco.ckpt", {}, ["trained on COCO captions", "trained on Visual Genome"]),
        ("flickr30k", "test", "vilt_irtr_f30k.ckpt", {}, ["trained on Visual Genome"]),
        ("snli-ve", "test", "albef_snli_ve_lavis.pt", {}, ["trained on Visual Genome"]),
        ("coco-caption", "test", "model_large_caption.pth", {}, ["some of these images"] * 2),
        ("vqav2", "test-dev", "beit3_base_patch16_480_vqa.pth", {}, []),
        ("vqav2", "test-dev", "beit3_base_indomain_patch16_480_vqa.pth", {}, ["some of these images"]),
        ("coco-caption", "test", "beit3_base_patch16_480_coco_captioning.pth", {}, []),
        ("flickr30k", "test", "beit3_base_patch16_384_f30k_retrieval.pth", {}, []),
        ("nlvr2", "dev", "beit3_large_indomain_patch16_224_nlvr2.pth", {}, []),
        ("vqav2", "val", "mine.pth", {"task": "vqav2"}, ["has seen these very samples"]),
        ("vqav2", "minival", "mine.pth", {"task": "vqav2"}, []),
        ("coco-retrieval", "test", "mine.pth", {"task": "vqav2"}, ["some of these images"]),
        (
            "vqav2",
            "minival",
            "mine.pth",
            {"task": "vqav2", "source": {"checkpoint": "beit3_base_indomain_patch16_224.pth"}},
            ["trained on COCO captions", "trained on Visual Genome"],
        ),
        ("vqav2", "val", "unknown.pth", {}, []),
        ("vqav2", "val", "odd.pth", {"task": 3, "source": "x"}, []),
    ],
)
def test_leaks_of_a_checkpoint(task, split, checkpoint, metadata, words):
    found = find_leaks(task, split, Path("/somewhere") / checkpoint, metadata)
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


def test_gravest_comes_first():
    found = find_leaks("vqav2", "val", Path("beit3_large_indomain_patch16_768_vgqaaug_vqa.pth"), {})
    assert "very samples" in found[0]
    assert len(found) == len(trained_on(Path("beit3_large_indomain_patch16_768_vgqaaug_vqa.pth"), {})) - 1


def test_run_warns_and_notes_it_in_the_result(native, tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(tmp_path / "cache"))  # a file of a released name is pinned
    words = run_words(native, "vqav2")
    leaky = tmp_path / "beit3_base_patch16_480_vqa.pth"
    leaky.write_bytes(native.checkpoint("vqav2").read_bytes())
    words[words.index("--checkpoint") + 1] = leaky
    done = invoke(*words, "--tokenizer", native.world / "beit3.spm", "--output", tmp_path / "run", "--limit", 2)
    assert done.exit_code == 0, done.stderr
    notes = json.loads((tmp_path / "run" / "result.json").read_text())["notes"]
    (note,) = [note for note in notes if "has seen these very samples" in note]
    assert f"warning: {note}" in done.stderr
    clean = invoke(*run_words(native, "vqav2"), "--output", tmp_path / "clean", "--limit", 2)
    assert "has seen" not in clean.stderr
