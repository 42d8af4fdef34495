"""Requests for runs on the CPU, with the fields of `Compute` beside those of `RunRequest`."""

from __future__ import annotations

import dataclasses
from typing import Any

from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.request import RunRequest

_COMPUTE = {f.name for f in dataclasses.fields(Compute)}


def run_request(task: str, checkpoint: Any, data_root: Any, **settings: Any) -> RunRequest:
    """A request; by default nothing is decoded in processes of its own."""
    compute = {"device": "cpu", "workers": 0} | {k: v for k, v in settings.items() if k in _COMPUTE}
    rest = {k: v for k, v in settings.items() if k not in _COMPUTE}
    return RunRequest(task, checkpoint, data_root, compute=Compute(**compute), **rest)


def with_settings(request: RunRequest, **settings: Any) -> RunRequest:
    """Another request with some fields changed."""
    compute = {k: v for k, v in settings.items() if k in _COMPUTE}
    rest = {k: v for k, v in settings.items() if k not in _COMPUTE}
    return dataclasses.replace(request, compute=dataclasses.replace(request.compute, **compute), **rest)
