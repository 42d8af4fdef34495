"""SPICE of captions (Anderson et al. 2016), by the Java program that ships with pycocoevalcap.

It needs Stanford CoreNLP 3.6.0 and its models, which pycocoevalcap does not contain: where they are missing, SPICE is
unavailable. They are never downloaded here.  Reference: `pycocoevalcap.spice.spice.Spice`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from beit3_bench.tasks.metrics.java_programs import Unavailable, find_java, program_folder, run

JAR = "spice-1.0.jar"
MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def spice(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]], timeout: float = 3600.0
) -> np.ndarray:
    """SPICE per image: float64 (n,), fractions, NaN where undefined; the corpus score is the mean.

    Args:
        candidates: n tokenised captions.  references: for each, at least one tokenised reference.
        timeout: for the whole run, in seconds.

    Raises:
        Unavailable: no Java, no SPICE, no CoreNLP models, or it failed; says which.
    """
    folder = program_folder("spice", JAR)
    missing = [name for name in MODELS if not (folder / "lib" / name).is_file()]
    if missing:
        raise Unavailable(
            f"{' and '.join(missing)} not in {folder / 'lib'} "
            "(put the jars of the Stanford CoreNLP release of 2015-12-09 there)"
        )
    java = find_java()
    inputs = [
        {"image_id": index, "test": " ".join(candidate), "refs": [" ".join(tokens) for tokens in group]}
        for index, (candidate, group) in enumerate(zip(candidates, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "captions.json", Path(scratch) / "scores.json"
        source.write_text(json.dumps(inputs), encoding="utf-8")
        command = [
            java,
            "-Dfile.encoding=UTF-8",
            "-Xmx8G",
            "-jar",
            JAR,
            str(source),
            "-out",
            str(target),
            "-subset",
            "-silent",
        ]
        run(command, folder, timeout)
        try:
            results = json.loads(target.read_text(encoding="utf-8"))
            scores = {int(item["image_id"]): item["scores"]["All"]["f"] for item in results}
            return np.array([_number(scores[index]) for index in range(len(inputs))], dtype=np.float64)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"SPICE wrote no usable result ({type(error).__name__}: {error})") from error


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
