"""The commands of the pages, typed one after the other on the mini world, with random tiny checkpoints under the released names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from documentation import COMMANDS, Command, blocks, parsed
from native import Native, invoke

from beit3_bench.backbones.released import find_released
from beit3_bench.tasks.vqav2 import VQAv2

pytestmark = pytest.mark.slow

PAGES = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in ("first-ten-minutes", "tutorial", "data", "results", "trust", "speed", "settings", "faq")
    ),
)
RELEASED = (
    "beit3_base_patch16_480_vqa",
    "beit3_base_patch16_224_nlvr2",
    "beit3_base_patch16_480_coco_captioning",
    "beit3_base_patch16_480_nocaps",
    "beit3_base_patch16_384_coco_retrieval",
    "beit3_base_patch16_384_f30k_retrieval",
    "beit3_base_patch16_224_in1k",
    "beit3_base_itc_patch16_224",
)
ELSEWHERE = {
    "download": "network; tests/harness/data",
    "data get": "network; tests/harness/data",
    "finetune": "minutes, and whole models; tests/harness/training",
    "demo": "minutes; tests/harness/test_demo.py",
    "bench": "minutes; tests/harness/test_bench.py",
}
"""Verbs whose commands are run by other tests, on models and servers of their own."""
OTHER_MODELS = (
    "openclip:",
    "weights/blip",
    "weights/albef",
    "coco-det",
    "ade20k",
    "model_final",
    "snli-ve",
    "models/nlvr2",
    "truth=",
    "eccv=",
)
"""Parts of words: families, heads and trainings that are not here; each has tests of its own."""


def runs_here(command: Command) -> bool:
    words = command.words
    return (
        parsed(words)[0] not in ELSEWHERE
        and "all" not in words
        and "cuda" not in words  # a card is no part of a test machine
        and not any(p in w for w in words for p in OTHER_MODELS)
    )


def checkpoint_of(native: Native, name: str) -> Path:
    file = find_released(name)
    assert file is not None
    return native.checkpoint("flickr30k" if file.task is None else file.task)


@pytest.fixture(scope="module")
def prepared(native: Native, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: weights under released names, pictures, files of one's own, runs that were done before."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "weights").mkdir()
    shutil.copy(native.checkpoints / "beit3.spm", folder / "weights")
    for name in RELEASED:
        shutil.copy(checkpoint_of(native, name), folder / "weights" / f"{name}.pth")
    pictures = sorted((native.world / "flickr30k" / "flickr30k-images").glob("*.jpg"))[:6]
    (folder / "photos").mkdir()
    for n, picture in enumerate(pictures):
        shutil.copy(picture, folder / "photos" / f"{n}.jpg")
    shutil.copy(pictures[0], folder / "cat.jpg")
    for name, pair in zip(
        ("left.png", "right.png"), sorted((native.world / "nlvr2" / "dev").glob("*.png")), strict=False
    ):
        shutil.copy(pair, folder / name)
    answers = enumerate(VQAv2(native.world / "coco").vocabulary())
    write_lines(folder / "answer2label.txt", [{"answer": answer, "label": n} for n, answer in answers])
    names = [f"photos/{picture.name}" for picture in sorted((folder / "photos").iterdir())]
    write_lines(
        folder / "pets.jsonl", [{"image": name, "label": ("cat", "dog")[n % 2]} for n, name in enumerate(names)]
    )
    write_lines(
        folder / "photos.jsonl", [{"image": name, "captions": [f"picture {n}"]} for n, name in enumerate(names)]
    )
    write_lines(
        folder / "questions.jsonl", [{"image": name, "question": "is it red?", "answer": "yes"} for name in names]
    )
    (runs_file,) = (block.text for block in blocks("toml") if "[[run]]" in block.text)
    (folder / "runs.toml").write_text(runs_file)
    (folder / "models" / "vqav2").mkdir(parents=True)
    shutil.copy(native.checkpoint("vqav2"), folder / "models" / "vqav2" / "best.pth")
    shutil.copy(native.checkpoints / "beit3.spm", folder / "models" / "vqav2")
    (folder / "data").symlink_to(native.world)
    tour = folder / "tour"
    (tour / "models" / "flickr30k").mkdir(parents=True)
    (tour / "world").symlink_to(native.world)
    shutil.copy(native.checkpoint("flickr30k"), tour / "models" / "flickr30k" / "best.pth")
    shutil.copy(native.checkpoints / "beit3.spm", tour / "models" / "flickr30k")
    runs = folder / "results" / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEIT3_BENCH_CACHE", str(tmp_path_factory.mktemp("pins")))  # these are not the released files
        for task, output in [
            ("nlvr2", runs),
            ("coco-caption", runs),
            ("vqav2", runs),
            ("coco-retrieval", runs),
            ("sugarcrepe", runs),
            ("winoground", runs),
            ("flickr30k", tour / "runs"),
        ]:
            words = [
                "run",
                "--task",
                task,
                "--checkpoint",
                folder / "weights",
                "--data-root",
                native.world,
                "--output",
                output / task,
            ]
            done = invoke(*words, "--workers", 0, "--device", "cpu")
            assert done.exit_code == 0, done.output
        for copy in ("nlvr2-large", "nlvr2-again", "nlvr2-old"):
            shutil.copytree(runs / "nlvr2", runs / copy)
    return folder


def write_lines(path: Path, records: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_can_be_done(page, prepared, native, tmp_path, monkeypatch):
    folder = tmp_path / "work"
    shutil.copytree(prepared, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(tmp_path / "cache"))  # these are not the released files
    monkeypatch.setenv("BEIT3_BENCH_DEVICE", "cpu")
    monkeypatch.setenv("BEIT3_BENCH_WORKERS", "0")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    if page == "docs/settings.md":  # which tells how to leave them away
        monkeypatch.setenv("BEIT3_BENCH_DATA_ROOT", str(native.world))
        monkeypatch.setenv("BEIT3_BENCH_CHECKPOINT", "weights")
    typed = [command for command in COMMANDS if command.place.startswith(f"{page}:") and runs_here(command)]
    assert typed
    failed = []
    for command in typed:
        words = [w for word in command.words for w in spelt(word, native.world, folder)]
        done = invoke(*words)
        if done.exit_code:
            failed.append(f"{command}\n{done.output}")
    assert not failed, "\n\n".join(failed)


def spelt(word: str, world: Path, folder: Path) -> list[str]:
    """A word of a command as it is typed here: the place of the data is another, and a shell fills in ``*``."""
    if "*" in word:
        return [str(path) for path in sorted(folder.glob(word))]
    return [str(world) + word.removeprefix("/data") if word == "/data" or word.startswith("/data/") else word]


def test_what_is_run_elsewhere_is_little():
    here = [command for command in COMMANDS if any(command.place.startswith(f"{page}:") for page in PAGES)]
    assert sum(map(runs_here, here)) > len(here) / 3
