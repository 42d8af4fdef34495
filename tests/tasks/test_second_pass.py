"""A second pass that a task does not have is refused before the first one begins."""

from __future__ import annotations

import numpy as np
import pytest
from toy_task import ToyTask

from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Split
from beit3_bench.tasks.metrics.recall import RetrievalRanks
from beit3_bench.tasks.reranking import OF_IMAGE, OF_TEXT, Pairs, reranked


def test_a_task_without_a_second_pass_refuses_one_in_a_line(tmp_path):
    task, split = ToyTask(tmp_path), Split("test", ())
    with pytest.raises(
        BenchError, match="task toy has no second pass, and the model brings one; give a model of another"
    ):
        task.check_second(split, None)
    with pytest.raises(BenchError, match="task toy has no second pass"):
        task.second_pass({}, split, None)


def test_of_equal_scores_the_earlier_in_the_gallery_comes_first_and_what_was_not_compared_stays_behind():
    """Images 30, 10, 20 (the gallery is sorted) with a text each, which is the last that the first pass finds."""
    last = np.full(3, 3)
    none = np.empty((3, 0), np.int64)
    plain = RetrievalRanks(last, last.copy(), np.arange(3), none, none)
    both = OF_IMAGE | OF_TEXT
    pairs = Pairs(
        image=np.array([0, 0, 1, 1, 2]),
        text=np.array([0, 1, 0, 1, 1]),
        score=np.full(5, 0.5, np.float32),
        asked=np.full(5, both, np.uint8),
    )
    ranks = reranked(plain, pairs, np.array(["30", "10", "20"]))
    # Image 30 finds its text 0 before text 1, image 10 its text 1 behind text 0; text 2 was not compared with its image 20.
    assert ranks.text_ranks.tolist() == [1, 2, 3]
    # Text 0 is compared with images 30 and 10, text 1 with all three: 10 comes before 20 and 30.
    assert ranks.image_ranks.tolist() == [2, 1, 3]
