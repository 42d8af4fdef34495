"""SugarCrepe: questions from the official files, the official rule, cosine and match scores from one run, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from exactness import assert_same_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from native import invoke, run_words
from random_vilt import save_vilts

from beit3_bench import evaluate, load
from beit3_bench.backbones.abilities import Item
from beit3_bench.errors import BenchError
from beit3_bench.harness.evidence.compare import compare
from beit3_bench.harness.pages.run import run_page
from beit3_bench.harness.record.store import RunStore
from beit3_bench.tasks.compositionality import Questions, scores_of_cases
from beit3_bench.tasks.metrics.choices import best_images, best_texts, tied
from beit3_bench.tasks.registry import get_task
from beit3_bench.tasks.sugarcrepe import CATEGORIES, KINDS, SugarCrepe, read_category

# ---- which scores highest ---------------------------------------------------------------------------------------------


@given(st.integers(1, 2), st.integers(0, 3), st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=80, deadline=None)
def test_a_question_is_right_where_its_own_scores_strictly_more(images, further, n, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (n, images, images + further)).astype(np.float32)  # many ties
    texts = rng.integers(0, 4, (n, images + further))
    for question, words, by_text, by_image in zip(
        scores, texts, best_texts(scores, texts), best_images(scores), strict=True
    ):
        own = [question[i, i] for i in range(images)]
        rivals = [[question[i, j] for j in range(images + further) if words[j] != words[i]] for i in range(images)]
        assert by_text == all(mine > other for mine, others in zip(own, rivals, strict=True) for other in others)
        others = [[question[j, i] for j in range(images) if j != i] for i in range(images)]
        assert by_image == all(mine > other for mine, row in zip(own, others, strict=True) for other in row)
    equal = sum(
        any(q[i, i] == q[i, j] for i in range(images) for j in range(images + further) if w[i] != w[j])
        for q, w in zip(scores, texts, strict=True)
    )
    assert tied(scores, texts) == equal


# ---- SugarCrepe -------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(native, tmp_path):
    """The COCO folder, to be spoilt."""
    shutil.copytree(native.root("sugarcrepe") / "sugarcrepe", tmp_path / "sugarcrepe")
    shutil.copytree(native.root("sugarcrepe") / "val2017", tmp_path / "val2017")
    return tmp_path


def records(folder):
    return {name: json.loads((folder / "sugarcrepe" / f"{name}.json").read_text()) for name in CATEGORIES}


def test_every_picture_and_every_text_is_there_once_however_many_questions_share_it(native):
    content = records(native.root("sugarcrepe"))
    split = SugarCrepe(native.root("sugarcrepe")).read("test")
    questions: Questions = split.truth
    asked = [(name, key, record) for name, of in content.items() for key, record in of.items()]
    assert [case.id for case in questions.cases] == [f"{name}/{key}" for name, key, _ in asked]
    pictures = {record["filename"] for _, _, record in asked}
    texts = {record[key] for _, _, record in asked for key in ("caption", "negative_caption")}
    assert {e.images[0].rpartition("/")[2] for e in split.examples if e.kind == "image"} == pictures
    assert sorted(e.text for e in split.examples if e.kind == "text") == sorted(texts)
    assert len(split.examples) == len(pictures) + len(texts) < 2 * len(asked)
    for case, (name, _, record) in zip(questions.cases, asked, strict=True):
        (image,), own = case.images, [questions.texts[place].text for place in case.texts]
        assert own == [record["caption"], record["negative_caption"]]
        assert questions.images[image].images[0].endswith(record["filename"])
        assert case.groups == (name,)
        assert case.cluster == record["filename"].removesuffix(".jpg")


def test_the_tiny_world_changes_captions_into_what_the_pictures_do_not_show(native):
    content, root = records(native.root("sugarcrepe")), native.root("sugarcrepe")
    instances = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    names = {category["id"]: category["name"] for category in instances["categories"]}
    of_file = {image["file_name"]: image["id"] for image in instances["images"]}
    shown: dict[int, set[str]] = {}
    for record in instances["annotations"]:
        shown.setdefault(record["image_id"], set()).add(names[record["category_id"]])
    assert all(content[name] for name in CATEGORIES)
    for name in ("add_obj", "replace_obj"):
        for record in content[name].values():
            there = shown[of_file[record["filename"]]]
            right, wrong = (
                {shape for shape in names.values() if shape in record[key]} for key in ("caption", "negative_caption")
            )
            assert right <= there
            assert not wrong <= there
    for name in ("swap_att", "swap_obj"):
        for record in content[name].values():
            words = [sorted(record[key].lower().strip(".").split()) for key in ("caption", "negative_caption")]
            assert [w.replace("an", "a") for w in words[0]] == [w.replace("an", "a") for w in words[1]]


def test_a_run_scores_as_the_official_code_and_encodes_every_picture_once(native, tmp_path):
    done = invoke(*run_words(native, "sugarcrepe"), "--output", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    rows = RunStore.read(tmp_path / "run").rows()
    of_text = {
        e.text: rows[e.id]["embedding"] for e in SugarCrepe(native.root("sugarcrepe")).read("test").examples if e.text
    }
    right = {}
    for name, of_name in records(native.root("sugarcrepe")).items():  # `text_retrieval` and `evaluate` of main_eval.py
        hits = []
        for record in of_name.values():
            image = rows[f"image:{record['filename'].removesuffix('.jpg')}"]["embedding"]
            hits.append(image @ of_text[record["caption"]] > image @ of_text[record["negative_caption"]])
        right[name] = np.array(hits)
        assert result["metrics"][f"accuracy/{name}"]["value"] == pytest.approx(right[name].mean())
    values = {name: metric["value"] for name, metric in result["metrics"].items()}
    assert values["accuracy"] == pytest.approx(np.concatenate(list(right.values())).mean())
    for kind, names in KINDS.items():
        assert values[f"accuracy/{kind}"] == pytest.approx(np.mean([right[name].mean() for name in names]))
    assert values["mean_of_kinds"] == pytest.approx(np.mean([values[f"accuracy/{kind}"] for kind in KINDS]))
    pictures = {record["filename"] for of in records(native.root("sugarcrepe")).values() for record in of.values()}
    assert result["counts"]["images"] == result["timing"]["images_decoded"] == len(pictures)
    assert result["chance"] == 0.5
    assert result["model"]["protocol"] == "dual encoder"
    assert not any(name.startswith("plain/") for name in values)
    page = run_page(tmp_path / "run", n=6)
    assert page.cards == 6
    assert "Cosine" in page.html


def test_a_picture_that_is_another_one_by_now_is_marked_on_the_page_of_its_questions(native, root, tmp_path):
    words = run_words(native, "sugarcrepe", root)
    assert invoke(*words, "--output", tmp_path / "run").exit_code == 0
    first, *_, last = sorted((root / "val2017").iterdir())
    for picture in SugarCrepe(root).read("test").truth.images:
        shutil.copy(first if picture.images[0] != str(first) else last, picture.images[0])
    (warning,) = [line for line in run_page(tmp_path / "run", n=4).warnings if "no longer the files" in line]
    assert "pictures shown are no longer the files that were scored" in warning


def test_a_part_takes_questions_of_every_kind_with_their_pictures(native):
    task = SugarCrepe(native.root("sugarcrepe"))
    part = task.limited(task.read("test"), 12)
    assert len(part.truth.cases) == 12
    assert len({case.groups[0] for case in part.truth.cases}) >= 5
    used = {place for case in part.truth.cases for place in case.images}
    assert used == set(range(len(part.truth.images)))
    assert [e.kind for e in part.examples].count("image") == len(used)


def test_some_categories_leave_the_means_over_others_open(native, tmp_path):
    words = run_words(native, "sugarcrepe")
    done = invoke(*words, "-o", "categories=swap_att, swap_obj", "--output", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    swaps = [result["metrics"][f"accuracy/{name}"]["value"] for name in KINDS["swap"]]
    assert result["metrics"]["accuracy/swap"]["value"] == pytest.approx(np.mean(swaps))
    assert "accuracy/add" not in result["metrics"]
    assert any("mean_of_kinds has no value on these samples" in note for note in result["notes"])


def test_pictures_of_val2014_are_those_of_val2017(native, root):
    folder = SugarCrepe(root).read("test")
    shutil.rmtree(root / "val2017")
    shutil.copytree(native.root("sugarcrepe") / "val2014", root / "val2014")
    longer = SugarCrepe(root).read("test")
    assert [e.image_names for e in longer.examples] == [e.image_names for e in folder.examples]
    assert all("/val2014/COCO_val2014_" in e.images[0] for e in longer.examples if e.images)


def test_flips_between_two_runs_say_which_caption_each_took(native, tmp_path):
    for seed, folder in enumerate(("a", "b")):
        words = run_words(native, "sugarcrepe")
        model = words.index("--checkpoint") + 1
        if seed:
            words[model] = scrambled(native, tmp_path)
        done = invoke(*words, "--output", tmp_path / folder)
        assert done.exit_code == 0, done.stderr
    comparison = compare(tmp_path / "a", tmp_path / "b", ["accuracy"], data_root=native.root("sugarcrepe"), flips=9)
    (one,) = comparison.metrics
    assert one.flips
    for flip in one.flips:
        assert (flip.predicted_a["said"] == flip.truth) == (flip.a == 1)
        assert (flip.predicted_b["said"] == flip.truth) == (flip.b == 1)
        assert flip.images


def scrambled(native, folder):
    """The retrieval checkpoint with its text projection turned round."""
    content = torch.load(native.checkpoint("sugarcrepe"), weights_only=True)
    name = next(name for name in content["model"] if "language_head" in name)
    content["model"][name] = content["model"][name].flip(0)
    torch.save(content, folder / "turned.pth")
    shutil.copy(native.checkpoints / "beit3.spm", folder)
    return folder / "turned.pth"


# ---- match scores -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fusion(native, tmp_path_factory):
    """Tiny ALBEF and BLIP with random weights, by family."""
    from beit3_bench.backbones.registry import get_family

    folder = tmp_path_factory.mktemp("fusion")
    texts = [e.text for e in SugarCrepe(native.root("sugarcrepe")).read("test").examples if e.text]
    for family in ("albef", "blip"):
        get_family(family).write_specimens(folder / family, texts)
    return {family: folder / family / "retrieval.pth" for family in ("albef", "blip")}


def run(native, checkpoint, folder, *more):
    words = [*run_words(native, "sugarcrepe"), "--output", folder, "--json", *more]
    words[words.index("--checkpoint") + 1] = checkpoint
    done = invoke(*words)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize(("family", "protocol"), [("albef", "matching"), ("blip", "matching + cosine")])
def test_a_model_with_a_matching_head_is_scored_by_it_and_by_cosine_in_one_run(
    native, fusion, tmp_path, family, protocol
):
    result, said = run(native, fusion[family], tmp_path / "run", "--limit", 20)
    assert result["model"]["protocol"] == protocol
    assert result["provenance"]["options"]["score"] == "match"
    assert "matching: " in said
    plain, _ = run(native, fusion[family], tmp_path / "plain", "--limit", 20, "-o", "score=cosine")
    assert plain["model"]["protocol"] == "dual encoder"
    for name, metric in plain["metrics"].items():
        assert result["metrics"][f"plain/{name}"]["value"] == pytest.approx(metric["value"])
    task = SugarCrepe(native.root("sugarcrepe"))
    split = task.limited(task.read("test"), 20)
    scored = scores_of_cases(split.truth, RunStore.read(tmp_path / "run").rows())
    hits = scored["match"][:, 0, 0] > scored["match"][:, 0, 1]
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(hits.mean())
    model = load(fusion[family], "sugarcrepe", device="cpu")
    for case, scores in list(zip(split.truth.cases, scored["match"], strict=True))[:4]:
        expected = official_scores(model, split.truth, case, adds_cosine=family == "blip")
        np.testing.assert_allclose(scores[0], expected, atol=2e-5)
    assert "Match score" in run_page(tmp_path / "run", n=2).html


def official_scores(model, questions, case, adds_cosine):
    """By the native module's `match`, a pair at a time, with the cosine where the family's code adds it."""
    ability, scores = model.model.ability, []
    pixels = ability.normalise(ability.reader.pixels(questions.images[case.images[0]].images[0]).unsqueeze(0))
    for place in case.texts:
        ids = torch.tensor([ability.reader.ids_of(questions.texts[place].text, "")])
        with torch.inference_mode():
            score = float(model.module.match(pixels, ids)[0])
            if adds_cosine:
                score += float(model.module.encode_image(pixels)[0] @ model.module.encode_text(ids)[0])
        scores.append(score)
    return scores


def test_a_run_that_was_stopped_in_its_second_pass_goes_on_and_scores_the_same(native, fusion, tmp_path):
    whole, _ = run(native, fusion["albef"], tmp_path / "whole", "--limit", 12, "--batch-size", 3)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part" / "result.json").unlink()
    (shard,) = (tmp_path / "part" / "rows").iterdir()
    lines = shard.read_bytes().splitlines(keepends=True)
    second = next(n for n, line in enumerate(lines) if line.startswith(b'{"id":"match:'))
    until = next(n for n, line in enumerate(lines[second:], second) if line.startswith(b'{"commit"')) + 1
    shard.write_bytes(b"".join(lines[:until]))  # one batch of the second pass
    again, _ = run(native, fusion["albef"], tmp_path / "part", "--limit", 12, "--batch-size", 3)
    assert again["metrics"] == whole["metrics"]
    assert_same_rows(tmp_path / "whole", tmp_path / "part")


def test_a_dual_encoder_has_no_match_score(native, tmp_path):
    done = invoke(*run_words(native, "sugarcrepe"), "-o", "score=match", "--output", tmp_path / "run")
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "score=match: retrieval.pth compares no image with a text beyond their embeddings; leave it out" in line


def test_an_object_that_embeds_is_evaluated(native, tmp_path):
    class Lengths:
        def embed(self, *, images=None, texts=None):
            return np.array(
                [[1.0, len(t) if texts is not None else 1.0] for t in (texts if texts is not None else images)]
            )

    result = evaluate(Lengths(), "sugarcrepe", native.root("sugarcrepe"), output=tmp_path / "run")
    assert 0 <= result.metrics["accuracy"].value <= 1


# ---- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda r: (r / "sugarcrepe" / "swap_obj.json").unlink(), r"1 of 7 files of SugarCrepe are missing \(swap_obj.json\).*data get"),
        (lambda r: shutil.rmtree(r / "sugarcrepe"), "7 of 7 files of SugarCrepe are missing"),
        (lambda r: (r / "sugarcrepe" / "add_att.json").write_text('{"0": {'), r"add_att.json:1: not valid JSON"),
        (lambda r: (r / "sugarcrepe" / "add_att.json").write_text("[]"), 'expected an object such as {"0": '),
        (lambda r: change(r, negative_caption=None), r"add_att.json: '0': 'negative_caption' should be str"),
        (lambda r: change(r, "negative_caption"), r"add_att.json: '0': key 'negative_caption' is missing"),
        (lambda r: change(r, caption="x", negative_caption="x"), "caption and negative_caption are the same"),
        (lambda r: shutil.rmtree(r / "val2017"), "COCO image folder not found"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_are_told_in_a_line(root, spoil, told):
    spoil(root)
    with pytest.raises(BenchError, match=told) as error:
        SugarCrepe(root).read("test")
    assert "\n" not in str(error.value)


def change(root, *gone, **fields):
    path = root / "sugarcrepe" / "add_att.json"
    content = json.loads(path.read_text())
    content["0"] = {key: value for key, value in {**content["0"], **fields}.items() if key not in gone}
    path.write_text(json.dumps(content))


def test_pictures_that_are_not_there_are_counted(native, root):
    name = read_category(root / "sugarcrepe" / "add_att.json")[0][1]
    (root / "val2017" / name).unlink()
    words = run_words(native, "sugarcrepe", root)
    done = invoke(*words)
    assert done.exit_code == 2
    assert "1 of 22 image files are missing below" in done.stderr


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("categories=swap_att,swop_obj", "categories has 'swop_obj'; did you mean 'swap_obj'"),
        ("score=cosin", "score is 'cosin'; give one of cosine, match"),
        ("rerank=4", "rerank"),
    ],
)
def test_options_that_mean_nothing_are_refused(native, option, told):
    done = invoke(*run_words(native, "sugarcrepe"), "-o", option)
    assert done.exit_code == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


# ---- a model that only matches ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vilt(native, tmp_path_factory):
    """A tiny ViLT with random weights and its matching head."""
    return save_vilts(tmp_path_factory.mktemp("vilt"), native) / "retrieval.ckpt"


@pytest.mark.parametrize(
    ("task", "headline"), [("sugarcrepe", "accuracy"), ("winoground", "group"), ("aro", "accuracy")]
)
def test_a_model_that_embeds_nothing_is_asked_for_match_scores_alone(native, vilt, tmp_path, task, headline):
    root = native.world / {"sugarcrepe": "coco"}.get(task, task)
    words = [*run_words(native, "sugarcrepe", root), "--output", tmp_path / "run", "--json", "--limit", 8]
    words[words.index("--task") + 1], words[words.index("--checkpoint") + 1] = task, vilt
    done = invoke(*words)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    rows = RunStore.read(tmp_path / "run").rows()
    assert all(name.startswith("match:") for name in rows)
    assert len(rows) == result["counts"]["images"] == result["timing"]["images_decoded"]
    assert not any(name.startswith("plain/") for name in result["metrics"])
    task_class = get_task(task)
    questions = task_class(root).limited(task_class(root).read(task_class.default_split), 8).truth
    model = load(vilt, task, device="cpu")
    scored = scores_of_cases(questions, rows)
    assert scored.keys() == {"match"}
    for case, scores in zip(questions.cases, scored["match"], strict=True):
        for place, row in zip(case.images, scores, strict=True):
            texts = tuple(questions.texts[text].text for text in case.texts)
            item = Item("", questions.images[place].images, texts=texts)
            ability = model.model.ability
            with torch.inference_mode():
                (alone,) = ability.predict(ability.reader.collate([item]))
            np.testing.assert_allclose(row, alone, atol=1e-5)
    again = invoke("score", "--run", tmp_path / "run", "--data-root", root, "--json")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)[headline] == pytest.approx(result["metrics"][headline]["value"], nan_ok=True)
    assert "Match score" in run_page(tmp_path / "run", n=2).html


def test_a_model_that_embeds_nothing_has_no_cosine(native, vilt, tmp_path):
    words = [*run_words(native, "sugarcrepe"), "-o", "score=cosine", "--output", tmp_path / "run"]
    words[words.index("--checkpoint") + 1] = vilt
    done = invoke(*words)
    assert done.exit_code == 2
    assert "score=cosine: this model compares an image with a text and embeds neither; leave it out" in done.stderr
