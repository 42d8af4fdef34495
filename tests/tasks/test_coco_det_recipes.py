"""Recipes of the detection task: published numbers, and a whole fine-tuning from pretrained weights to a result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from beit3_recipes import load_recipe, recipe_names
from run_requests import run_request

from beit3_bench.backbones.beit3.checkpoint import official_state_dict
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.models import build_model
from beit3_bench.harness.session import run_task
from beit3_bench.harness.training import loop
from beit3_bench.harness.training.dryrun import describe_dry_run, dry_run
from beit3_bench.harness.training.loop import Plan
from beit3_bench.harness.training.schedule import step_schedule
from beit3_bench.harness.training.session import finetune
from beit3_bench.harness.training.start import FinetuneRequest, prepare
from beit3_bench.tasks.coco_det import CocoDetection
from beit3_bench.tasks.tinyworld.world import write_tiny_world

SMALL = {
    "steps": "2", "batch": "2", "image_size": "64", "out_channels": "16", "fc_dim": "24", "proposals": "20",
    "rois_per_image": "16", "engine": "native", "warmup_steps": "1",
}  # fmt: skip


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "tiny"
    write_tiny_world(root, size="mini")
    return root / "coco"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "beit3_tiny.pth"
    torch.save({"model": official_state_dict(build_model("retrieval", BEiT3Config.preset("tiny")))}, path)
    return path


@pytest.mark.parametrize(
    ("name", "lr", "decay", "drop_path", "side", "head"),
    [
        ("base", 1e-4, 0.7, 0.1, 1024, "cascade_mask_rcnn"),
        ("base-mask-rcnn", 1e-4, 0.7, 0.1, 1024, "mask_rcnn"),
        ("large", 1e-4, 0.8, 0.4, 1024, "cascade_mask_rcnn"),
        ("large-mask-rcnn", 1e-4, 0.8, 0.4, 1024, "mask_rcnn"),
        ("large-1280", 5e-5, 0.8, 0.4, 1280, "cascade_mask_rcnn"),
        ("giant", 5e-5, 0.9, 0.6, 1280, "cascade_mask_rcnn"),
        ("giant-intermediate", 1e-4, 0.9, 0.6, 1024, "cascade_mask_rcnn"),
        ("base-intermediate", 1e-4, 0.7, 0.1, 1024, "cascade_mask_rcnn"),
    ],
)
def test_recipes_hold_the_published_numbers(name, lr, decay, drop_path, side, head):
    recipe = load_recipe("coco-det", name)
    assert (recipe.lr, recipe.layer_decay, recipe.drop_path, recipe.image_size) == (lr, decay, drop_path, side)
    assert (recipe.batch, recipe.weight_decay, recipe.warmup_steps, recipe.schedule) == (64, 0.1, 250, "step")
    assert recipe.options["head"] == head
    intermediate = "intermediate" in name
    assert recipe.options.get("masks") == ("False" if intermediate else None)
    assert recipe.epochs == (15 if intermediate else 20 if side == 1280 else 100)
    assert (recipe.options["jitter_min"], recipe.options["jitter_max"]) == ("0.1", "2.0")


@pytest.mark.parametrize("name", recipe_names("coco-det"))
def test_every_recipes_options_are_the_tasks(tmp_path, name):
    given = load_recipe("coco-det", name).options
    options = CocoDetection(tmp_path, given).options
    assert given
    assert {key: str(getattr(options, key)) for key in given} == {key: str(value) for key, value in given.items()}


def test_the_rate_falls_where_detectron2_lets_it_fall():
    rates = step_schedule(1e-4, 184375, 250)
    assert rates[0] == pytest.approx(1e-7)
    assert rates[250] == rates[163888] == 1e-4
    np.testing.assert_allclose([rates[163889], rates[177545], rates[177546], rates[-1]], [1e-5, 1e-5, 1e-6, 1e-6])


@pytest.mark.parametrize("head", ["mask_rcnn", "cascade_mask_rcnn"])
def test_a_fine_tuned_detector_runs_without_further_flags(coco, pretrained, tmp_path, head):
    request = FinetuneRequest(
        "coco-det", coco, preset="tiny", checkpoint=pretrained, output=tmp_path / "training", device="cpu", workers=0,
        options={**SMALL, "head": head},
    )  # fmt: skip
    summary = finetune(request, CocoDetection)
    assert summary["steps"] == 2
    assert summary["best"]["metric"] == "bbox/AP"
    outcome = run_task(
        run_request(
            "coco-det", tmp_path / "training" / "best.pth", coco, device="cpu", workers=0, limit=3,
            output=tmp_path / "run", options={"engine": "native"},
        ),
        CocoDetection,
    )  # fmt: skip
    assert outcome.result["setting"] == "fine-tuned"
    assert outcome.result["model"]["preset"] == "tiny"
    assert outcome.result["model"]["image_size"] == 64


def test_an_interrupted_training_goes_on_exactly(coco, pretrained, tmp_path, monkeypatch):
    def train(folder, **changes):
        request = FinetuneRequest(
            "coco-det", coco, preset="tiny", checkpoint=pretrained, output=tmp_path / folder, device="cpu", workers=0,
            options={**SMALL, "steps": "3", "save_steps": "1", "drop_path": "0.3"}, **changes,
        )  # fmt: skip
        finetune(request, CocoDetection)
        return torch.load(tmp_path / folder / "last.pth", weights_only=True)["model"]

    whole, update = train("whole"), loop.TrainingLoop._update

    def interrupted(self, step, batches):
        if step == 2:
            raise KeyboardInterrupt
        return update(self, step, batches)

    monkeypatch.setattr(loop.TrainingLoop, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("broken")
    monkeypatch.undo()
    resumed = train("broken", resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_dry_run_tells_groups_and_memory_without_weights(coco, pretrained):
    request = FinetuneRequest("coco-det", coco, preset="tiny", checkpoint=pretrained, device="cpu", options=SMALL)
    start = prepare(request, CocoDetection, shapes_only=True)
    facts = dry_run(
        start, Plan.of(start.recipe, len(start.training_split.examples), 1, 0), torch.device("cpu"), 1, "fp32"
    )
    assert sum(g["parameters"] for g in facts["groups"]) == facts["parameters"]
    assert "rate x1" in describe_dry_run(facts)
