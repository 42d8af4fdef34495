"""Where the weights stand in a checkpoint's nested content, and what their names are without wrappers."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from beit3_bench.backbones.inert_pickle import Inert
from beit3_bench.backbones.inert_values import array_of, mapping_of

CONTAINERS = (
    "model", "module", "state_dict", "model_state_dict", "model_state", "net", "network", "weights", "params",
    "student", "online_network", "model_ema", "module_ema", "ema", "ema_model", "ema_state_dict", "state_dict_ema",
    "model_ema_state_dict", "averaged", "teacher", "target",
)  # fmt: skip
"""Keys under which weights are kept, in the order in which they are preferred: the trained weights before their averages."""

_NO_WEIGHTS = frozenset((
    "optimizer", "optimizers", "optimizer_states", "optimizer_state_dict", "optim", "lr_scheduler", "lr_schedulers",
    "scheduler", "schedulers", "param_schedulers", "scaler", "amp", "loss_scaler", "callbacks", "loops",
    "hyper_parameters", "args", "config", "cfg", "meta", "message_hub", "hparams", "criterion", "rng_state",
    "rng_states", "random_rng_state", "trainer", "beit3_bench",
))  # fmt: skip
_DEEPEST, _MOST = 5, 10_000  # containers in containers; mappings that are looked at
_OURS = re.compile(r"beit3\.|backbone\.|decode_head\.|roi_heads\.|blocks\.\d")
_WRAPPER = re.compile(
    r"(?:module|model|_orig_mod|_forward_module|_original_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_WRAPPED_INSIDE = re.compile(r"(?<=\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")


def bare_name(name: str, own: Collection[str] = ()) -> str:
    """A tensor's name without what wrappers put before it: ``module.`` (DataParallel), ``model.`` (Lightning),
    ``_orig_mod.`` (torch.compile) and FSDP's, in any order and number; no more is taken off than leads to a name in ``own``.
    """
    while name not in own and (wrapper := _WRAPPER.match(name)):
        name = name[wrapper.end() :]
    return name if name in own else _WRAPPED_INSIDE.sub("", name)


def bare_names(tensors: Mapping[str, Any], own: Collection[str] = ()) -> dict[str, Any]:
    """Tensors under their bare names. own: names of the model that they are for, which may begin as wrappers do.

    Raises:
        ValueError: two tensors of a BEiT-3 that differ would have one name; the message has both names.
    """
    wrapped = {bare_name(name): name for name in own}
    renamed: dict[str, Any] = {}
    before: dict[str, str] = {}
    for name, value in tensors.items():
        bare = bare_name(name, own)
        bare = bare if bare in own else wrapped.get(bare, bare)
        if bare in renamed and not _same(renamed[bare], value):
            if _OURS.match(bare):
                raise ValueError(f"holds {before[bare]!r} and {name!r}, which differ; keep one of them")
            bare = name
        renamed[bare], before[bare] = value, name
    return renamed


def of_one_network(tensors: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Where names of several networks stand side by side (``student.beit3...``, ``teacher.beit3...``): those of one, and a note.

    Bare names come first, then the order of `CONTAINERS`; a prefix that is no known container leaves all as they are.
    """
    parts = {name[:place] for name in tensors if (place := name.find("beit3.")) > 0 and name[place - 1] == "."}
    known = sorted(p for p in parts if all(key in CONTAINERS or _WRAPPER.match(f"{key}.") for key in p[:-1].split(".")))
    if not known or len(parts) > len(known):
        return tensors, []
    bare = any(name.startswith("beit3.") for name in tensors)
    chosen = "" if bare else min(known, key=lambda p: _ranks(tuple(p[:-1].split("."))))
    others = tuple(p for p in known if p != chosen)
    kept = {n.removeprefix(chosen): v for n, v in tensors.items() if not n.startswith(others)}
    names = ", ".join(repr(p) for p in others)
    read = f"the names that begin with {chosen!r} were" if chosen else "the names without a prefix were"
    note = (
        f"the checkpoint holds several networks: {read} read, not those with {names} (to read another, save it alone)"
    )
    return kept, [note] if others else []


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b))


def weights_of(content: Any) -> tuple[dict[str, Any], list[str]]:
    """The state dict in a checkpoint's content: names -> tensors (arrays become tensors), and notes on the choice.

    Of several, the ones whose names are this project's come first, then the order of `CONTAINERS`, then the order in the file.
    """
    candidates = list(_candidates(content))
    if not candidates:
        outermost = mapping_of(content) or {}
        inner = (mapping_of(outermost.get(key)) for key in CONTAINERS)
        return dict(next((m for m in inner if m), outermost)), []
    ranked = sorted(candidates, key=lambda c: (not _is_ours(c[1]), _ranks(c[0])))  # stable: else the file's order
    place, names = ranked[0]
    others = [_place(c[0]) for c in ranked[1:] if c[0] != place and _is_ours(c[1]) and _is_ours(names)]
    notes = []
    if others:
        notes.append(
            f"the checkpoint holds several sets of weights: {_place(place)} was read, not {', '.join(others[:5])} "
            "(to read another, save it alone)"
        )
    return {name: _as_tensor(value) for name, value in names.items() if isinstance(name, str)}, notes


def _ranks(place: tuple[str, ...]) -> list[float]:
    """Smaller is preferred; tensors on the first level come after trained weights and before averages."""
    if not place:
        return [CONTAINERS.index("model_ema") - 0.5]
    return [CONTAINERS.index(key) if key in CONTAINERS else len(CONTAINERS) for key in place]


def _place(keys: tuple[str, ...]) -> str:
    return repr(".".join(keys)) if keys else "the file's first level"


def _is_ours(names: Mapping[Any, Any]) -> bool:
    return any(isinstance(n, str) and _OURS.match(bare_name(n)) for n in names)


def _as_tensor(value: Any) -> Any:
    array = array_of(value)
    return value if array is None else torch.from_numpy(array)


def _candidates(content: Any) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Mappings that hold tensors, with the keys that lead to them."""
    seen: set[int] = set()
    queue: deque[tuple[tuple[str, ...], Any]] = deque([((), content)])
    while queue and len(seen) < _MOST:
        place, value = queue.popleft()
        mapping = mapping_of(value)
        if mapping is None or id(value) in seen:
            continue
        seen.add(id(value))
        if any(isinstance(v, Tensor) or array_of(v) is not None for v in mapping.values()):
            yield place, mapping
        if len(place) < _DEEPEST:
            inner = ((k, v) for k, v in mapping.items() if isinstance(k, str) and isinstance(v, (Mapping, Inert)))
            queue += [((*place, k), v) for k, v in inner if k not in _NO_WEIGHTS]
