"""Pickles as data: nothing is called, nothing takes for ever, and damaged bytes end in one way."""

from __future__ import annotations

import ast
import contextlib
import io
import pickle
import pickletools
import random
import time
from pathlib import Path

import pytest

from beit3_bench.backbones.inert_pickle import DamagedPickle, Inert, InertUnpickler, Reference, UnsafePickle

VALUES = {
    "none": None,
    "numbers": [True, False, 0, -1, 255, 70_000, 2**40, -(2**100), 1.5, float("inf")],
    "texts": ["", "a", "ü" * 300, "x" * 70_000, b"", b"\xff" * 300, bytearray(b"ab")],
    "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {"a": {"b": [1]}}, set(), {1, 2}, []],
    "shared": [shared := [1], shared, (shared, shared)],
    "complex keys": {(1, "a"): 1, None: 2, b"x": 3, 1.5: 4},
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", VALUES)
def test_plain_values_come_back(name, protocol):
    assert InertUnpickler().load(pickle.dumps(VALUES[name], protocol)) == VALUES[name]


def test_what_is_shared_stays_shared():
    first, second = InertUnpickler().load(pickle.dumps([shared := {"a": 1}, shared]))
    assert first is second


def test_one_pickle_after_the_other_is_read_from_a_file():
    file = io.BytesIO(pickle.dumps(1) + pickle.dumps([2]) + b"rest")
    assert [InertUnpickler().load(file), InertUnpickler().load(file), file.read()] == [1, [2], b"rest"]


class Loud:
    """Every special method of a class that unpickling could call says so."""

    calls: list[str] = []  # noqa: RUF012

    def __new__(cls, *arguments):
        cls.calls.append("new")
        return super().__new__(cls)

    def __setstate__(self, state):
        self.calls.append("setstate")

    def __reduce_ex__(self, protocol):
        return Loud, (1,), {"a": 2}, iter([3]), iter([("k", 4)])

    def append(self, value):
        self.calls.append("append")

    def __setitem__(self, key, value):
        self.calls.append("setitem")


def test_no_method_of_a_class_is_called():
    content = pickle.dumps(Loud())
    Loud.calls.clear()
    value = InertUnpickler().load(content)
    assert Loud.calls == []
    assert type(value) is Inert
    assert (value.maker, value.arguments, value.state) == (f"{__name__}.Loud", (1,), {"a": 2})
    assert value.items == [3, ("k", 4)]
    pickle.loads(content)
    assert Loud.calls == ["new", "append", "setitem", "setstate"], "an ordinary reader does"


def test_names_of_modules_that_do_not_exist_are_only_names():
    value = InertUnpickler().load(b"\x80\x02cno.such.module\nThing\nq\x00.")
    assert type(value) is Reference
    assert value.path == "no.such.module.Thing"


def program(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


UNSAFE = {
    "posix.system": program(b"cposix\nsystem\n", b"\x8c\x01x\x85R"),
    "builtins.eval": program(b"c__builtin__\neval\n", b"\x8c\x01x\x85R"),
    "builtins.exec": program(b"\x8c\x08builtins\x8c\x04exec\x93", b"\x8c\x01x\x85R"),
    "subprocess.getoutput": program(b"ccommands\ngetoutput\n", b"\x8c\x01x\x85R"),
    "posix.popen": program(b"(\x8c\x01x" + b"iposix\npopen\n"),
    "os.system": program(b"(cos\nsystem\n\x8c\x01xo"),
    "subprocess.Popen": program(b"csubprocess\nPopen\n", b"\x8c\x01x\x85\x81"),
    "importlib.import_module": program(b"cimportlib\nimport_module\n", b"\x8c\x02os\x85R"),
    "types.FunctionType": program(b"ctypes\nFunctionType\n", b")R"),
    "collections.abc.x": program(b"ccollections.abc\nx\n", b")R"),
    "builtins.getattr.system": program(
        b"cbuiltins\ngetattr\n", b"\x8c\x10builtins.getattr\x8c\x06system\x86R", b"\x8c\x01x\x85R"
    ),
    "collections.OrderedDict": program(b"ccollections\nOrderedDict\n", b"}b"),  # sets attributes of the class itself
}


@pytest.mark.parametrize("name", UNSAFE)
def test_calls_are_refused_by_name(name):
    with pytest.raises(UnsafePickle, match=name.removeprefix("builtins.getattr.").replace(".", r"\.")):
        InertUnpickler().load(UNSAFE[name])


def test_keys_that_take_for_ever_to_hash_are_refused():
    doubled = b"\x8c\x01x" + b"2\x86" * 60  # ((..., ...), (..., ...)): 2^60 leaves
    for content in (
        program(b"}" + doubled + b"Ns"),
        program(b"\x8f(" + doubled + b"\x90"),
        program(b"}" + b")" + b"\x85" * 200_000 + b"Ns"),
        program(b"}", b"\x8b", (2**20).to_bytes(4, "little"), b"\x7f" * 2**20, b"Ns"),
    ):
        start = time.perf_counter()
        with pytest.raises(DamagedPickle, match="a key that is a"):
            InertUnpickler().load(content)
        assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.",  # 4 EB of bytes
        b"\x80\x05\x96" + (2**62).to_bytes(8, "little") + b"x.",
        b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x.",
        b"\x80\x04r" + b"\xff\xff\xff\x7f.",  # nothing to remember, at place 2^31
        b"\x80\x04Nr\xff\xff\xff\x7fj\xff\xff\xff\x7e.",
        b"\x80\x04I" + b"9" * 10_000 + b"\n.",
        b"\x80\x05\x97.",
        b"\x80\x04\x82\x01.",
    ],
)
def test_sizes_that_are_only_claimed_take_no_memory(content):
    with pytest.raises(DamagedPickle):
        InertUnpickler().load(content)
    with pytest.raises(DamagedPickle):
        InertUnpickler().load(io.BytesIO(content))


