"""Images of one's own with their captions: retrieval in both directions, as on COCO and Flickr30K (`tasks.retrieval`)."""

from __future__ import annotations

from beit3_bench.tasks.contract import Example, Split
from beit3_bench.tasks.own.lines import OwnData
from beit3_bench.tasks.retrieval import Retrieval


class OwnRetrieval(OwnData, Retrieval):
    """Images of your own with their captions, retrieved by each other; the gallery is the whole file."""

    name = "retrieval"
    asks_as = "coco-retrieval"
    training_splits = ()
    form = '{"image": "a.jpg", "captions": ["a cat on a sofa"]}'
    required = ("captions",)
    layout = """\
{"image": "a.jpg", "captions": ["a cat on a sofa", "a sleeping cat"]}
{"image": "b.jpg", "caption": "a dog", "id": "42"}
image: a path below the folder of the file, or an absolute one; each in one line.  captions, or one caption: at least one text.
id: in every line or in none; default: the number of the line."""

    def read(self, split: str) -> Split:
        """Image examples (``image:ID``) and text examples (``text:ID:N``); a text's target is its image's id."""
        lines = self.lines()
        examples = []
        for line in lines:
            examples.append(Example(f"image:{line.id}", (line.image,), cluster=line.name, target=line.id, kind="image"))
            examples += [
                Example(f"text:{line.id}:{n}", text=text, cluster=line.name, target=line.id, kind="text")
                for n, text in enumerate(line.texts["captions"])
            ]
        return self.split_with(split, lines, examples=tuple(examples))
