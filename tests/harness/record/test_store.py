"""The run folder: what a kill, a full disk, a second process or a changed configuration may and may not do."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from beit3_bench import files
from beit3_bench.errors import BenchError
from beit3_bench.harness.record import rows, samples, shards
from beit3_bench.harness.record.folder import is_running
from beit3_bench.harness.record.rows import commit_bytes, decode_row, encode_row
from beit3_bench.harness.record.shards import committed, row_id
from beit3_bench.harness.record.store import RunStore, write_bare_result
from beit3_bench.tasks.scores import ClusterTable, Scores

CONFIG = {"task": "toy", "fingerprints": {"checkpoint": "aaa", "data": "bbb", "dtype": "fp32"}}
SHARD = Path("rows") / "rank-00000.jsonl"


def batch(start: int, count: int = 3) -> list[dict]:
    return [
        {"id": f"ä{i}", "value": i / 7, "embedding": np.full(4, i, np.float32)} for i in range(start, start + count)
    ]


def ids(*batches: list[dict]) -> set[str]:
    return {row["id"] for rows_ in batches for row in rows_}


# ---- rows -----------------------------------------------------------------------------------------------------------


@example('a",b', None)
@example("\ud800\u2028\n", "\ud800")
@settings(max_examples=100, deadline=None)
@given(
    st.text(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=6,
    ),
)
def test_row_comes_back_exactly(name, value):
    line = encode_row({"value": value, "id": name})
    assert line.count(b"\n") == 1
    assert decode_row(line) == {"id": name, "value": value}
    assert row_id(line.rstrip(b"\n")) == name


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32", "uint8"])
def test_array_comes_back_bit_for_bit(dtype):
    array = np.random.default_rng(0).normal(size=(3, 5)).astype(dtype)
    back = decode_row(encode_row({"id": "a", "x": array}))["x"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_tensor_and_numpy_scalars_become_plain_values():
    row = {"id": "a", "t": torch.tensor([1.5, 2.0], dtype=torch.bfloat16), "n": np.float64(0.1), "k": np.int64(7)}
    back = decode_row(encode_row(row))
    assert back["t"].tolist() == [1.5, 2.0]
    assert (back["n"], back["k"]) == (0.1, 7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.array([np.nan], np.float32), [1.0, -float("inf")]])
def test_overflow_of_the_model_is_refused_by_name(value):
    with pytest.raises(BenchError, match=r"row q7.*not finite.*--dtype"):
        encode_row({"id": "q7", "value": value})


def test_row_that_looks_like_a_marker_is_a_row(tmp_path):
    with RunStore.open(tmp_path, CONFIG) as store:
        store.append([{"id": '{"commit":1', "commit": 3, "crc": "00000000"}])
        assert store.done() == {'{"commit":1'}


# ---- kills ----------------------------------------------------------------------------------------------------------


def test_kill_at_every_byte_of_the_last_batch_loses_that_batch_only(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # hundreds of them take half a minute
    first, second, third = batch(0), batch(3), batch(6)
    head, tail = commit_bytes(first) + commit_bytes(second), commit_bytes(third)
    with RunStore.open(tmp_path, CONFIG) as store:
        store.append(first)
    for cut in range(len(tail) + 1):
        (tmp_path / SHARD).write_bytes(head + tail[:cut])
        expected = ids(first, second) | (ids(third) if cut == len(tail) else set())
        assert RunStore.read(tmp_path).done() == expected
        with RunStore.open(tmp_path, CONFIG) as store:
            assert store.done() == expected
            store.append(batch(9))
        back = RunStore.read(tmp_path).rows()
        assert set(back) == expected | ids(batch(9))
        assert back["ä1"]["embedding"].tolist() == [1, 1, 1, 1]


def test_damaged_byte_in_the_last_batch_is_noticed(tmp_path):
    head, tail = commit_bytes(batch(0)), commit_bytes(batch(3))
    path = tmp_path / "shard"
    for position in range(len(tail) - 1):
        damaged = bytearray(tail)
        damaged[position] ^= 1
        path.write_bytes(head + bytes(damaged))
        lines, end = committed(path)
        assert (len(lines), end) == (3, len(head))


def test_kill_before_the_configuration_is_written_starts_afresh(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / ".config.json.1.part").write_text("{")
    with RunStore.open(tmp_path, CONFIG) as store:
        assert store.done() == set()
    assert not list(tmp_path.glob(".*.part"))


def test_shards_of_several_processes_are_one_set_of_rows(tmp_path):
    with RunStore.open(tmp_path, CONFIG) as store:
        store.append(batch(0))
        with RunStore.join(tmp_path, 1) as other:
            other.append(batch(3))
        assert set(store.rows()) == ids(batch(0), batch(3))
    with RunStore.open(tmp_path, CONFIG) as store:  # one process goes on
        assert store.done() == ids(batch(0), batch(3))


def test_equal_row_stored_twice_is_one_row(tmp_path):
    with RunStore.open(tmp_path, CONFIG) as store:
        store.append(batch(0))
        with RunStore.join(tmp_path, 1) as other:
            other.append(batch(2))
        assert set(store.rows()) == ids(batch(0), batch(2))


def test_row_stored_twice_with_other_values_names_both_files(tmp_path):
    with RunStore.open(tmp_path, CONFIG) as store:
        store.append(batch(0))
        with RunStore.join(tmp_path, 1) as other:
            other.append([{**batch(2)[0], "value": -1.0}])
        with pytest.raises(
            BenchError, match=r"rank-00000.jsonl and .*rank-00001.jsonl: row ä2 is stored twice, with different"
        ):
            store.rows()
    (tmp_path / "rows" / "rank-00001.jsonl").unlink()  # what the message says
    assert set(RunStore.read(tmp_path).rows()) == ids(batch(0))


# ---- two processes --------------------------------------------------------------------------------------------------


def test_second_process_is_told_who_writes(tmp_path):
    with RunStore.open(tmp_path, CONFIG):
        code = (
            "import sys; from beit3_bench.harness.record.store import RunStore\n"
            f"try: RunStore.open({str(tmp_path)!r}, {CONFIG!r}, overwrite=True)\n"
            "except Exception as error: print(error); sys.exit(7)"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert other.returncode == 7
    assert f"process {os.getpid()} on" in other.stdout
    assert "choose another --output" in other.stdout
    RunStore.open(tmp_path, CONFIG).close()  # the lock is free again


def test_process_of_an_earlier_start_writes_where_it_does_not_count(tmp_path, capsys):
    """Process 0 is gone, process 1 lives on: the folder is taken over with what is stored, and nothing is stored twice."""
    first = RunStore.open(tmp_path, CONFIG)
    first.append(batch(0))
    orphan = RunStore.join(tmp_path, 1)
    orphan.append(batch(3))
    first.close()
    assert is_running(tmp_path)
    with RunStore.open(tmp_path, CONFIG) as store:
        assert "a process of an earlier start still runs" in capsys.readouterr().err
        assert store.done() == ids(batch(0), batch(3))
        orphan.append([{**row, "value": -1.0} for row in batch(6)])
        with RunStore.join(tmp_path, 1) as other:
            other.append(batch(6))
        orphan.append(batch(9))
        assert set(store.rows()) == ids(batch(0), batch(3), batch(6))
    orphan.close()
    assert not is_running(tmp_path)


def test_every_process_holds_a_lock_from_its_start(tmp_path):
    first = RunStore.open(tmp_path, CONFIG)
    others = [RunStore.join(tmp_path, rank) for rank in (1, 2)]
    first.close()
    others[0].close()
    assert is_running(tmp_path)
    others[1].close()
    assert not is_running(tmp_path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_process_of_an_earlier_start_that_has_not_written_yet_never_does(tmp_path, overwrite):
    first = RunStore.open(tmp_path, CONFIG)
    orphan = RunStore.join(tmp_path, 1)
    first.close()
    with RunStore.open(tmp_path, CONFIG, overwrite) as store:
        with pytest.raises(BenchError, match="a later start has taken this run over"):
            orphan.append(batch(0))
        with RunStore.join(tmp_path, 1) as other:
            other.append(batch(0))
        assert store.done() == ids(batch(0))
    orphan.close()


def test_two_processes_of_one_rank_do_not_share_a_shard(tmp_path):
    with RunStore.open(tmp_path, CONFIG), RunStore.join(tmp_path, 1) as one, RunStore.join(tmp_path, 1) as two:
        one.append(batch(0))
        with pytest.raises(BenchError, match="another process is writing to it"):
            two.append(batch(3))


# ---- links ----------------------------------------------------------------------------------------------------------

OURS = [
    "lock",
    "config.json",
    "result.json",
    "samples.npz",
    "submission",
    "rows",
    "rows/rank-00000.jsonl",
    "rows/rank-00007.jsonl",
]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("target", ["file", "folder", "nothing"])
def test_nothing_is_written_through_a_link(tmp_path, name, target, overwrite):
    run, outside = tmp_path / "run", tmp_path / "outside"
    with RunStore.open(run, CONFIG) as store:
        store.append(batch(0))
    if target == "file":
        outside.write_text("precious")
    elif target == "folder":
        outside.mkdir()
        (outside / "rank-00000.jsonl").write_text("precious")
    path = run / name
    if path.is_dir():
        (path / "rank-00000.jsonl").unlink()
        path.rmdir()
    path.unlink(missing_ok=True)
    path.symlink_to(outside)
    with pytest.raises(BenchError, match=f"{name}: is a link, and nothing is written through links"):
        RunStore.open(run, CONFIG, overwrite)
    if target == "file":
        assert outside.read_text() == "precious"
    elif target == "folder":
        assert (outside / "rank-00000.jsonl").read_text() == "precious"
    else:
        assert not outside.exists()


@pytest.mark.parametrize("tail", [b"", b'{"id":"torn'])
def test_other_names_of_the_files_of_a_run_keep_what_they_hold(tmp_path, tail):
    """A copy made with hard links (cp -al, rsync --link-dest) stays as it is when the run goes on."""
    with RunStore.open(tmp_path / "run", CONFIG) as store:
        store.append(batch(0))
    with open(tmp_path / "run" / SHARD, "ab") as file:
        file.write(tail)
    shutil.copytree(tmp_path / "run", tmp_path / "copy", copy_function=os.link)
    before = {p: p.read_bytes() for p in (tmp_path / "copy").rglob("*") if p.is_file()}
    with RunStore.open(tmp_path / "run", CONFIG) as store:
        store.append(batch(3))
        store.write_result({"x": 1})
        assert store.done() == ids(batch(0), batch(3))
    assert {p: p.read_bytes() for p in (tmp_path / "copy").rglob("*") if p.is_file()} == before
    with RunStore.open(tmp_path / "run", CONFIG, overwrite=True):
        pass
    assert {p: p.read_bytes() for p in (tmp_path / "copy").rglob("*") if p.is_file()} == before


def test_copy_with_hard_links_of_a_run_that_is_being_written_is_no_second_run(tmp_path):
    with RunStore.open(tmp_path / "run", CONFIG):
        shutil.copytree(tmp_path / "run", tmp_path / "copy", copy_function=os.link)
        with pytest.raises(BenchError, match="is writing to this run folder"):
            RunStore.open(tmp_path / "run", CONFIG)


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b'{"id":3}',
        b'{"value":1}',
        b"[1]",
        b'{"id":"a"',
        b'{"id":"a","x":{"f32":"AA==","shape":[1]}}',
        b'{"id":"a","x":{"f32":"AACAfw==","shape":[1]}}',
        b'{"id":"a","x":{"f32":"AAAAAA==","shape":[-1]}}',
        b'{"id":"a","x":{"f32":"AAAAAA==","shape":"x"}}',
        b'{"id":"a","x":NaN}',
        b'{"id":"a","x":' + b"[" * 100_000,
        b'{"id":"a","x":' + b"1" * 5000 + b"}",
    ],
)
def test_edited_row_is_told_with_its_file(tmp_path, line):
    RunStore.open(tmp_path, CONFIG).close()
    body = line + b"\n"
    (tmp_path / SHARD).write_bytes(body + b'{"commit":1,"crc":"%08x"}\n' % zlib.crc32(body))
    with pytest.raises(BenchError, match=r"rank-00000.jsonl: damaged or edited \(.*run again with --overwrite"):
        RunStore.read(tmp_path).rows()


def test_finished_run_whose_shard_is_cut_is_damaged(tmp_path):
    with RunStore.open(tmp_path, CONFIG) as store:
        store.append(batch(0))
        store.append(batch(3))
        store.write_result({"x": 1})
    (tmp_path / SHARD).write_bytes((tmp_path / SHARD).read_bytes()[:-3])
    with pytest.raises(BenchError, match=r"rank-00000.jsonl: damaged .*nothing behind its row 3 can be read"):
        RunStore.read(tmp_path).rows()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", 3),
        ("seed", "x"),
        ("fingerprints", {"data": 1}),
        ("given_options", ["a"]),
        ("compile", 3),
        ("given", 1),
    ],
)
def test_card_with_a_value_of_another_kind_is_told_with_its_key(tmp_path, key, value):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, key: value}))
    with pytest.raises(BenchError, match=rf"config.json: .*{key}.*of another kind"):
        RunStore.read(tmp_path)


@pytest.mark.parametrize("text", ["\ud800", "a\0b"])
def test_card_with_text_that_no_path_can_hold_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "checkpoint": text}))
    with pytest.raises(BenchError, match=r"config.json: holds half a character or a zero"):
        RunStore.read(tmp_path)


def test_holes_of_terabytes_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_LONGEST", 2**20)
    with RunStore.open(tmp_path, CONFIG) as store:
        store.append(batch(0))
    with open(tmp_path / SHARD, "r+b") as file:
        file.truncate(1 << 42)
    assert RunStore.read(tmp_path).done() == ids(batch(0))
    with RunStore.open(tmp_path, CONFIG) as store:
        store.append(batch(3))
        assert store.done() == ids(batch(0), batch(3))
    for name, use in (("result.json", "result"), ("samples.npz", "samples")):
        with open(tmp_path / name, "wb") as file:
            file.truncate(1 << 42)
        with pytest.raises(BenchError, match=f"{name}: cannot be read"):
            getattr(RunStore.read(tmp_path), use)()
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(BenchError, match=r"config.json: cannot be read \(is larger than 64 MiB\)"):
        RunStore.read(tmp_path)


def test_arrays_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "_LARGEST", 2**20)
    np.savez_compressed(tmp_path / "samples.npz", zeros=np.zeros(2**18))
    with pytest.raises(BenchError, match=r"samples.npz: cannot be read \(would take more than .* GiB\)"):
        samples.unpack_samples(tmp_path / "samples.npz")


def test_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    with RunStore.open(tmp_path, CONFIG) as store:
        store.append(batch(0))
    (tmp_path / SHARD).unlink()
    os.mkfifo(tmp_path / SHARD)
    os.mkfifo(tmp_path / "result.json")
    os.mkfifo(tmp_path / "samples.npz")
    store = RunStore.read(tmp_path)
    for read in (store.rows, store.result, store.samples):
        with pytest.raises(BenchError, match="is a pipe or device"):
            read()


# ---- configurations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["checkpoint", "data", "dtype"])
def test_changed_fingerprint_is_refused_and_named(tmp_path, name):
    RunStore.open(tmp_path, CONFIG).close()
    changed = {**CONFIG, "fingerprints": {**CONFIG["fingerprints"], name: "zzz"}}
    with pytest.raises(BenchError, match=f": {name} is zzz, there .*--overwrite"):
        RunStore.open(tmp_path, changed)
    with RunStore.open(tmp_path, changed, overwrite=True) as store:
        assert store.done() == set()


def test_overwrite_removes_the_run_and_nothing_else(tmp_path):
    with RunStore.open(tmp_path, CONFIG) as store:
        store.append(batch(0))
        store.write_result({"x": 1})
    (tmp_path / "my-notes.txt").write_text("keep")
    with RunStore.open(tmp_path, CONFIG, overwrite=True) as store:
        assert not store.finished
        assert store.done() == set()
    assert (tmp_path / "my-notes.txt").read_text() == "keep"


def test_folder_of_other_things_is_never_taken(tmp_path):
    (tmp_path / "thesis.tex").write_text("keep")
    with pytest.raises(BenchError, match=r"not a run folder \(it holds thesis.tex\)"):
        RunStore.open(tmp_path, CONFIG, overwrite=True)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_finished_result_is_never_replaced(tmp_path):
    with RunStore.open(tmp_path, CONFIG) as store:
        store.write_result({"x": 1})
        with pytest.raises(BenchError, match="is finished"):
            store.write_result({"x": 2})
        assert store.result() == {"x": 1}
    with pytest.raises(BenchError, match="holds a run"):
        write_bare_result(tmp_path, {"x": 3})


def test_reading_what_is_no_run_folder_says_so(tmp_path):
    with pytest.raises(BenchError, match="not a run folder"):
        RunStore.read(tmp_path)
    (tmp_path / "config.json").write_text('{"a": ')
    with pytest.raises(BenchError, match="not valid JSON"):
        RunStore.read(tmp_path)


# ---- disks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 50, 200])
def test_full_disk_keeps_the_committed_rows(tmp_path, monkeypatch, room):
    real = os.write

    def full(file, data):
        if room:
            real(file, bytes(data[:room]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RunStore.open(tmp_path, CONFIG) as store:
        store.append(batch(0))
        with monkeypatch.context() as patch:
            patch.setattr(rows.os, "write", full)
            with pytest.raises(BenchError, match=r"rank-00000.jsonl: the disk is full.*is kept"):
                store.append(batch(3))
        assert store.done() == ids(batch(0))
        store.append(batch(3))  # somebody made room
        assert store.done() == ids(batch(0), batch(3))


def test_short_writes_are_completed(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(rows.os, "write", lambda file, data: real(file, bytes(data[:13])))
    with RunStore.open(tmp_path, CONFIG) as store:
        store.append(batch(0))
        assert store.done() == ids(batch(0))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_failed_result_leaves_the_old_file_and_no_part(tmp_path, monkeypatch, code):
    files.write_atomic(tmp_path / "result.json", b"old")

    def fail(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(BenchError, match=r"result.json: .*is kept"):
        files.write_atomic(tmp_path / "result.json", b"new")
    assert os.listdir(tmp_path) == ["result.json"]
    assert (tmp_path / "result.json").read_bytes() == b"old"


def test_file_in_place_of_a_folder_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="is a file, but --output needs a folder"):
        RunStore.open(tmp_path / "file", CONFIG)
    with pytest.raises(BenchError, match="a file stands where a folder is needed"):
        RunStore.open(tmp_path / "file" / "below", CONFIG)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "rows").write_text("")
    with pytest.raises(BenchError, match="a file stands where a folder is needed"):
        RunStore.open(tmp_path / "run", CONFIG)


def test_read_only_folder_is_one_clear_line(tmp_path):
    if os.geteuid() == 0:
        folder = Path("/proc/run")  # where not even root can write
    else:
        folder = tmp_path / "sealed"
        folder.mkdir(mode=0o500)
    with pytest.raises(BenchError, match=str(folder)):
        RunStore.open(folder / "run", CONFIG)


# ---- samples --------------------------------------------------------------------------------------------------------


def test_cluster_table_and_samples_come_back(tmp_path):
    table = ClusterTable(["b", "ä/1"], {"right": np.array([1.0, 0.25]), "h/x": np.arange(6.0).reshape(2, 3)})
    samples = {"accuracy/yes": {"q2": 0.1, "q1": 1.0}}
    with RunStore.open(tmp_path, CONFIG) as store:
        store.write_result({"x": 1}, Scores({}, {}, table, samples=samples))
        back, back_samples = store.samples()
    assert back.ids == table.ids
    assert {name: column.tolist() for name, column in back.columns.items()} == {
        name: column.tolist() for name, column in table.columns.items()
    }
    assert back_samples == samples
    (tmp_path / "samples.npz").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(BenchError, match=r"samples.npz: cannot be read"):
        store.samples()


def test_config_is_written_as_json(tmp_path):
    RunStore.open(tmp_path, CONFIG).close()
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
