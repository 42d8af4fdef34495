"""The run folder: what a kill, a full disk, a second process or a changed configuration may and may not do."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from beit3_bench.backbones import files
from beit3_bench.backbones.errors import BenchError
from beit3_bench.harness import rows
from beit3_bench.harness.rows import commit_bytes, committed, decode_row, encode_row, row_id
from beit3_bench.harness.store import RunStore, write_bare_result
from beit3_bench.tasks.base import ClusterTable, Scores

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


def test_row_stored_twice_is_an_error(tmp_path):
    with RunStore.open(tmp_path, CONFIG) as store:
        store.append(batch(0))
        store.append(batch(2))
        with pytest.raises(BenchError, match="row ä2 is stored twice"):
            store.rows()


# ---- two processes --------------------------------------------------------------------------------------------------


def test_second_process_is_told_who_writes(tmp_path):
    with RunStore.open(tmp_path, CONFIG):
        code = (
            "import sys; from beit3_bench.harness.store import RunStore\n"
            f"try: RunStore.open({str(tmp_path)!r}, {CONFIG!r}, overwrite=True)\n"
            "except Exception as error: print(error); sys.exit(7)"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert other.returncode == 7
    assert f"process {os.getpid()} on" in other.stdout
    assert "choose another --output" in other.stdout
    RunStore.open(tmp_path, CONFIG).close()  # the lock is free again


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
