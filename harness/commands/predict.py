"""``beit3-bench predict``: what a checkpoint says of your own pictures."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.commands.options import device, dtype, parse_pairs, quiet
from beit3_bench.harness.console import echo
from beit3_bench.text import visible_json

if TYPE_CHECKING:
    from beit3_bench.harness.predicting.output import Gallery
    from beit3_bench.harness.predicting.predictions import Asked, Prediction
    from beit3_bench.harness.predicting.sources import Picture
    from beit3_bench.harness.progress import Reporting
    from beit3_bench.harness.ready import Candidates, ReadyModel

CHUNK = 16
"""Pictures that are open at a time."""
SEARCHED = 12
"""The best pictures of a search that are drawn."""


@click.command("predict")
@click.option("--task", required=True, metavar="T", help="Task: what is asked of the picture (see: beit3-bench tasks).")
@click.option(
    "--checkpoint",
    metavar="[FAMILY:]FILE",
    help="Checkpoint [default: $BEIT3_BENCH_CHECKPOINT, beit3-bench.toml].",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    required=True,
    metavar="FILE|FOLDER|URL",
    help="Picture, folder of pictures, or http(s) address; may be given several times (nlvr2: twice).",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="TEXT",
    help="vqav2: question; nlvr2: sentence; retrieval: texts to rank, of one the pictures are ranked (a search); imagenet: classes "
    "of your own. May be given several times.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="Draw it: into one file (.png, .jpg, .webp; of several pictures a sheet), or a folder with a file each.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per picture, a line each.")
@click.option(
    "--min-score",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="coco-det: of objects that are printed and drawn; --json has all.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="N",
    help="So many of a ranking are shown, and kept by --json [default: 5 classes, all texts, all pictures of a search].",
)
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the task's data, where the checkpoint does not say what its outputs mean; else none is needed.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    envvar="BEIT3_BENCH_TOKENIZER",
    metavar="FILE",
    help="Tokenizer of the model [default: beside the checkpoint].",
)
@device
@dtype()
@click.option("--preset", metavar="NAME", help="Architecture, where the checkpoint does not show it.")
@click.option("--image-size", type=click.IntRange(min=1), metavar="S", help="Input side [default: the checkpoint's].")
@click.option("-o", "options", multiple=True, metavar="KEY=VALUE", help="Option of the task or the family.")
@quiet
@click.pass_context
def command(
    context: click.Context,
    task: str,
    images: tuple[str, ...],
    texts: tuple[str, ...],
    output: Path | None,
    as_json: bool,
    min_score: float,
    top: int | None,
    **settings: Any,
) -> None:
    """What does this checkpoint say of my pictures? No data set is needed.

    \b
    beit3-bench predict --task vqav2 --checkpoint vqa.pth -o answer_vocab=answer2label.txt --image cat.jpg --text "what is it?"
    beit3-bench predict --task coco-det --checkpoint det.pth --image photos --output drawn
    beit3-bench predict --task coco-retrieval --checkpoint retrieval.pth --image photos --text "a dog on grass"

    Pictures are turned upright (EXIF), shown and given to the model so. Exit code 2 if any could not be read; the others are
    answered nevertheless.
    """
    from beit3_bench.harness.predicting.asking import check_texts
    from beit3_bench.harness.predicting.output import Gallery
    from beit3_bench.harness.predicting.sources import Sources
    from beit3_bench.harness.progress import Reporting
    from beit3_bench.tasks.registry import get_task

    options = parse_pairs(settings.pop("options"))
    task_class = get_task(task)
    if task_class.own_data:
        raise BenchError(
            f"task {task} reads a file of one's own; --task {task_class.asks_as} asks the same of a picture"
        )
    sources = Sources.of(images)
    for line in sources.notes:
        echo(line, err=True)
    if task_class.images == 2 and len(sources.pictures) != 2:
        raise BenchError(f"task {task} is about two pictures; {len(sources.pictures)} are given; give --image twice")
    reporting = Reporting.unless(settings.pop("quiet"))
    checkpoint = _settle(context, task, settings)
    job = Job(sources.pictures, list(texts), as_json, reporting, min_score, top)
    if output is not None:
        job.gallery = Gallery(output, sources.pictures, job.is_single(task_class.images))
    with redirect_stdout(sys.stderr):  # what libraries print; stdout is for results
        from beit3_bench.harness.api import load

        if task_class.prompted or not settings["data_root"]:
            check_texts(task_class(settings["data_root"] or ".", _own(task_class, options)), texts)
        model = load(checkpoint, task, **settings, **options)
    for note in model.notes:
        echo(f"note: {note}", err=True)
    job.do(model)
    if output is None and not as_json:
        echo("(--output FILE or DIR draws it; --json prints it for programs)", err=True)


def _own(task_class: Any, options: dict[str, str]) -> dict[str, str]:
    from beit3_bench.harness.models import split_options

    return split_options(task_class, options)[0]


def _settle(context: click.Context, task: str, settings: dict[str, Any]) -> str:
    """Put into the parameters what the environment and beit3-bench.toml say; returns the checkpoint.

    Data is not needed, and so is looked for only where the command line names it.
    """
    from beit3_bench.harness.settings.choices import Choices, three_ways

    choices = Choices.of(context)
    choices.settle(settings)
    if settings["data_root"] is not None:
        found = choices.data_root(task)
        settings["data_root"] = None if found is None else Path(found.value)
    del settings["checkpoint"]
    chosen = choices.checkpoint(task)
    if chosen is None:
        raise three_ways(task, ["--checkpoint"])
    for line in choices.spoken:
        echo(line, err=True)
    return str(chosen.value)


@dataclass
class Job:
    """What one command line asks. failed: names of pictures that could not be read."""

    pictures: Sequence[Picture]
    texts: list[str]
    as_json: bool
    reporting: Reporting
    min_score: float
    top: int | None
    gallery: Gallery | None = None
    failed: list[str] = field(default_factory=list)

    def is_single(self, images: int) -> bool:
        """Whether there is one prediction."""
        return len(self.pictures) == images and (images == 1 or len(self.texts) <= 1)

    def do(self, model: ReadyModel) -> None:
        """Ask, print and draw.

        Raises:
            BenchError: pictures could not be read; the others have been printed.
        """
        from beit3_bench.backbones.abilities import Embeds

        candidates = None
        if issubclass(model.task.ability, Embeds):
            candidates = self._candidates(model)
        one_text = len(self.texts) == 1 and not model.task.prompted
        if candidates is not None and one_text and len(self.pictures) > 1:
            self._search(model, candidates)
        else:
            for prediction in self._all(model, candidates):
                self._tell(prediction)
        if self.gallery is not None:
            self.gallery.close()
            self._say_written(self.gallery)
        if self.failed and len(self.pictures) > 1:
            raise BenchError(
                f"{len(self.failed)} of {len(self.pictures)} pictures could not be read; the others are done"
            )

    def _candidates(self, model: ReadyModel) -> Candidates:
        total = sum(len(texts) for _, texts in model.task.candidates(self.texts))
        with self.reporting.meter("texts", "text", total, leave=False) as meter, redirect_stdout(sys.stderr):
            return model.candidates(self.texts, meter.advance)

    def _chunks(self, images: int) -> Iterator[list[Asked]]:
        """Pictures that could be opened, some at a time; pairs of a task of two."""
        from beit3_bench.harness.predicting.predictions import Asked

        opened: list[Asked] = []
        if images == 2:
            yield [Asked(tuple(p.name for p in self.pictures), tuple(p.open() for p in self.pictures))]
            return
        with self.reporting.meter("pictures", "picture", len(self.pictures), leave=False) as meter:
            for picture in self.pictures:
                try:
                    opened.append(Asked((picture.name,), (picture.open(),)))
                except BenchError as error:
                    if len(self.pictures) == 1:
                        raise
                    self.failed.append(picture.name)
                    echo(f"error: {error}", err=True)
                if len(opened) == CHUNK:
                    yield opened
                    meter.advance(len(opened))
                    opened = []
            if opened:
                yield opened

    def _all(self, model: ReadyModel, candidates: Candidates | None) -> Iterator[Prediction]:
        from beit3_bench.harness.predicting.asking import predict_asked

        for chunk in self._chunks(model.task.images):
            with redirect_stdout(sys.stderr):
                predictions = predict_asked(model, chunk, self.texts, candidates)
            yield from predictions

    def _search(self, model: ReadyModel, candidates: Candidates) -> None:
        import numpy as np

        from beit3_bench.harness.predicting.asking import search
        from beit3_bench.harness.predicting.predictions import Asked

        names: list[str] = []
        cosines = []
        for chunk in self._chunks(1):
            with redirect_stdout(sys.stderr):
                cosines.append(model.compare([one.images[0] for one in chunk], candidates)[:, 0])
            names += [one.names[0] for one in chunk]
        if not names:
            return
        by_name = {picture.name: picture for picture in self.pictures}
        found = search(names, np.concatenate(cosines), self.texts[0])[: self.top]
        if not self.as_json:
            echo(f"{self.texts[0]}: the best of {len(names):,} pictures first")
        for one in found:
            drawn = self.gallery is not None and (one.rank <= SEARCHED or self.top is not None)
            image = (by_name[one.asked.names[0]].open(),) if drawn else ()
            self._tell(dataclasses.replace(one, asked=Asked(one.asked.names, image)), drawn)
            if not self.as_json:
                echo(f"{one.rank:>4}  {one.cosine:>6.3f}  {one.asked.names[0]}")

    def _tell(self, prediction: Prediction, drawn: bool = True) -> None:
        """Print one, and draw it."""
        from beit3_bench.harness.predicting.predictions import Detected, Found, Ranked

        if isinstance(prediction, Ranked) and self.top is not None:
            prediction = dataclasses.replace(prediction, most=self.top)
        if isinstance(prediction, Detected):
            prediction = dataclasses.replace(prediction, min_score=self.min_score)
        path = self.gallery.add(prediction) if self.gallery is not None and drawn else None
        if self.as_json:
            record = prediction.record()
            echo(visible_json(json.dumps(record if path is None else {**record, "picture": str(path)})))
        elif not isinstance(prediction, Found):
            echo(str(prediction))

    def _say_written(self, gallery: Gallery) -> None:
        from beit3_bench.harness.predicting.output import SHEET

        if gallery.left_out:
            echo(f"the sheet shows the first {SHEET} pictures, {gallery.left_out:,} are left out", err=True)
        if len(gallery.paths) == 1:
            echo(f"picture: {gallery.paths[0]}", err=True)
        elif gallery.paths:
            echo(f"{len(gallery.paths):,} pictures: {gallery.output}", err=True)
