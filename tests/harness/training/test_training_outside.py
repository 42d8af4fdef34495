"""A family and a task from outside, which share nothing with BEiT-3: trained by the harness's loop, or by an engine of their own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner
from toy_task import ToyAbility, ToyReader, ToyTask, write_toy_data
from training_cases import weights

from beit3_bench.backbones import registry
from beit3_bench.backbones.abilities import Batch, Captions, Classifies, Item
from beit3_bench.backbones.checkpoints import read_checkpoint
from beit3_bench.backbones.family import Asked, Family, Identity, LoadOptions, Model, ModelCard, digest
from beit3_bench.backbones.sources import Source
from beit3_bench.backbones.training import EngineRequest, Training, TrainingEngine, TrainingOptions
from beit3_bench.errors import BenchError
from beit3_bench.harness.commands.finetune import command
from beit3_bench.harness.request import RunRequest
from beit3_bench.harness.session import run_task
from beit3_bench.harness.training.journal import read_table
from beit3_bench.harness.training.session import finetune
from beit3_bench.harness.training.start import FinetuneRequest, find_origin
from beit3_bench.harness.training.state import BEST, LAST
from beit3_bench.tasks.contract import Example, Split


class Sign(torch.nn.Module):
    """One number -> (n, 1), by one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([-0.5]))  # wrong until it has learned

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * self.scale


class SignTraining(Training):
    shard_layers = ("Sign",)

    def __init__(self, options: TrainingOptions):
        self.ability = ToyAbility(Sign(), ToyReader())
        checkpoint = options.source.checkpoint if options.source else None
        if checkpoint is not None:
            self.module.load_state_dict(checkpoint.tensors)
        self.settings, self.preprocessing, self.resolved = {"weights": 1}, {}, {"bias": 0.0}
        self.fingerprints = {"model": "sign", "tokenizer": "none", "start": checkpoint.sha256 if checkpoint else "none"}
        self.start = {"checkpoint": checkpoint and checkpoint.path.name, "missing": [], "unexpected": []}
        self.new: list[str] = []
        self.notes = ["a note on the weights"]
        self.companions = {"words.txt": options.data_root / "toy.json"} if options.data_root else {}
        self.decay = options.recipe.weight_decay

    def collate(self, items: Sequence[Item], generator: torch.Generator) -> Batch:
        return {**self.ability.reader.collate(items), "labels": torch.tensor([float(i.target) for i in items])}

    def mixed(self, batch: Batch, seed: int) -> Batch:
        return {**batch, "values": batch["values"] * (1 + seed % 2)}

    def loss(self, module: torch.nn.Module, batch: Batch, gather: Callable, step: int) -> torch.Tensor:
        logits = gather(module(batch["values"]))
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, gather(batch["labels"]))

    def groups(self) -> list[dict[str, Any]]:
        parameters = list(self.module.parameters())
        return [{"name": "all", "params": parameters, "names": ["scale"], "lr_scale": 1.0, "weight_decay": self.decay}]

    def metadata(self) -> dict[str, Any]:
        return {"head": "sign", "labels": None}

    def state_dict(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in module.state_dict().items()}


class SignEngine(TrainingEngine):
    def __init__(self, request: EngineRequest):
        self.request = request

    def plan(self) -> dict[str, Any]:
        r = self.request
        return {"learned": [item.target for item in r.training], "root": str(r.root), "options": dict(r.options)}

    def run(self) -> dict[str, Any]:
        best = {"metric": "accuracy", "value": 1.0, "step": 3}
        where = {"task": "sign", "folder": str(self.request.output), "checkpoint": f"{self.request.output}/best.pth"}
        return {**where, "steps": 3, "seconds": 0.0, "best": best}


class SignFamily(Family):
    name, title = "sign", "Sign"
    abilities = (Classifies,)
    scratch_presets = ("small",)

    def claims(self, source: Source) -> bool:
        return source.names == {"scale"}

    def presets(self) -> tuple[str, ...]:
        return ("small", "wide")

    def preset_of(self, source: Source) -> str | None:
        return "small"

    def load(self, source: Source, asked: Asked, options: LoadOptions) -> Model:
        ability = ToyAbility(Sign(), ToyReader())
        ability.module.load_state_dict(source.checkpoint.tensors)
        sha256, metadata = source.checkpoint.sha256, source.checkpoint.metadata
        card = ModelCard("sign", source.path.name, sha256, trained_for=metadata.get("task"))
        return Model(ability, card, Identity(sha256, digest({}), digest("none")), metadata=metadata)

    def start_training(self, asked: Asked, options: TrainingOptions) -> Training:
        return SignTraining(options)


