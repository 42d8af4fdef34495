"""What ``-o`` takes, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import pytest
from click.testing import CliRunner

from beit3_bench.errors import BenchError
from beit3_bench.harness.commands.tasks import command
from beit3_bench.tasks.options import option_help, parse_options
from beit3_bench.tasks.registry import get_task, task_names


@dataclass
class Made:
    """side, margin: pixels; default: the
    model's own.  mode: one of: slide, whole.
    words: what is said:
    at length.

    Not about an option: nor is this.  depth: of a tree.
    """

    side: int | None = None
    margin: int = 0
    mode: str = "slide"
    words: str = ""
    depth: int = 1
    silent: bool = False


def test_entries_share_a_line_run_over_and_stand_for_several_options() -> None:
    assert option_help(Made) == {
        "side": "pixels; default: the model's own.",
        "margin": "pixels; default: the model's own.",
        "mode": "one of: slide, whole.",
        "words": "what is said: at length.",
        "depth": "of a tree.",
    }


def test_a_class_without_words_has_no_help() -> None:
    @dataclass
    class Bare:
        side: int = 1

    Bare.__doc__ = None
    assert option_help(Bare) == {}


@pytest.mark.parametrize("name", task_names())
def test_every_option_of_every_task_is_explained(name: str) -> None:
    options = get_task(name).Options
    meanings = option_help(options)
    assert [f.name for f in dataclasses.fields(options) if len(meanings.get(f.name, "")) < 8] == []


def test_the_verb_shows_what_an_option_means() -> None:
    shown = CliRunner().invoke(command, ["coco-det"]).output
    assert (
        "  -o soft_nms_sigma=FLOAT [default: 0.5]\n      width of gaussian; a larger one lowers scores less.\n" in shown
    )
    records = json.loads(CliRunner().invoke(command, ["coco-det", "--json"]).output)["options"]
    flip = next(record for record in records if record["name"] == "flip_test")
    assert flip == {"name": "flip_test", "type": "bool", "default": "False", "help": "see mirrored images, too."}


def test_options_are_read_by_type_and_an_unknown_one_is_named() -> None:
    assert parse_options(Made, {"side": "3", "silent": "yes"}, "task x") == Made(side=3, silent=True)
    with pytest.raises(BenchError, match=r"^task x has no option 'modus'; did you mean 'mode'\?$"):
        parse_options(Made, {"modus": "slide"}, "task x")
    with pytest.raises(BenchError, match=r"^task x: margin: 'wide' is not a whole number"):
        parse_options(Made, {"margin": "wide"}, "task x")
