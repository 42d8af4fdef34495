"""A BLIP with a head from a file, as an ability. LAVIS' own trainings of it have the same names and the same protocols but one."""

from __future__ import annotations

from beit3_bench.backbones.blip import heads
from beit3_bench.backbones.blip.native import AnswerGenerator, Captioner
from beit3_bench.backbones.family import Asked, LoadOptions, Model
from beit3_bench.backbones.fusion.answering import answering, candidates_of
from beit3_bench.backbones.fusion.beams import Beams
from beit3_bench.backbones.fusion.heads import ADDED_TOKENS
from beit3_bench.backbones.fusion.loading import (
    Reading,
    System,
    build,
    classifying,
    find_texts,
    finished,
    head_of,
    preprocessing_of,
    read_file,
    reader_of,
    retrieving,
)
from beit3_bench.backbones.fusion.texts import QUESTION_WORDS, Wording, blip_caption, blip_question
from beit3_bench.backbones.sources import Source
from beit3_bench.errors import BenchError

SYSTEM = System("blip", "BLIP", ADDED_TOKENS, ("retrieval", "vqav2", "nlvr2", "coco-caption", "snli-ve"))

WORDINGS: dict[str, Wording] = {
    "retrieval": Wording(blip_caption, 30, 35, True, 1),  # `data/__init__.py`, `train_retrieval.py`
    "vqav2": Wording(blip_question, QUESTION_WORDS, 35, True, 16),  # `models/blip_vqa.py`
    "nlvr2": Wording(blip_caption, 40, None, True),  # `data/nlvr_dataset.py`
    "coco-caption": Wording(blip_caption, 40, None, True),  # of the prompt alone, which has no marks
    "snli-ve": Wording(blip_caption, 50, 40, True),  # LAVIS' `blip_classification.py`: there is no other
}
CANDIDATES = {"coco-retrieval": 256, "flickr30k": 128}
"""``k_test`` of `configs/retrieval_*.yaml`; LAVIS' the same."""
PROMPT = "a picture of "
"""`configs/caption_coco.yaml`. Cut off a caption by its number of characters, as `models/blip.py` does."""
GENERATED_ANSWERS = Beams(num_beams=3, max_length=10, min_length=1)
"""`models/blip_vqa.py`."""
NOCAPS_PENALTY = 1.1
"""`eval_nocaps.py`; LAVIS' evaluation has none."""
ANSWER_MODES = ("rank", "generate")
SWAPS = (
    "BLIP's own evaluation of NLVR2 swaps the two images of a random half of the pairs (and the words left and right); here they "
    "stand as the data says, so that its published number is met within that noise"
)


def check_values(asked: Asked) -> None:
    """See `family.Family.check`."""
    head_of(asked, SYSTEM)
    decoder = asked.values.get("decoder")
    if decoder is not None:
        raise BenchError(f"decoder={decoder}: is an option of BEiT-3's captions; BLIP has one search, leave it out")


def load_head(source: Source, asked: Asked, options: LoadOptions) -> Model:
    """See `family.Family.load`."""
    reading = read_file(SYSTEM, source, asked, options)
    wording = WORDINGS[reading.head]
    if reading.head == "retrieval":
        return retrieving(reading, heads.Retrieval, wording, CANDIDATES.get(asked.asks_as or asked.task, 128), True)
    if reading.head == "coco-caption":
        return captioning(reading, wording)
    if reading.head == "vqav2":
        if answer_mode_of(reading) == "generate":
            return generating(reading, wording)
        return answering(reading, heads.VisualQuestionAnswering, wording, added_start=True)
    if reading.head == "nlvr2":
        model = classifying(reading, heads.VisualReasoning, wording)
        model.assumptions.append(SWAPS)
        return model
    return classifying(reading, heads.Entailment, wording)


def answer_mode_of(reading: Reading) -> str:
    given = reading.options.given
    mode = ANSWER_MODES[0] if given is None or given.answer_mode is None else given.answer_mode
    if mode not in ANSWER_MODES:
        raise BenchError(f"answer_mode {mode!r} is not known; give one of: {', '.join(ANSWER_MODES)}")
    return mode


def generating(reading: Reading, wording: Wording) -> Model:
    """VQAv2 by beam search; whatever the list of answers is, it is not asked."""
    texts, file, assumptions = find_texts(reading, wording)
    beams = GENERATED_ANSWERS
    built, extra = build(reading, lambda: heads.VisualQuestionAnswering(reading.config, candidates_of(reading)))
    ability = AnswerGenerator(
        built, reader_of(reading, texts, wording), preprocessing_of(reading.config), texts.pieces, beams
    )
    return finished(
        reading,
        ability,
        texts,
        file,
        "generation",
        wording,
        extra,
        assumptions=assumptions,
        further={"answer_mode": "generate", "beams": vars(beams)},
    )


def beams_of(reading: Reading) -> Beams:
    """How captions are searched: options of task and family, and else `configs/caption_coco.yaml`, `configs/nocaps.yaml`."""
    given, values = reading.options.given, reading.asked.values
    penalty = NOCAPS_PENALTY if reading.asked.task == "nocaps" and not _of_lavis(reading) else 1.0
    own = {"min_length": 5, "repetition_penalty": penalty}
    family = {name: value for name, value in vars(given).items() if name in own} if given is not None else {}
    asked = {name: values.get(name) for name in ("num_beams", "max_length", "length_penalty")}
    chosen = {name: value for name, value in {**family, **asked}.items() if value is not None}
    return Beams(**{**own, **chosen})


def _of_lavis(reading: Reading) -> bool:
    return reading.source.path.stem == "blip_coco_caption_base"


def captioning(reading: Reading, wording: Wording) -> Model:
    """Captions by beam search behind a prompt."""
    texts, file, assumptions = find_texts(reading, wording)
    beams = beams_of(reading)
    special = texts.pieces.special
    prompt = [reading.config.vocab_size - ADDED_TOKENS, *texts.pieces.pieces(PROMPT)]
    beams.check(len(prompt), reading.config.reading.positions)
    pretrained = "retrieval" in reading.held
    left_aside = ("text_encoder.*", "vision_proj.*", "text_proj.*", "itm_head.*") if pretrained else ()
    built, extra = build(reading, lambda: heads.Captioning(reading.config, prompt, special["[SEP]"], beams), left_aside)
    ability = Captioner(
        built, reader_of(reading, texts, wording), preprocessing_of(reading.config), texts.pieces, PROMPT
    )
    notes = ["the file is a pre-trained one, not tuned for captions"] if pretrained else []
    return finished(
        reading,
        ability,
        texts,
        file,
        f"{beams.num_beams} beams",
        wording,
        extra,
        notes=notes,
        assumptions=assumptions,
        resolved=vars(beams),
        further={"prompt": PROMPT, "beams": vars(beams)},
    )
