"""Per-sample values of a run: what intervals and paired comparisons are made from."""

from __future__ import annotations

import io
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from beit3_bench.backbones.errors import BenchError
from beit3_bench.tasks.base import ClusterTable, Scores


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
    """The inverse of `pack_samples`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise BenchError(f"{path}: not there; the run is not finished, give its command again") from error
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise BenchError(f"{path}: cannot be read ({error}); run again with --overwrite") from error
    table = None
    if "cluster_ids" in arrays:
        columns = {name.removeprefix("cluster/"): a for name, a in arrays.items() if name.startswith("cluster/")}
        table = ClusterTable(arrays["cluster_ids"].tolist(), columns)
    samples = {
        name.removeprefix("sample/"): dict(
            zip(arrays["sample_ids/" + name.removeprefix("sample/")].tolist(), a.tolist(), strict=True)
        )
        for name, a in arrays.items()
        if name.startswith("sample/")
    }
    return table, samples
