"""The bench verb: the reference path must be the same computation, and its report whole."""

from __future__ import annotations

import json

import pytest
import torch
from native import invoke

from beit3_bench.backbones.beit3.bench import reference
from beit3_bench.backbones.beit3.bench.cases import IMAGE_SIZES, difference, make_case
from beit3_bench.backbones.beit3.bench.measure import flops_of
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.models import build_model
from beit3_bench.backbones.fusion.benchmark import CASES, KINDS, SIZES
from beit3_bench.backbones.fusion.benchmark import make_case as make_fusion_case


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("task", list(IMAGE_SIZES))
def test_both_paths_give_the_same_outputs(task, packed):
    case = make_case(task, "tiny", torch.device("cpu"), samples=2, image_size=32, packed=packed)
    with torch.inference_mode():
        flops = flops_of(case.encode)
        for _ in range(3):
            assert difference(case.ours(), case.theirs()) <= 1e-5
        assert flops_of(case.encode) == flops


@pytest.mark.parametrize("beams", [1, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_reference_decoding_ends_captions_as_ours(beams, seed):
    config = BEiT3Config(image_size=32, embed_dim=32, num_heads=2, ffn_dim=64, depth=2, vocab_size=40)
    torch.manual_seed(seed)
    model = build_model("coco-caption", config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
        images = torch.randn(4, 3, 32, 32)
        for penalty in (0.0, 0.6, 1.5):
            assert model.generate(images, beams, 12, penalty) == reference.generate(model, images, beams, 12, penalty)


def test_flops_are_those_of_the_shapes():
    a, b = torch.randn(8, 16), torch.randn(16, 4)
    assert flops_of(lambda: a @ b) == 2 * 8 * 16 * 4


def test_flops_do_not_depend_on_the_dtype():
    case = make_case("imagenet", "tiny", torch.device("cpu"), samples=2, image_size=32, packed=True)
    with torch.inference_mode():
        exact = flops_of(case.encode)
        with torch.autocast("cpu", torch.bfloat16):
            assert flops_of(case.encode) == exact


def test_in_bfloat16_the_paths_are_compared_in_float32_and_the_rounding_is_reported():
    words = ["--preset", "tiny", "--image-size", 32, "--repeats", 1, "--device", "cpu", "--same-process", "--json"]
    outcome = invoke("bench", "--task", "imagenet,coco-caption", "--dtype", "bf16", *words)
    assert outcome.exit_code == 0, outcome.output
    image, caption = json.loads(outcome.stdout)["cases"]
    assert 0 < image["dtype_difference"] < 0.1
    assert image["output_difference"] < 1e-5
    assert caption["output_difference"] == 0
    assert 0 <= caption["dtype_difference"] <= 1


def test_the_report_has_a_ratio_and_a_share_of_the_roof(tmp_path):
    words = ["--preset", "tiny", "--image-size", 32, "--repeats", 1, "--device", "cpu"]
    outcome = invoke("bench", "--task", "nlvr2,vqav2", *words, "--json", "--output", tmp_path / "perf" / "a.json")
    assert outcome.exit_code == 0, outcome.output
    report = json.loads(outcome.stdout)
    assert [c["task"] for c in report["cases"]] == ["nlvr2", "vqav2"]
    shares = ("roof_share", "products_share", "timm_roof_share", "ratio")
    assert all(c["outputs_equal"] and all(c[name] > 0 for name in shares) for c in report["cases"])
    assert all(c["dtype_difference"] == 0 for c in report["cases"])
    assert all(c["reference_process"].startswith("its own") for c in report["cases"])
    assert json.loads((tmp_path / "perf" / "a.json").read_text()) == report
    same = json.loads(invoke("bench", "--task", "imagenet", *words, "--same-process", "--json").stdout)
    assert same["cases"][0]["reference_process"] == "this one"
    assert "ratio" in invoke("bench", "--task", "imagenet", *words).stdout


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("task", list(CASES))
@pytest.mark.parametrize("family", list(KINDS))
def test_both_ways_of_fusion_models_give_the_same_scores(family, task, packed):
    case = make_fusion_case(family, task, "tiny", torch.device("cpu"), 2, None, packed)
    with torch.inference_mode():
        scores = case.ours()
        assert difference(scores, case.theirs()) <= 1e-5
        assert difference(scores, case.ours()) == 0
    assert scores.shape == (2, SIZES["tiny"].texts if task == "coco-retrieval" else SIZES["tiny"].answers)
    kept = scores[scores > -1e4].reshape(2, -1)
    assert kept.shape[1] == (SIZES["tiny"].texts if task == "coco-retrieval" else SIZES["tiny"].k)
    assert kept.std() > 1e-5


@pytest.mark.parametrize("family", list(KINDS))
def test_the_report_of_fusion_models_has_a_ratio(family):
    words = [
        "--family",
        family,
        "--preset",
        "tiny",
        "--samples",
        2,
        "--repeats",
        1,
        "--device",
        "cpu",
        "--same-process",
    ]
    outcome = invoke("bench", *words, "--json")
    assert outcome.exit_code == 0, outcome.output
    report = json.loads(outcome.stdout)
    assert report["family"] == family
    assert [c["task"] for c in report["cases"]] == ["coco-retrieval", "vqav2"]
    assert all(c["outputs_equal"] and c["ratio"] > 0 and c["seconds"] > 0 for c in report["cases"])
    assert [c["image_size"] for c in report["cases"]] == [64, None]
    table = invoke("bench", *words, "--task", "vqav2")
    assert "16 of them whole" in table.stdout


def test_the_official_way_of_fusion_models_has_a_process_of_its_own():
    words = ["--task", "vqav2", "--preset", "tiny", "--repeats", 1, "--device", "cpu", "--dtype", "bf16"]
    outcome = invoke("bench", "--family", "blip", *words, "--json")
    assert outcome.exit_code == 0, outcome.output
    (case,) = json.loads(outcome.stdout)["cases"]
    assert case["reference_process"].startswith("its own")
    assert case["output_difference"] < 1e-5
    assert 0 <= case["dtype_difference"] <= 1  # a share of answers


def test_half_precision_moves_scores_of_pairs():
    words = ["--task", "coco-retrieval", "--preset", "tiny", "--repeats", 1, "--device", "cpu", "--dtype", "bf16"]
    outcome = invoke("bench", "--family", "albef", *words, "--same-process", "--json")
    assert outcome.exit_code == 0, outcome.output
    (case,) = json.loads(outcome.stdout)["cases"]
    assert case["output_difference"] < 1e-5 < case["dtype_difference"] < 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--family", "vilt"), "--family vilt: bench has no case of it; it has cases of: beit3, albef, blip"),
        (("--family", "blip", "--task", "nlvr2"), "no case for task 'nlvr2' of blip; it has: coco-retrieval, vqav2"),
        (("--family", "blip", "--preset", "giant"), "blip has no preset 'giant' to measure"),
        (
            ("--family", "blip", "--preset", "tiny", "--compile"),
            "--compile: the cases of blip are measured as they are",
        ),
        (
            ("--family", "albef", "--preset", "tiny", "--image-size", 40),
            "--image-size 40: is no multiple of the patches",
        ),
    ],
)
def test_what_cannot_be_measured_is_one_line(words, message):
    outcome = invoke("bench", *words, "--device", "cpu")
    assert outcome.exit_code == 2
    assert message in outcome.stderr


def test_ranking_memory_stays_within_a_few_blocks():
    outcome = invoke("bench", "--scale", "--largest", 10_000, "--json")
    rows = json.loads(outcome.stdout)["scale"]
    assert [r["captions"] for r in rows] == [1_000, 3_000, 10_000]
    assert all(r["peak_mib"] < 4 * r["block_mib"] + 64 for r in rows)


def test_a_folder_that_cannot_be_made_is_named_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    outcome = invoke("bench", "--output", tmp_path / "file" / "a.json")
    assert outcome.exit_code == 2
    assert "file: a file stands where a folder is needed" in outcome.stderr
    assert "measuring" not in outcome.stderr
    outcome = invoke("table", "--output", tmp_path / "file" / "board")
    assert outcome.exit_code == 2
    assert "file: a file stands where a folder is needed" in outcome.stderr


def test_an_unknown_case_is_named():
    outcome = invoke("bench", "--task", "coco-dte")
    assert outcome.exit_code == 2
    assert "coco-dte" in outcome.stderr


def test_the_products_of_attention_count():
    query, key = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    counted = flops_of(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, key))
    assert counted == 2 * (2 * 2 * 3 * 5 * 7 * 8)
