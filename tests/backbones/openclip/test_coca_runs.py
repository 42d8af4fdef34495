"""Runs of a CoCa's captions: what is searched, what the result says of it, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from native import invoke
from PIL import Image

from beit3_bench import load
from beit3_bench.backbones.released import find_released
from beit3_bench.errors import BenchError
from beit3_bench.harness.record.store import RunStore
from beit3_bench.tasks.registry import get_task


def caption(zoo, world, output, *words, kind="tiny-coca", task="coco-caption"):
    root = world / ("nocaps" if task == "nocaps" else "coco")
    places = ["--checkpoint", zoo.source(kind), "--data-root", root, "--output", output]
    return invoke("run", "--task", task, *places, "--device", "cpu", "--workers", 0, *words)


@pytest.fixture(scope="module")
def captioned(zoo, world, tmp_path_factory):
    """Folder of a run on coco-caption. Java is hidden: its metrics start slowly, and are not what is tested."""
    folder = tmp_path_factory.mktemp("captioned") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        patch.delenv("JAVA_HOME", raising=False)
        done = caption(zoo, world, folder, "--limit", 8)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def model(zoo):
    return load(zoo.source("tiny-coca"), "coco-caption", device="cpu")


def test_a_run_s_captions_are_those_of_the_network(zoo, world, captioned, model):
    import open_clip

    rows = RunStore.read(captioned).rows()
    examples = {e.id: e for e in get_task("coco-caption")(world / "coco").read("test").examples}
    _, transform, _ = zoo.reference("tiny-coca")
    assert len(rows) == 8
    for name, row in list(rows.items())[:4]:
        ids = model.module.generate(transform(Image.open(examples[name].images[0]))[None])[0]
        assert row["token_ids"] == ids
        text = open_clip.decode(torch.tensor(ids))
        assert row["caption"] == text.split("<end_of_text>")[0].replace("<start_of_text>", "").strip()
        assert ids[0] == 49406
        assert 5 <= len(ids) <= 30
    assert len({row["caption"] for row in rows.values()}) > 1


def test_the_result_says_how_captions_were_searched(captioned):
    result = json.loads((captioned / "result.json").read_text())
    assert (result["model"]["family"], result["model"]["protocol"]) == ("openclip", "6 beams in 3 groups")
    options = result["provenance"]["options"]
    assert (options["num_beams"], options["max_length"], options["length_penalty"]) == (6, 30, 1.0)
    assert result["metrics"]["CIDEr"]["value"] is not None
    config = json.loads((captioned / "config.json").read_text())
    assert config["model"]["beams"]["num_beam_groups"] == 3


def test_captions_are_the_same_at_any_batch_size(zoo, world, tmp_path):
    rows = []
    for size in (1, 3, 16):
        folder = tmp_path / str(size)
        done = caption(zoo, world, folder, "--split", "test", "--batch-size", size, task="nocaps")
        assert done.exit_code == 0, done.output
        rows.append({name: row["token_ids"] for name, row in RunStore.read(folder).rows().items()})
    assert rows[0] == rows[1] == rows[2]
    assert len(rows[0]) >= 4


def test_options_are_the_search_s(zoo, world, tmp_path):
    words = ["-o", "num_beams=4", "-o", "num_beam_groups=2", "-o", "max_length=9", "-o", "diversity_penalty=0.5"]
    done = caption(zoo, world, tmp_path / "run", "--split", "test", *words, "-o", "min_length=3", task="nocaps")
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["model"]["protocol"] == "4 beams in 2 groups"
    assert result["provenance"]["options"]["max_length"] == 9
    assert all(len(row["token_ids"]) <= 9 for row in RunStore.read(tmp_path / "run").rows().values())


def test_the_api_captions_files_and_pictures(zoo, world, model):
    example = get_task("coco-caption")(world / "coco").read("test").examples[0]
    file, picture = model.caption([example.images[0], Image.open(example.images[0])])
    assert file == picture
    pixels = torch.zeros(2, 3, 32, 32)
    short, long = (model.module.generate(pixels, 3, length, 1.0) for length in (7, 12))
    assert [len(ids) <= 7 for ids in short] == [True, True]
    assert max(map(len, long)) <= 12
    assert model.card.protocol == "6 beams in 3 groups"


@pytest.mark.parametrize(
    ("kind", "words", "line"),
    [
        ("tiny-clip", [], "tiny-clip has no decoder of texts, so that it cannot caption; give a CoCa"),
        ("tiny-coca", ["-o", "decoder=clean"], "decoder=clean: is an option of BEiT-3's captions"),
        ("tiny-coca", ["-o", "num_beam_groups=4"], "num_beams is 6, which 4 groups do not divide evenly"),
        ("tiny-coca", ["-o", "max_length=33"], "give 2 to 32"),
    ],
)
def test_what_cannot_caption_is_refused_in_a_line(zoo, world, tmp_path, kind, words, line):
    done = caption(zoo, world, tmp_path / "run", *words, kind=kind)
    assert done.exit_code == 2
    assert line in done.output
    assert "Traceback" not in done.output


def test_options_of_captions_are_refused_where_embeddings_are_asked_for(zoo):
    with pytest.raises(BenchError, match="-o min_length is an option of captions"):
        load(zoo.source("tiny-coca"), "flickr30k", device="cpu", min_length=3)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "open_clip's own text tower"),
        ({"embed_dim": 16}, "a decoder of width 32 for image tokens of width 16"),
        ({"text_cfg": {"vocab_size": 49000}}, "has 49000 token embeddings, but open_clip's tokenizer has 49408 ids"),
        ({"text_cfg": {"qk_norm": True}}, "is built of other text blocks than CoCa's"),
    ],
)
def test_architectures_that_cannot_caption_are_refused(tmp_path, change, line):
    import open_clip
    from safetensors.torch import save_file
    from tiny_openclip import CONFIGS

    base = CONFIGS["tiny-coca"]
    config = {k: {**v, **change.get(k, {})} if isinstance(v, dict) else change.get(k, v) for k, v in base.items()}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    if "hf_model_name" in config["text_cfg"] or config["embed_dim"] == 16:  # seen before anything is built
        tensors = {"logit_scale": torch.zeros(())}
    else:
        module = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False)
        tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(BenchError, match=line):
        load(f"openclip:{tmp_path}", "coco-caption", device="cpu")


def test_the_file_tuned_on_coco_captions_is_one_for_captions():
    file = find_released("coca_ViT-L-14.mscoco_finetuned_laion2b_s13b_b90k")
    assert (file.task, file.trained_on) == ("coco-caption", ("COCO captions",))
    assert file.answers("coco-retrieval")
    assert find_released("coca_ViT-L-14.laion2b_s13b_b90k").task is None
