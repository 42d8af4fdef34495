"""A second pass that a task does not have is refused before the first one begins."""

from __future__ import annotations

import pytest
from toy_task import ToyTask

from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Split


def test_a_task_without_a_second_pass_refuses_one_in_a_line(tmp_path):
    task, split = ToyTask(tmp_path), Split("test", ())
    with pytest.raises(
        BenchError, match="task toy has no second pass, and the model brings one; give a model of another"
    ):
        task.check_second(split, None)
    with pytest.raises(BenchError, match="task toy has no second pass"):
        task.second_pass({}, split, None)