def test_makers_of_huge_values_make_none():
    content = program(b"c__builtin__\nbytearray\n", b"\x8a\x05\x00\x00\x00\x00\x01\x85R")
    assert type(InertUnpickler().load(content)) is Inert


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_damaged_bytes_are_damaged_or_unsafe_and_nothing_else(protocol):
    whole = pickle.dumps([VALUES[name] for name in VALUES] + [Loud()], protocol)
    opcodes = [op.code.encode("latin1") for op in pickletools.opcodes]
    Loud.calls.clear()
    for seed in range(1500):
        chance = random.Random(seed)
        content = bytearray(whole[:4000])
        for _ in range(chance.randint(1, 8)):
            place = chance.randrange(len(content))
            content[place : place + chance.randint(0, 2)] = chance.choice(opcodes)
        with contextlib.suppress(UnsafePickle, DamagedPickle):
            InertUnpickler().load(bytes(content) + b".")
    assert Loud.calls == []


def calls(tree: ast.AST) -> list[tuple[str, dict[str, object]]]:
    """Dotted names that are called in a module, with the constants among their keyword arguments."""
    calls = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            constants = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
            calls.append((ast.unparse(node.func), constants))
    return calls


@pytest.mark.parametrize("package", ["backbones", "tasks", "harness", "results"])
def test_no_module_of_ours_unpickles_and_every_load_says_so(package):
    root = Path(__file__).resolve().parents[2] / package
    modules = sorted(root.rglob("*.py"))
    assert modules
    for module in modules:
        tree = ast.parse(module.read_text())
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        assert not imported & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, module
        for name, constants in calls(tree):
            if name.endswith("torch.load"):
                assert constants.get("weights_only") is True, f"{module}: {name}"
            if name in ("np.load", "numpy.load"):
                assert constants.get("allow_pickle") is False, f"{module}: {name}"
            assert not name.endswith((".jit.load", ".load_state_dict_from_url", ".read_pickle")), f"{module}: {name}"
