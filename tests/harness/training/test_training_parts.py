"""The parts of a training: order, division over processes, files, journal, what a start is made of."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from beit3_bench.backbones.beit3.checkpoint import load_model_for, official_state_dict
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.models import build_model
from beit3_bench.backbones.beit3.training.start import allowed_names, initialise_from_scratch
from beit3_bench.backbones.checkpoints import read_checkpoint
from beit3_bench.backbones.recipe import Recipe
from beit3_bench.errors import BenchError
from beit3_bench.files import save_atomic
from beit3_bench.harness.record.fingerprints import digest, earlier_option_digests
from beit3_bench.harness.training import curves
from beit3_bench.harness.training.journal import CURVES, LOG, Journal, draw_curves, read_table
from beit3_bench.harness.training.order import Division, GlobalBatches, share
from beit3_bench.harness.training.state import check_best, check_same, read_state, save_checkpoint

# ---- order ----------------------------------------------------------------------------------------------------------


def test_an_epoch_holds_every_sample_once_but_for_an_incomplete_batch():
    batches = GlobalBatches(23, 5, seed=1)
    assert batches.steps_per_epoch == 4
    for epoch in range(3):
        seen = [i for step in range(4) for i in batches.indices(epoch * 4 + step)]
        assert len(set(seen)) == 20
        assert set(seen) <= set(range(23))


def test_a_step_has_the_same_samples_however_it_is_reached():
    straight = GlobalBatches(23, 5, seed=1)
    expected = [straight.indices(step) for step in range(12)]
    for step in (11, 0, 7, 3):
        assert GlobalBatches(23, 5, seed=1).indices(step) == expected[step]
    assert expected[0] != expected[4]
    assert GlobalBatches(23, 5, seed=2).indices(0) != expected[0]


def test_a_batch_larger_than_the_split_is_refused():
    with pytest.raises(BenchError, match="-o batch=3"):
        GlobalBatches(3, 4, seed=0)


@given(st.integers(0, 50), st.integers(1, 9))
def test_shares_are_contiguous_complete_and_even(count, parts):
    slices = [share(count, i, parts) for i in range(parts)]
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(count))
    sizes = [s.stop - s.start for s in slices]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=60)
@given(st.integers(1, 8), st.integers(1, 60), st.integers(0, 20))
def test_division_covers_the_batch_and_weights_average_to_one(world, batch, micro_batch):
    if batch < world:
        with pytest.raises(BenchError, match="over"):
            Division.of(batch, world, micro_batch)
        return
    division = Division.of(batch, world, micro_batch)
    parts = [division.own(m, r) for m in range(division.accumulate) for r in range(world)]
    assert [i for s in parts for i in range(s.start, s.stop)] == list(range(batch))
    assert all(s.stop > s.start for s in parts)
    weights = [division.weight(m, r) for m in range(division.accumulate) for r in range(world)]
    assert sum(weights) / world == pytest.approx(1.0)


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path):
    path = tmp_path / "state.pt"
    save_atomic(path, {"version": 1, "step": 3})

    class Unwritable:
        def __reduce__(self):
            raise OSError(28, "No space left on device")

    with pytest.raises(BenchError, match="disk is full"):
        save_atomic(path, {"version": 1, "bad": Unwritable()})
    assert read_state(path)["step"] == 3
    assert os.listdir(tmp_path) == ["state.pt"]


def test_a_kill_in_the_middle_of_saving_keeps_the_old_file(tmp_path: Path):
    path = tmp_path / "state.pt"
    code = f"""
        import os, signal, torch
        from pathlib import Path
        from beit3_bench.harness.training import state
        path = Path({str(path)!r})
        state.save_atomic(path, {{"version": 1, "step": 1}})
        save = torch.save
        def half(content, file):
            save(content, file)
            file.flush()
            os.truncate(file.name, os.path.getsize(file.name) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        torch.save = half
        state.save_atomic(path, {{"version": 1, "step": 2, "x": torch.zeros(10000)}})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_state(path)["step"] == 1


def test_a_best_checkpoint_that_is_lost_or_cut_is_no_result(tmp_path: Path):
    best = {"step": 7}
    with pytest.raises(BenchError, match=r"best\.pth: is missing or damaged, the state says that it holds step 7"):
        check_best(tmp_path, best)
    check_best(tmp_path, None)
    save_atomic(tmp_path / "best.pth", {"model": {}})
    check_best(tmp_path, best)
    (tmp_path / "best.pth").write_bytes((tmp_path / "best.pth").read_bytes()[:-50])
    with pytest.raises(BenchError, match=r"restore it, or evaluate last\.pth"):
        check_best(tmp_path, best)


def test_a_state_that_would_run_code_or_is_cut_is_refused(tmp_path: Path):
    path = tmp_path / "state.pt"
    save_atomic(path, {"version": 1, "x": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(BenchError, match="not a whole training state"):
        read_state(path)
    for content, told in (
        (b"", "it is empty"),
        (bytes(999), "it begins with zero bytes only"),
        (b"hello", "it is a text file"),
    ):
        path.write_bytes(content)
        with pytest.raises(BenchError, match=rf"not a whole training state \({told}[^;]*\); delete it"):
            read_state(path)
    torch.save({"version": 1, "run": os.system}, path)
    with pytest.raises(
        BenchError, match=r"not a whole training state \(it asks to run \w+\.system, and nothing was executed\)"
    ):
        read_state(path)
    torch.save({"version": 0}, path)
    with pytest.raises(BenchError, match="another version"):
        read_state(path)
    path.unlink()
    with pytest.raises(BenchError, match="no training to resume"):
        read_state(path)


def test_a_changed_recipe_seed_or_data_is_named():
    recipe = Recipe()
    stored = {"recipe": recipe.to_dict(), "seed": 0, "fingerprints": {"data": "aaa", "start": "x"}}
    same = {"data": "aaa", "start": "x"}
    check_same(Path("state.pt"), stored, recipe, same, 0)
    with pytest.raises(BenchError, match=r"recipe lr 0.0005 -> 0.1"):
        check_same(Path("state.pt"), stored, Recipe(lr=0.1), same, 0)
    with pytest.raises(BenchError, match="seed 0 -> 1"):
        check_same(Path("state.pt"), stored, recipe, same, 1)
    with pytest.raises(BenchError, match="data aaa -> bbb"):
        check_same(Path("state.pt"), stored, recipe, {**same, "data": "bbb"}, 0)


def test_option_that_an_earlier_version_did_not_have_meant_its_default():
    @dataclasses.dataclass
    class Before:
        bias: float = 0.0

    @dataclasses.dataclass
    class Now(Before):
        names: Path | None = None

    was = digest(vars(Before(bias=1.0)))
    assert was in earlier_option_digests(Now(bias=1.0))
    assert was not in earlier_option_digests(Now(bias=1.0, names=Path("x")))
    assert was not in earlier_option_digests(Now(bias=2.0))
    stored = {"recipe": Recipe().to_dict(), "seed": 0, "fingerprints": {"options": was}}
    now = {"options": digest(vars(Now(bias=1.0)))}
    check_same(Path("state.pt"), stored, Recipe(), now, 0, {"options": earlier_option_digests(Now(bias=1.0))})
    with pytest.raises(BenchError, match="options"):
        check_same(Path("state.pt"), stored, Recipe(), now, 0)


def test_a_saved_checkpoint_is_read_without_further_flags(tmp_path: Path):
    config = BEiT3Config.preset("tiny", embed_dim=48, ffn_dim=96, depth=2, vocab_size=99)
    model = build_model("retrieval", config)
    path = tmp_path / "best.pth"
    metadata = {"task": "flickr30k", "head": "retrieval", "preset": "tiny", "config": config.to_dict(), "step": 3}
    save_checkpoint(path, official_state_dict(model), metadata)
    loaded = load_model_for("retrieval", path)
    assert loaded.config == config
    assert loaded.metadata["task"] == "flickr30k"
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)


# ---- start ----------------------------------------------------------------------------------------------------------


def test_only_heads_and_the_final_norm_may_differ_from_a_pretrained_checkpoint():
    names = {"beit3.text_embed.weight", "beit3.encoder.layer_norm.A.weight", "head.weight"}
    tensors = {"module.mlm_head.weight": 0, "beit3.text_embed.weight": 0, "beit3.extra": 0}
    assert allowed_names(names, tensors) == ["beit3.encoder.layer_norm.A.weight", "head.weight", "mlm_head.weight"]


def test_scratch_initialisation_lets_more_of_the_input_through():
    """Share of an embedding that depends on the image: next to nothing after the official initialisation."""
    config = BEiT3Config.preset("tiny", vocab_size=99)
    torch.manual_seed(0)
    model = build_model("retrieval", config)
    images = torch.nn.functional.interpolate(torch.randn(16, 3, 4, 4), size=64)

    @torch.no_grad()
    def variation() -> float:
        return float(model.encode_image(images).var(dim=0).sum())

    before = variation()
    initialise_from_scratch(model)
    assert variation() > 3 * before


# ---- journal --------------------------------------------------------------------------------------------------------


def test_a_resumed_journal_drops_the_lines_that_come_again(tmp_path: Path):
    journal = Journal(tmp_path)
    for step in (10, 20, 30):
        journal.write(LOG, {"step": step, "loss": 1 / step, "lr": 1e-3})
    Journal(tmp_path, resume_at=20).write(LOG, {"step": 30, "loss": 0.5, "lr": 1e-3})
    assert [(r["step"], r["loss"]) for r in read_table(tmp_path / LOG)] == [
        ("10", "0.1"),
        ("20", "0.05"),
        ("30", "0.5"),
    ]


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path):
    journal = Journal(tmp_path)
    for step in (10, 20):
        journal.write(LOG, {"step": step, "loss": 1 / step})
    path = tmp_path / LOG
    path.write_bytes(path.read_bytes()[:-3])  # "20,0." and no newline
    Journal(tmp_path, resume_at=20)
    assert [(row["step"], row["loss"]) for row in read_table(path)] == [("10", "0.1")]


def test_the_curves_show_loss_rate_and_metrics(tmp_path: Path):
    journal = Journal(tmp_path)
    assert draw_curves(tmp_path) is None  # nothing was logged
    for step in (10, 20, 30):
        journal.write(LOG, {"step": step, "loss": float("nan") if step == 20 else 1 / step, "lr": 1e-3})
    journal.draw()
    with Image.open(tmp_path / CURVES) as picture:
        assert picture.format == "PNG"
        two = picture.size
    for step, value in ((20, 0.5), (30, 0.75)):
        journal.write("validation.csv", {"step": step, "epoch": 1.0, "top1": value, "top5": value + 0.1})
    journal.draw()
    with Image.open(tmp_path / CURVES) as picture:
        assert picture.size == (two[0] * 3 // 2, two[1])
        third = np.asarray(picture.convert("RGB"))[:, two[0] :]
        for colour in curves.COLOURS[:2]:  # a line per metric
            assert (third == colour).all(axis=2).sum() > 100


def test_a_line_in_the_picture_rises_where_its_values_do():
    png = curves.draw_panels([("x", [("a", [0, 100], [1.0, 3.0])]), ("none", [])])
    with Image.open(io.BytesIO(png)) as picture:
        pixels = np.asarray(picture)
    rows, columns = np.nonzero((pixels == curves.COLOURS[0]).all(axis=2))
    assert picture.size == (curves.WIDTH, curves.HEIGHT)
    assert np.corrcoef(rows, columns)[0, 1] < -0.99  # row 0 is at the top


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_inside(low, width):
    found = curves.ticks(low, low + width)
    assert 2 <= len(found) <= 6
    slack = 1e-6 * (abs(low) + width)
    assert low - slack <= found[0]
    assert found[-1] <= low + width + slack
    steps = np.diff(found)
    assert np.allclose(steps, steps[0], rtol=1e-3)


@pytest.mark.parametrize("values", [[2.0, 2.0], [0.0], [float("nan")], [float("inf"), 1.0]])
def test_bounds_leave_room(values):
    low, high = curves.bounds(values)
    assert low < high < float("inf")


def test_metadata_survives_weights_only_loading(tmp_path: Path):
    path = tmp_path / "x.pth"
    model = build_model("retrieval", BEiT3Config.preset("tiny", embed_dim=48, ffn_dim=96, depth=1, vocab_size=99))
    save_checkpoint(
        path,
        official_state_dict(model),
        {"recipe": Recipe().to_dict(), "vocabulary": None, "head_arguments": {"num_classes": 3}},
    )
    assert read_checkpoint(path).metadata["recipe"]["betas"] == [0.9, 0.999]
