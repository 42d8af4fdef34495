"""Per-sample values of a run: what intervals and paired comparisons are made from."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.files import open_regular
from beit3_bench.tasks.scores import ClusterTable, Scores

_LARGEST = 2**31
"""Bytes of all arrays: many times those of a million samples."""


def pack_samples(scores: Scores) -> bytes:
    """Cluster table and per-sample values as an npz without pickles."""
    arrays: dict[str, np.ndarray] = {}
    if scores.table is not None:
        arrays["cluster_ids"] = np.array(scores.table.ids, dtype=np.str_)
        arrays |= {f"cluster/{name}": np.asarray(column) for name, column in scores.table.columns.items()}
    for name, values in scores.samples.items():
        arrays[f"sample_ids/{name}"] = np.array(list(values), dtype=np.str_)
        arrays[f"sample/{name}"] = np.array(list(values.values()), dtype=np.float64)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def unpack_samples(path: Path) -> tuple[ClusterTable | None, dict[str, dict[str, float]]]:
    """The inverse of `pack_samples`.

    Raises:
        BenchError: not there, or not as it was written.
    """
    try:
        with open_regular(path) as stream, np.load(stream, allow_pickle=False) as file:
            if sum(entry.file_size for entry in file.zip.infolist()) > _LARGEST:
                raise ValueError(f"would take more than {_LARGEST / 2**30:g} GiB")
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise BenchError(f"{path}: not there; the run is not finished, give its command again") from error
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file; each means the same to the user
        reason = str(error).split("\n")[0][:100] or type(error).__name__
        raise BenchError(f"{path}: cannot be read ({reason}); run again with --overwrite") from error
    try:
        return _table(arrays), _samples(arrays)
    except (KeyError, ValueError) as error:
        raise BenchError(f"{path}: damaged or edited ({error}); run again with --overwrite") from error


def _table(arrays: Mapping[str, np.ndarray]) -> ClusterTable | None:
    if "cluster_ids" not in arrays:
        return None
    ids = _names(arrays, "cluster_ids")
    columns = {name.removeprefix("cluster/"): a for name, a in arrays.items() if name.startswith("cluster/")}
    for name, column in columns.items():
        if column.dtype.kind not in "fiub" or column.ndim not in (1, 2) or len(column) != len(ids):
            raise ValueError(f"cluster/{name[:40]} holds no numbers of {len(ids)} clusters")
    return ClusterTable(ids, columns)


def _samples(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    samples = {}
    for key, values in arrays.items():
        name = key.removeprefix("sample/")
        if name != key:
            if values.dtype != np.float64 or values.ndim != 1:
                raise ValueError(f"{key[:40]} holds no numbers")
            samples[name] = dict(zip(_names(arrays, f"sample_ids/{name}"), values.tolist(), strict=True))
    return samples


def _names(arrays: Mapping[str, np.ndarray], key: str) -> list[str]:
    if arrays[key].dtype.kind != "U" or arrays[key].ndim != 1:
        raise ValueError(f"{key[:40]} holds no names")
    return arrays[key].tolist()
