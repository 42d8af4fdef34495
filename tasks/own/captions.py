"""Images of one's own to be captioned, with or without references (`tasks.captioning`)."""

from __future__ import annotations

from beit3_bench.tasks.captioning import CaptioningTask
from beit3_bench.tasks.contract import Example, Split
from beit3_bench.tasks.own.lines import OwnData
from beit3_bench.tasks.own.predictions import WritesPredictions


class OwnCaptions(WritesPredictions, OwnData, CaptioningTask):
    """Images of your own to be captioned; scored where the lines hold references, else the captions are written."""

    name = "caption"
    asks_as = "coco-caption"
    predicted = "caption"
    form = '{"image": "a.jpg", "captions": ["a cat on a sofa"]}'
    optional = ("captions",)
    layout = """\
{"image": "a.jpg", "captions": ["a cat on a sofa", "a sleeping cat"]}
{"image": "b.jpg", "caption": "a dog", "id": "42"}
image: a path below the folder of the file, or an absolute one; each in one line.
captions, or one caption: the references, in every line or in none; without them captions are written to predictions.jsonl
and nothing is scored.  id: in every line or in none; default: the number of the line."""

    def read(self, split: str) -> Split:
        lines = self.lines()
        examples = [
            Example(line.id, (line.image,), None, line.name, _references(line.texts.get("captions")), "image")
            for line in lines
        ]
        return self.split_with(split, lines, examples=tuple(examples))


def _references(captions: tuple[str, ...] | None) -> list[str] | None:
    return None if captions is None else list(captions)
