"""What a shell is offered behind what was typed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete

from beit3_bench.harness.cli import VERBS, main
from beit3_bench.tasks.registry import task_names


def offered(*words: str) -> list[str]:
    *typed, incomplete = words
    return [item.value for item in ShellComplete(main, {}, "beit3-bench", "X").get_completions(typed, incomplete)]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["ini"], ["init"]),
        (["run", "--task", "nl"], ["nlvr2"]),
        (["run", "--task", "nlvr2,flick"], ["nlvr2,flickr30k"]),
        (["run", "--task", "nlvr2", "--split", "test"], ["test-P"]),
        (["run", "--task", "nope", "--split", ""], []),
        (["finetune", "--preset", "g"], ["giant"]),
        (["tasks", "ade"], ["ade20k-seg"]),
        (["models", "beit3_base_patch16_480_v"], ["beit3_base_patch16_480_vqa"]),
        (["data", "verify", "--task", "coco-c"], ["coco-caption"]),
    ],
)
def test_names_are_completed(words, names):
    assert offered(*words) == names


def test_what_was_given_is_not_offered_again():
    assert offered("run", "--task", "") == [*task_names(), "all"]
    assert "nlvr2,nlvr2" not in offered("run", "--task", "nlvr2,")
    both = offered("download", "beit3_base_patch16_384_f30k_retrieval", "beit3_base_patch16_384_")
    assert both
    assert "beit3_base_patch16_384_f30k_retrieval" not in both


def test_verbs_are_completed():
    assert offered("") == list(VERBS)


def test_completing_prints_lines_for_the_shell_and_imports_no_torch():
    code = (
        "import sys\nfrom beit3_bench.harness.cli import main\ntry: main(prog_name='beit3-bench')\n"
        "except SystemExit: print(sorted({'torch', 'timm', 'pandas'} & set(sys.modules)))"
    )
    typed = {"COMP_WORDS": "beit3-bench run --task nl", "COMP_CWORD": "3", "_BEIT3_BENCH_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **typed}, check=True
    )
    assert done.stdout.splitlines() == ["plain,nlvr2", "[]"]
