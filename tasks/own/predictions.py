"""What a model said about data of one's own, as a file with one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from beit3_bench.errors import BenchError
from beit3_bench.files import write_atomic
from beit3_bench.tasks.contract import Row, ScoreInputs, Split, Task
from beit3_bench.tasks.scores import Scores

FILE = "predictions.jsonl"


class WritesPredictions(Task):
    """A task of one's own data whose rows are texts. predicted: the key of a row that holds the text."""

    predicted: ClassVar[str] = ""
    score_files: ClassVar[tuple[str, ...]] = ()

    def submission(self, rows: Mapping[str, Row], split: Split, folder: Path) -> list[Path]:
        """``{"id", "image", "question", "answer"}`` a line, in the order of the data; the question where there is one."""
        said = [
            {
                "id": e.id,
                "image": e.cluster,
                **({} if e.text is None else {"question": e.text}),
                self.predicted: rows[e.id][self.predicted],
            }
            for e in split.examples
        ]
        write_atomic(folder / FILE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in said).encode())
        return [folder / FILE]

    @classmethod
    def score_file(cls, inputs: ScoreInputs) -> Scores:
        raise BenchError(
            f"task {cls.name} has no prediction file format of its own; evaluate it with: beit3-bench run, or score a run again with "
            "--run DIR"
        )