class EngineFamily(SignFamily):
    engines = (Classifies,)

    def training_engine(self, asked: Asked, request: EngineRequest) -> TrainingEngine:
        return SignEngine(request)


class SignTask(ToyTask):
    name = "sign"
    splits = ("test", "hidden", "empty", "train")
    recipe_table: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {
            "batch": 8, "steps": 6, "warmup_epochs": 0, "lr": 0.5, "layer_decay": 1.0, "weight_decay": 0.0, "log_steps": 1,
            "validation_split": "test", "validate_epochs": 0,
        },
        "small-slow": {"inherits": "small", "lr": 0.01},
    }  # fmt: skip

    def training_split(self) -> Split:
        return dataclasses.replace(self.read("test"), notes=("a note on what is learned",), left_out="1 file")

    def training_item(self, example: Example) -> Item:
        return dataclasses.replace(self.item(example), target=bool(example.target))

    @classmethod
    def recipes(cls) -> Mapping[str, Mapping[str, Any]]:
        return cls.recipe_table


@pytest.fixture(params=[SignFamily])
def family(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Family:
    made = request.param()
    known = {"sign": "outside:SignFamily", **registry.BUILT_IN}
    get_family = registry.get_family
    monkeypatch.setattr(registry, "family_locations", lambda: known)
    monkeypatch.setattr(registry, "get_family", lambda name: made if name == "sign" else get_family(name))
    monkeypatch.setattr("beit3_bench.tasks.registry.get_task", lambda name: SignTask)
    return made


def request_for(folder: Path, **changes: Any) -> FinetuneRequest:
    data = folder / "data"
    if not data.exists():
        write_toy_data(data)
    base = FinetuneRequest("sign", data, "sign:small", output=folder / "x", device="cpu", workers=0)
    return dataclasses.replace(base, **changes)


@pytest.mark.usefixtures("family")
def test_a_family_from_outside_is_trained_validated_and_run(tmp_path, capsys):
    summary = finetune(request_for(tmp_path), SignTask)
    assert (summary["steps"], summary["best"]["metric"], summary["best"]["value"]) == (6, "accuracy", 1.0)
    assert summary["notes"] == ["a note on what is learned", "a note on the weights"]
    assert capsys.readouterr().err.count("warning: 1 file") == 1
    losses = [float(row["loss"]) for row in read_table(tmp_path / "x" / "log.csv")]
    assert losses[-1] < losses[0]
    m = read_checkpoint(tmp_path / "x" / BEST).metadata
    assert (m["task"], m["head"], m["recipe"]["lr"], m["step"]) == ("sign", "sign", 0.5, 6)
    assert (tmp_path / "x" / "words.txt").read_bytes() == (tmp_path / "data" / "toy.json").read_bytes()
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert (config["preset"], config["model"], config["training_samples"]) == ("small", {"weights": 1}, 40)
    outcome = run_task(RunRequest("sign", tmp_path / "x" / BEST, tmp_path / "data", output=tmp_path / "run"), SignTask)
    assert outcome.result["metrics"]["accuracy"]["value"] == 1.0


@pytest.mark.usefixtures("family")
def test_its_training_resumes_and_starts_from_its_own_checkpoint(tmp_path):
    finetune(request_for(tmp_path), SignTask)
    assert finetune(request_for(tmp_path, resume=True), SignTask)["steps_done_now"] == 0
    with pytest.raises(BenchError, match=r"recipe lr 0\.5 -> 0\.01"):
        finetune(request_for(tmp_path, resume=True, recipe="small-slow"), SignTask)
    first = tmp_path / "x" / LAST
    again = request_for(tmp_path, preset=None, checkpoint=first, output=tmp_path / "y", options={"lr": "0"})
    with pytest.raises(BenchError, match="below min_lr"):
        finetune(again, SignTask)
    options = {"lr": "0", "min_lr": "0"}
    summary = finetune(dataclasses.replace(again, checkpoint=f"sign:{first}", options=options), SignTask)
    assert read_checkpoint(Path(summary["checkpoint"])).metadata["source"]["checkpoint"] == LAST
    assert torch.equal(weights(tmp_path / "y")["scale"], weights(tmp_path / "x")["scale"])


WRONG = {
    "no such family": ({"preset": "sing:small"}, r"unknown family 'sing'; did you mean 'sign'"),
    "no such preset": ({"preset": "sign:smal"}, r"no preset 'smal'; did you mean 'small'"),
    "needs weights": ({"preset": "sign:wide"}, r"preset wide starts from pretrained weights; .*--from-scratch"),
    "no such recipe": ({"recipe": "smal"}, r"task sign has no recipe 'smal'; did you mean 'small'"),
    "no such file": ({"checkpoint": "sign:nowhere.pth"}, r"nowhere\.pth: checkpoint not found"),
    "another family's task": ({"preset": "beit3:tiny"}, r"task sign has no recipe 'tiny'; it has: small, small-slow"),
}


@pytest.mark.usefixtures("family")
@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_named(case, tmp_path):
    changes, message = WRONG[case]
    with pytest.raises(BenchError, match=message):
        finetune(request_for(tmp_path, **changes), SignTask)
    assert not (tmp_path / "x").exists()


@pytest.mark.usefixtures("family")
def test_an_ability_that_the_family_does_not_offer_is_named(tmp_path):
    class Told(SignTask):
        ability = Captions

    with pytest.raises(BenchError, match=r"task sign asks caption, and Sign models offer classify"):
        find_origin(request_for(tmp_path), Told)


def test_a_family_without_a_recipe_says_which_tasks_it_has(monkeypatch, tmp_path):
    monkeypatch.setattr(SignTask, "recipe_table", {})
    with pytest.raises(BenchError, match=r"task sign has no fine-tuning recipe; fine-tune one of: ade20k-seg, "):
        finetune(request_for(tmp_path, preset="tiny"), SignTask)


# ---- engines ----------------------------------------------------------------------------------------------------------


def invoke(folder: Path, *words: str) -> Any:
    request = request_for(folder)
    given = ["--task", "sign", "--data-root", str(request.data_root), "--preset", "sign:small", "--device", "cpu"]
    return CliRunner().invoke(command, [*given, "--output", str(request.output), *words])


@pytest.mark.usefixtures("family")
@pytest.mark.parametrize("family", [EngineFamily], indirect=True)
def test_an_engine_gets_what_the_task_has_read(tmp_path):
    done = invoke(tmp_path, "--dry-run", "-o", "layer-decay=0.5")
    facts = json.loads(done.stdout)
    assert facts["learned"] == [i % 2 == 0 for i in range(40)]
    assert (facts["root"], facts["options"]) == (str(tmp_path / "data"), {"layer-decay": "0.5"})
    assert done.stderr.count("warning: 1 file") == 1
    text = invoke(tmp_path).stdout
    assert text.startswith("sign: 3 steps in 0 s; best accuracy 1 on the validation split at step 3; checkpoint: ")


@pytest.mark.usefixtures("family")
@pytest.mark.parametrize("family", [EngineFamily], indirect=True)
def test_an_engine_is_not_sharded_and_takes_no_unknown_option(tmp_path):
    assert "leave out --parallel fsdp" in str(invoke(tmp_path, "--parallel", "fsdp").exception)
    assert "no option 'lrr'" in str(invoke(tmp_path, "-o", "lrr=1").exception)


@pytest.mark.usefixtures("family")
def test_a_dry_run_of_a_family_that_does_not_know_its_memory_says_nothing_of_it(tmp_path):
    done = invoke(tmp_path, "--dry-run", "--json")
    facts = json.loads(done.stdout)
    assert facts["memory"] == dict.fromkeys(("weights", "gathered", "activations", "total"), 0)
    assert (facts["parameters"], facts["steps"], facts["start"]) == (1, 6, "from scratch")
