"""The parts of a training: order, division over processes, files, journal, what a start is made of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_bench.backbones.checkpoint import load_model_for, read_checkpoint
from beit3_bench.backbones.config import BEiT3Config
from beit3_bench.backbones.errors import BenchError
from beit3_bench.backbones.models import build_model
from beit3_bench.harness.training.journal import CURVES, LOG, Journal, draw_curves, read_table
from beit3_bench.harness.training.order import Division, GlobalBatches, share
from beit3_bench.harness.training.start import allowed_names, initialise_from_scratch
from beit3_bench.harness.training.state import check_same, read_state, save_atomic, save_checkpoint
from beit3_bench.tasks.recipes import Recipe

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


def test_a_state_that_would_run_code_or_is_cut_is_refused(tmp_path: Path):
    path = tmp_path / "state.pt"
    save_atomic(path, {"version": 1, "x": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(BenchError, match="not a whole training state"):
        read_state(path)
    torch.save({"version": 1, "run": os.system}, path)
    with pytest.raises(BenchError, match="not a whole training state"):
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


def test_a_saved_checkpoint_is_read_without_further_flags(tmp_path: Path):
    config = BEiT3Config.preset("tiny", embed_dim=48, ffn_dim=96, depth=2, vocab_size=99)
    model = build_model("retrieval", config)
    path = tmp_path / "best.pth"
    metadata = {"task": "flickr30k", "head": "retrieval", "preset": "tiny", "config": config.to_dict(), "step": 3}
    save_checkpoint(path, model, metadata)
    loaded = load_model_for("retrieval", path)
    assert loaded.config == config
    assert loaded.metadata["task"] == "flickr30k"
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)


# ---- start ----------------------------------------------------------------------------------------------------------


def test_only_heads_and_the_final_norm_may_differ_from_a_pretrained_checkpoint():
    names = {"beit3.text_embed.weight", "beit3.encoder.layer_norm.A.weight", "head.weight"}
    tensors = {"module.mlm_head.weight": 0, "beit3.text_embed.weight": 0, "beit3.extra": 0}
    assert allowed_names("x", names, tensors) == ["beit3.encoder.layer_norm.A.weight", "head.weight", "mlm_head.weight"]


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


def test_curves_are_drawn_where_matplotlib_is_installed(tmp_path: Path):
    pytest.importorskip("matplotlib")
    journal = Journal(tmp_path)
    for step in (10, 20):
        journal.write(LOG, {"step": step, "loss": 1 / step, "lr": 1e-3})
    journal.write("validation.csv", {"step": 20, "epoch": 1.0, "top1": 0.5})
    draw_curves(tmp_path)
    assert (tmp_path / CURVES).read_bytes().startswith(b"\x89PNG")


def test_metadata_survives_weights_only_loading(tmp_path: Path):
    path = tmp_path / "x.pth"
    model = build_model("retrieval", BEiT3Config.preset("tiny", embed_dim=48, ffn_dim=96, depth=1, vocab_size=99))
    save_checkpoint(
        path, model, {"recipe": Recipe().to_dict(), "vocabulary": None, "head_arguments": {"num_classes": 3}}
    )
    assert read_checkpoint(path).metadata["recipe"]["betas"] == [0.9, 0.999]
