"""Task names -> classes, lazily: a module is imported when its task is asked for, and a missing one is not listed.

Another package adds a task with an entry point of the group `beit3_bench.tasks` (see docs/extending.md).
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from beit3_bench.errors import BenchError
from beit3_bench.plugins import add_plugins
from beit3_bench.spelling import did_you_mean

if TYPE_CHECKING:
    from beit3_bench.tasks.contract import Task

ENTRY_POINT_GROUP = "beit3_bench.tasks"

BUILT_IN = {
    "vqav2": "beit3_bench.tasks.vqav2:VQAv2",
    "nlvr2": "beit3_bench.tasks.nlvr2:NLVR2",
    "snli-ve": "beit3_bench.tasks.snli_ve:SnliVE",
    "coco-caption": "beit3_bench.tasks.captioning:CocoCaption",
    "nocaps": "beit3_bench.tasks.captioning:NoCaps",
    "flickr30k": "beit3_bench.tasks.retrieval:Flickr30K",
    "coco-retrieval": "beit3_bench.tasks.retrieval:CocoRetrieval",
    "sugarcrepe": "beit3_bench.tasks.sugarcrepe:SugarCrepe",
    "winoground": "beit3_bench.tasks.winoground:Winoground",
    "aro": "beit3_bench.tasks.aro:ARO",
    "imagenet": "beit3_bench.tasks.imagenet:ImageNet",
    "imagenet-linear": "beit3_bench.tasks.imagenet:ImageNetLinear",
    "coco-det": "beit3_bench.tasks.coco_det:CocoDetection",
    "ade20k-seg": "beit3_bench.tasks.ade20k:ADE20K",
    "classify": "beit3_bench.tasks.own.classify:Classify",
    "retrieval": "beit3_bench.tasks.own.retrieval:OwnRetrieval",
    "caption": "beit3_bench.tasks.own.captions:OwnCaptions",
    "vqa": "beit3_bench.tasks.own.questions:OwnQuestions",
}


@cache
def task_locations() -> dict[str, str]:
    """Every known task name -> ``"module:Class"``, without importing any of them.

    Built-in tasks whose module is not part of this installation are left out.

    Raises:
        BenchError: two sources claim one name; names both.
    """
    known = {name: place for name, place in BUILT_IN.items() if importlib.util.find_spec(place.partition(":")[0])}
    add_plugins(known, entry_points(group=ENTRY_POINT_GROUP), "task")
    return known


def task_names() -> list[str]:
    """Names of the available tasks, in the order of the design's table, then those of other packages."""
    return list(task_locations())


def get_task(name: str) -> type[Task]:
    """The class of a task.

    Raises:
        BenchError: an unknown name (with the nearest known one), or a class that does not import.
    """
    known = task_locations()
    if not isinstance(name, str):
        raise BenchError(f"a task is named by a text, not a {type(name).__name__}; known: {', '.join(known)}")
    if name not in known:
        raise BenchError(f"unknown task {name!r}; {did_you_mean(name, known)} (see: beit3-bench tasks)")
    module, _, attribute = known[name].partition(":")
    from beit3_bench.tasks.contract import Task

    try:
        cls = vars(importlib.import_module(module))[attribute]
    except (ImportError, KeyError) as error:
        raise BenchError(
            f"task {name!r} at {known[name]} does not load ({error}); mend or uninstall that package"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Task)) or cls.name != name:
        raise BenchError(f"task {name!r} at {known[name]} is no Task of that name; give class and entry point one name")
    return cls
