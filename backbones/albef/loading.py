"""An ALBEF with a head from a file, as an ability.

Two houses trained them: the authors, and LAVIS, whose files have no table of token types. Each is evaluated as its own code does:
LAVIS cleans texts as BLIP, puts [SEP] behind them, adds the cosine to the match score and counts no token of an answer twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from beit3_bench.backbones.albef import heads
from beit3_bench.backbones.family import Asked, LoadOptions, Model
from beit3_bench.backbones.fusion.answering import answering
from beit3_bench.backbones.fusion.loading import Reading, System, classifying, read_file, retrieving
from beit3_bench.backbones.fusion.texts import (
    QUESTION_WORDS,
    Wording,
    albef_caption,
    albef_question,
    blip_caption,
    blip_question,
)
from beit3_bench.backbones.sources import Source

SYSTEM = System("albef", "ALBEF", 0, ("retrieval", "vqav2", "nlvr2", "snli-ve"))


@dataclass(frozen=True)
class House:
    """How those who trained a file evaluate it.

    wordings: by head.  candidates: of re-ranking, by task.  adds_cosine: to the match score.
    """

    wordings: dict[str, Wording]
    candidates: dict[str, int]
    adds_cosine: bool
    answers: type[heads.heads.VisualQuestionAnswering]


AUTHORS = House(
    {
        "retrieval": Wording(albef_caption, 30, 30, False, 1),  # `Retrieval.py`
        "vqav2": Wording(albef_question, QUESTION_WORDS, None, False, 16),  # `dataset/vqa_dataset.py`, `VQA.py`
        "nlvr2": Wording(albef_caption, 30, None, False),  # `dataset/nlvr_dataset.py`, `NLVR.py`
        "snli-ve": Wording(albef_caption, 30, None, False),  # `dataset/ve_dataset.py`, `VE.py`
    },
    {"coco-retrieval": 256, "flickr30k": 128},  # k_test of `configs/Retrieval_*.yaml`
    False,
    heads.VisualQuestionAnswering,
)
LAVIS = House(
    {
        "retrieval": Wording(blip_caption, 50, 35, True, 1),  # `albef_models/__init__.py`
        "vqav2": Wording(blip_question, QUESTION_WORDS, 25, True, 16),  # `albef_vqa.py`: max_txt_len of from_config
        "nlvr2": Wording(blip_caption, 50, 40, True),  # `albef_nlvr.py`
        "snli-ve": Wording(blip_caption, 50, 40, True),  # `albef_classification.py`
    },
    {"coco-retrieval": 128, "flickr30k": 128},  # k_test of `projects/albef/eval/ret_*_eval.yaml`
    True,
    heads.LavisQuestionAnswering,
)


def house_of(reading: Reading) -> House:
    assert reading.config.text is not None
    return AUTHORS if reading.config.text.token_types else LAVIS


def load_head(source: Source, asked: Asked, options: LoadOptions) -> Model:
    """See `family.Family.load`."""
    reading = read_file(SYSTEM, source, asked, options)
    house = house_of(reading)
    wording = house.wordings[reading.head]
    if reading.head == "retrieval":
        candidates = house.candidates.get(asked.asks_as or asked.task, 128)
        return retrieving(reading, heads.Retrieval, wording, candidates, house.adds_cosine)
    if reading.head == "vqav2":
        return answering(reading, house.answers, wording, added_start=False)
    module = heads.VisualReasoning if reading.head == "nlvr2" else heads.Entailment
    return classifying(reading, module, wording)
