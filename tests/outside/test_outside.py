"""A family and a task of other packages, through the command line: nothing in the harness knows them, nor they BEiT-3."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from native import Native, invoke
from outside_family import ColourWords, write_model
from outside_task import Swatches, write_swatches

from beit3_bench.backbones.family import Outputs
from beit3_bench.backbones.registry import BUILT_IN
from beit3_bench.errors import BenchError

pytestmark = pytest.mark.usefixtures("installed")

EMBEDDING = ("coco-retrieval", "flickr30k", "imagenet")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "colours.json")


def words(native: Native, task: str, checkpoint: object, to: Path, *more: object) -> list[object]:
    files = ("--checkpoint", checkpoint, "--data-root", native.root(task), "--output", to)
    return ["run", "--task", task, *files, "--device", "cpu", "--workers", 0, *more]


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


# ---- the family -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", EMBEDDING)
@pytest.mark.parametrize("prefix", ["", "outside:"])
def test_a_family_from_outside_is_evaluated_by_name_or_by_its_file(native, model, tmp_path, task, prefix):
    done = invoke(*words(native, task, f"{prefix}{model}", tmp_path / "run", "--json"))
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["model"]["family"] == "outside"
    assert result["model"]["protocol"] == "dual encoder"
    assert result["setting"] == "zero-shot"
    assert result["provenance"]["fingerprints"]["checkpoint"] == result["model"]["sha256"]
    (name,) = [n for n, m in result["metrics"].items() if m["headline"]]
    if task != "imagenet":  # whose classes are not named by their colours
        assert result["metrics"][name]["value"] > 1.5 * result["chance"]


def test_decoding_processes_and_batches_change_no_row(native, model, tmp_path):
    from beit3_bench.harness.record.store import RunStore

    for to, more in (("one", ("--batch-size", 1)), ("many", ("--batch-size", 64, "--workers", 2))):
        done = invoke(*words(native, "flickr30k", model, tmp_path / to, *more))
        assert done.exit_code == 0, done.stderr
    one, many = (RunStore.read(tmp_path / to).rows() for to in ("one", "many"))
    assert one.keys() == many.keys()
    assert all((one[i]["embedding"] == many[i]["embedding"]).all() for i in one)


def test_an_interrupted_run_goes_on(native, model, tmp_path, monkeypatch):
    whole = invoke(*words(native, "flickr30k", model, tmp_path / "whole", "--json"))
    original, calls = ColourWords.predict, []

    def interrupted(self, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, batch)

    command = words(native, "flickr30k", model, tmp_path / "run", "--batch-size", 4, "--json")
    monkeypatch.setattr(ColourWords, "predict", interrupted)
    assert invoke(*command).exit_code == 130
    monkeypatch.setattr(ColourWords, "predict", original)
    resumed = invoke(*command)
    assert resumed.exit_code == 0, resumed.stderr
    result = json.loads(resumed.stdout)
    assert result["timing"]["resumed_samples"] == 8
    assert result["metrics"] == json.loads(whole.stdout)["metrics"]
    other = write_model(tmp_path / "other.json", places=16)
    refused = invoke(*words(native, "flickr30k", other, tmp_path / "run"))
    assert refused.exit_code == 2
    assert "checkpoint" in refused.stderr


@pytest.mark.parametrize("prefix", ["", "outside:"])
def test_a_run_is_replayed(native, model, tmp_path, prefix):
    assert invoke(*words(native, "flickr30k", f"{prefix}{model}", tmp_path / "run")).exit_code == 0
    told = invoke("replay", tmp_path / "run")
    assert told.exit_code == 2
    assert f"--checkpoint {prefix}{model}" in told.stderr  # the command that it gives is the one to give
    places = ("--checkpoint", f"{prefix}{model}", "--data-root", native.root("flickr30k"))
    again = invoke("replay", tmp_path / "run", *places, "--json")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["same"] is True
    write_model(model, places=16)
    changed = invoke("replay", tmp_path / "run", *places)
    assert changed.exit_code == 2
    assert "not what the run saw: checkpoint" in changed.stderr


def test_texts_come_from_the_feature_store_and_no_row_changes(native, model, tmp_path):
    plain = json.loads(invoke(*words(native, "flickr30k", model, tmp_path / "plain", "--json")).stdout)
    kept = ("--features", tmp_path / "features", "--json")
    for run in ("first", "second"):
        done = invoke(*words(native, "flickr30k", model, tmp_path / run, *kept))
        assert done.exit_code == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["timing"]["samples_from_store"] == again["counts"]["texts"]
    assert again["metrics"] == plain["metrics"]


def test_the_table_shows_its_rows_beside_those_of_beit3(native, model, tmp_path):
    for to, checkpoint in (("runs/ours", model), ("runs/beit3", native.checkpoint("flickr30k"))):
        done = invoke(*words(native, "flickr30k", checkpoint, tmp_path / to))
        assert done.exit_code == 0, done.stderr
    shown = invoke("table", "--runs", tmp_path / "runs")
    assert shown.exit_code == 0, shown.stderr
    assert "colours" in shown.stdout
    assert "retrieval" in shown.stdout


def test_no_module_of_beit3_is_imported_for_it(native, model, tmp_path):
    """Evaluating a model of another family needs nothing of BEiT-3's network."""
    import subprocess

    program = (
        "import sys\n"
        "from importlib.metadata import EntryPoint\n"
        "from beit3_bench.backbones import registry\n"
        "registry.entry_points = lambda group: [EntryPoint('outside', 'outside_family:OutsideFamily', group)]\n"
        "from native import invoke\n"
        f"done = invoke('run', '--task', 'flickr30k', '--checkpoint', 'outside:{model}', '--data-root',\n"
        f"    {str(native.root('flickr30k'))!r}, '--output', {str(tmp_path / 'run')!r}, '--device', 'cpu', '--workers', 0)\n"
        "assert done.exit_code == 0, done.stderr\n"
        "theirs = {name.rpartition('.')[2] for name in sys.modules if name.startswith('beit3_bench.backbones.beit3.')}\n"
        "assert not theirs - {'family', 'weights', 'recipes'}, theirs\n"
    )
    here = Path(__file__).resolve().parent
    path = ":".join([str(here), str(here.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr


# ---- what is refused ----------------------------------------------------------------------------------------------------


def refused(*command: object) -> str:
    """The one line of a refusal."""
    done = invoke(*command)
    assert done.exit_code == 2, (done.stdout, done.stderr)
    (line,) = done.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize("prefix", ["", "outside:"])
def test_an_ability_that_a_family_does_not_offer_is_named(native, model, tmp_path, prefix):
    line = refused(*words(native, "vqav2", f"{prefix}{model}", tmp_path / "run"))
    assert f"{model}: outside offers embed; vqav2 asks answer; give a checkpoint of another family" in line
    assert not (tmp_path / "run").exists()


def test_a_file_that_two_families_claim_is_refused_until_one_is_named(native, model, tmp_path, announce):
    announce("beit3_bench.families", second="outside_family:SecondFamily")
    line = refused(*words(native, "flickr30k", model, tmp_path / "run"))
    assert f"{model}: could be of the families outside and second; say which, as outside:{model}" in line
    assert not (tmp_path / "run").exists()
    assert invoke(*words(native, "flickr30k", f"second:{model}", tmp_path / "run")).exit_code == 0


def test_an_unknown_family_gets_a_hint(native, model, tmp_path):
    line = refused(*words(native, "flickr30k", f"outsid:{model}", tmp_path / "run"))
    assert "unknown family 'outsid'; did you mean 'outside'?" in line


@pytest.mark.parametrize("kind", ["tensors", "text"])
def test_a_file_of_no_family_says_which_were_tried(native, tmp_path, kind):
    path = tmp_path / ("strange.pth" if kind == "tensors" else "strange.json")
    if kind == "tensors":
        import torch

        torch.save({"resnet.weight": torch.zeros(2)}, path)
    else:
        path.write_text('{"format": "another"}')
    tried = ", ".join([*BUILT_IN, "outside"])
    line = refused(*words(native, "flickr30k", path, tmp_path / "run"))
    assert line.startswith(f"error: {path}: ")
    if kind == "tensors":
        assert f"is of no known family ({tried} were tried); one of its names is 'resnet.weight'" in line
    else:
        assert line.endswith(
            f"is a JSON file, not a checkpoint; give the file that holds the weights (families that were tried: {tried})"
        )


def test_a_model_file_of_another_family_is_refused_where_one_is_named(native, tmp_path):
    path = native.checkpoint("flickr30k")
    assert f"{path}: is no model of colour words" in refused(
        *words(native, "flickr30k", f"outside:{path}", tmp_path / "r")
    )


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        (("--preset", "tiny"), "no preset 'tiny'; architectures of Colour words have no names; leave out --preset"),
        (
            (),
            "task flickr30k has no fine-tuning recipe; Colour words models have none at all; start from another family's",
        ),
    ],
)
def test_a_family_that_is_not_trained_says_so(native, model, tmp_path, preset, message):
    start = (*preset, "--checkpoint", model, "--data-root", native.root("flickr30k"), "--output", tmp_path / "training")
    assert message in refused("finetune", "--task", "flickr30k", *start)
    assert not (tmp_path / "training").exists()


# ---- the task ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swatches(tmp_path_factory) -> Path:
    return write_swatches(tmp_path_factory.mktemp("swatches") / "data")


def trained(root: Path, to: Path, recipe: str = "tiny") -> Path:
    """A tiny BEiT-3, fine-tuned by a recipe of the task's own."""
    start = ("--preset", "tiny", "--recipe", recipe, "--data-root", root, "--from-scratch", "--device", "cpu")
    done = invoke("finetune", "--task", "outside-task", *start, "--workers", 0, "--output", to)
    assert done.exit_code == 0, done.stderr
    return to / "best.pth"


def evaluation(root: Path, checkpoint: Path, to: Path, *more: object) -> list[object]:
    files = ("--checkpoint", checkpoint, "--data-root", root, "--output", to)
    return ["run", "--task", "outside-task", *files, "--device", "cpu", "--workers", 0, *more]


def test_a_task_from_outside_is_trained_for_evaluated_resumed_replayed_and_shown(swatches, tmp_path, monkeypatch):
    checkpoint = trained(swatches, tmp_path / "training")
    whole = invoke(*evaluation(swatches, checkpoint, tmp_path / "runs" / "whole", "--json"))
    assert whole.exit_code == 0, whole.stderr
    result = json.loads(whole.stdout)
    assert result["metrics"]["accuracy"]["value"] > 2 * result["chance"]
    assert result["setting"] == "fine-tuned"
    assert result["notes"] == []

    from beit3_bench.backbones.beit3.native import ImageClassifier

    original, calls = ImageClassifier.predict, []

    def interrupted(self, batch):
        calls.append(batch)
        if len(calls) == 4:  # the first counts the operations of a sample
            raise KeyboardInterrupt
        return original(self, batch)

    command = evaluation(swatches, checkpoint, tmp_path / "resumed", "--batch-size", 4, "--json")
    monkeypatch.setattr(ImageClassifier, "predict", interrupted)
    assert invoke(*command).exit_code == 130
    monkeypatch.setattr(ImageClassifier, "predict", original)
    resumed = json.loads(invoke(*command).stdout)
    assert resumed["timing"]["resumed_samples"] == 8
    assert resumed["metrics"] == result["metrics"]

    places = ("--checkpoint", checkpoint, "--data-root", swatches)
    again = invoke("replay", tmp_path / "runs" / "whole", *places, "--json")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["same"] is True

    shown = invoke("table", "--runs", tmp_path / "runs")
    assert shown.exit_code == 0, shown.stderr
    for text in ("Swatches of the outside", "accuracy", "A pair of eyes", "99.0"):
        assert text in shown.stdout


def test_recipes_of_the_task_may_inherit_and_unknown_ones_are_helped(swatches, tmp_path):
    trained(swatches, tmp_path / "training", "short")
    assert json.loads((tmp_path / "training" / "config.json").read_text())["recipe"]["lr"] == 2e-3
    start = ("--preset", "tiny", "--data-root", swatches, "--from-scratch", "--output", tmp_path / "other")
    line = refused("finetune", "--task", "outside-task", *start, "--recipe", "shrt")
    assert "task outside-task has no recipe 'shrt'; did you mean 'short'?" in line


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["green", "red", "blue"], "output 0 is 'red' in the checkpoint, 'green' here"),
        (["red", "green"], "its head has 3 colours, {root}/classes.json has 2"),
        (["red", "blue", "green"], "output 1 is 'green' in the checkpoint, 'blue' here"),
    ],
)
def test_labels_of_another_number_or_order_are_refused(swatches, tmp_path, names, message):
    checkpoint = trained(swatches, tmp_path / "training", "short")
    root = write_swatches(tmp_path / "other", names=names)
    line = refused(*evaluation(root, checkpoint, tmp_path / "run"))
    assert message.format(root=root) in line
    assert not (tmp_path / "run").exists()


def test_what_a_checkpoint_says_is_compared_by_the_task_alone(swatches, tmp_path):
    task = Swatches(swatches)
    split = task.read("test")
    assert task.asked(split).labels == ("red", "green", "blue")
    assert task.check_outputs(split, Outputs(tmp_path / "m.pth", ("red", "green", "blue"), 3)) == []
    with pytest.raises(BenchError, match="its head has 4 colours"):
        task.asked(split).check_outputs(Outputs(tmp_path / "m.pth", count=4))


def test_options_of_the_task_are_helped(swatches, tmp_path):
    checkpoint = tmp_path / "m.pth"
    checkpoint.write_bytes(b"x")
    assert "did you mean 'only'?" in refused(*evaluation(swatches, checkpoint, tmp_path / "run", "-o", "onli=red"))
