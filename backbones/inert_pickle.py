"""Reading pickles as data: nothing that a pickle names is imported, looked up or called.

`pickletools` takes the bytes apart; the few instructions are carried out here, on plain Python values. What a pickle names
is a `Reference`, an object of a class is an `Inert`: the class's name beside what was to be done with it. A pickle that
calls a function, rather than describing an object, is refused by that function's name.
"""

from __future__ import annotations

import pickletools
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

Builder = Callable[..., Any]
"""Makes a plain value from the arguments of a call; `NotImplemented` where it has no value for them."""


class UnsafePickle(Exception):
    """The pickle wants a function run; the message is the function's name."""


class DamagedPickle(Exception):
    """The bytes are no whole pickle."""


@dataclass(eq=False, slots=True)
class Reference:
    """A class or function that a pickle names."""

    module: str
    name: str

    @property
    def path(self) -> str:
        """Dotted; what has another name in Python 2 (in which PyTorch writes) or in NumPy 2 is called the same."""
        module, name = NAME_MAPPING.get((self.module, self.name), (self.module, self.name))
        module = IMPORT_MAPPING.get(module, module)
        return f"{module.replace('numpy._core', 'numpy.core')}.{name}"

    def __repr__(self) -> str:
        return f"<{shown(self.path)}>"


@dataclass(eq=False, slots=True)
class Inert:
    """Stands in for an object: its class or maker, the arguments, the state that was to be set, the items to be added."""

    maker: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{shown(self.maker)}>"


def shown(name: str) -> str:
    """A name out of a file, fit for a message."""
    return re.sub(r"[^\w.<>-]", "?", name)[:80]


# ---- calls that describe an object, and calls that do something ---------------------------------------------------------

_DATA_MODULES = frozenset((
    "argparse", "array", "builtins", "collections", "datetime", "decimal", "enum", "fractions", "ipaddress",
    "numbers", "pathlib", "random", "types", "typing", "uuid", "zoneinfo",
))  # fmt: skip
_DATA_CALLS = frozenset((
    "builtins.bytearray", "builtins.bytes", "builtins.complex", "builtins.dict", "builtins.float",
    "builtins.frozenset", "builtins.getattr", "builtins.int", "builtins.list", "builtins.object", "builtins.range",
    "builtins.set", "builtins.slice", "builtins.str", "builtins.tuple", "collections.defaultdict",
    "collections.deque", "collections.namedtuple", "copyreg._reconstructor", "copyreg.__newobj__",
    "copyreg.__newobj_ex__", "_codecs.encode", "array.array", "array._array_reconstructor", "datetime.date",
    "datetime.datetime", "datetime.time", "datetime.timedelta", "datetime.timezone", "decimal.Decimal",
    "_decimal.Decimal", "functools.partial", "io.BytesIO", "_io.BytesIO", "logging.getLogger",
    "operator.attrgetter", "operator.itemgetter", "random.Random", "re._compile", "time.struct_time",
    "uuid.SafeUUID", "numpy.dtype", "numpy.ndarray", "numpy.core.multiarray.scalar", "numpy.memmap", "numpy.matrix",
    "numpy.recarray", "torch.device", "builtins.iter", "builtins.type", "itertools.count", "itertools.cycle",
    "itertools.repeat", "http.HTTPStatus", "signal.Signals", "socket.AddressFamily", "socket.SocketKind",
))  # fmt: skip
_CODE = frozenset(("types.FunctionType", "types.CodeType", "types.LambdaType", "types.MethodType", "types.ModuleType"))
_FUNCTION = re.compile(r"[a-z][a-z0-9_]*")
_NUMPY_NUMBER = re.compile(r"numpy\.(u?int|float|complex|bool|str|bytes|datetime|timedelta|longdouble)\w*")


def _runs_something(reference: Reference, called: bool) -> bool:
    """Whether making this is an act rather than a description. called: as a function, not as a class.

    From the standard library only known classes of data are descriptions. Elsewhere names tell: classes are written in
    capitals, the makers of objects begin with an underscore.
    """
    path = reference.path
    if path in _DATA_CALLS or _NUMPY_NUMBER.fullmatch(path):
        return False
    root = path.partition(".")[0]
    if root in sys.stdlib_module_names:
        return (
            path in _CODE or root not in _DATA_MODULES or not reference.name.isidentifier() or not _named_as_class(path)
        )
    return called and bool(_FUNCTION.fullmatch(path.rpartition(".")[2]))


def _named_as_class(path: str) -> bool:
    return path.rpartition(".")[2][:1].isupper()


# ---- the values that plain makers give ----------------------------------------------------------------------------------


def _pairs(content: Any = ()) -> Any:
    if type(content) is dict:
        return dict(content)
    if type(content) in (list, tuple) and all(type(p) in (list, tuple) and len(p) == 2 for p in content):
        return {_key(k): v for k, v in content}
    return NotImplemented


def _set(content: Any = ()) -> Any:
    return {_key(v) for v in content} if type(content) in (list, tuple, set) else NotImplemented


def _encoded(text: Any, encoding: Any = "latin1", *_: Any) -> Any:
    return text.encode("latin1") if type(text) is str and encoding in ("latin1", "latin-1") else NotImplemented


_PLAIN: dict[str, Builder] = {
    "collections.OrderedDict": _pairs,
    "collections.Counter": _pairs,
    "collections.defaultdict": lambda factory=None, content=(): _pairs(content),
    "builtins.dict": _pairs,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.list": lambda content=(): list(content) if type(content) in (list, tuple) else NotImplemented,
    "builtins.tuple": lambda content=(): tuple(content) if type(content) in (list, tuple) else NotImplemented,
    "builtins.bytearray": lambda *a: bytes(a[0]) if len(a) == 1 and type(a[0]) is bytes else _encoded(*a) if a else b"",
    "builtins.bytes": lambda *content: NotImplemented if content else b"",
    "_codecs.encode": _encoded,
    "torch.Size": lambda sizes=(): tuple(sizes) if type(sizes) in (list, tuple) else NotImplemented,
}

_SCALARS = (str, int, float, bool, bytes, complex, type(None))
_LONGEST_KEY = 64  # elements of a tuple; the hash of a nested or long one can be made to take for ever
_LARGEST_KEY = 1 << 12  # bits of a number


def _key(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > _LARGEST_KEY:
        raise DamagedPickle("a key that is a number of thousands of digits")
    if type(value) in _SCALARS or type(value) in (Inert, Reference):
        return value
    if type(value) is tuple and len(value) <= _LONGEST_KEY and all(type(v) is not tuple for v in value):
        return tuple(_key(v) for v in value)
    raise DamagedPickle(f"a key that is a {type(value).__name__}")


# ---- the machine --------------------------------------------------------------------------------------------------------

_MARK = object()
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_LITERALS = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
))  # fmt: skip
_COLLECTING = frozenset(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "DICT", "FROZENSET"))
_ADDING = frozenset(("APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS"))
_MAKING = frozenset(("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST"))


class InertUnpickler:
    """Reads one pickle after the other from a file.

    Args:
        builders: dotted name of a class or function -> what makes its plain value.
        persistent: what stands for a persistent id (PyTorch's storages).
    """

    def __init__(self, builders: Mapping[str, Builder] | None = None, persistent: Builder | None = None) -> None:
        self._builders = {**_PLAIN, **(builders or {})}
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self, file: bytes | BinaryIO) -> Any:
        """The value of the pickle that begins here; a file is left behind its end.

        Raises:
            UnsafePickle: it calls a function.
            DamagedPickle: no whole pickle.
        """
        self._stack, self._memo = [], {}
        try:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "STOP":
                    return self._pop()
                self._do(opcode.name, argument)
        except (UnsafePickle, DamagedPickle, MemoryError):
            raise
        except Exception as error:  # wrong bytes fail in many ways, each means the same
            raise DamagedPickle(str(error).strip() or type(error).__name__) from error
        raise DamagedPickle("it ends too early")

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise DamagedPickle("an instruction lacks its values")
        return value

    def _pop_mark(self) -> list[Any]:
        values: list[Any] = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise DamagedPickle("an instruction lacks its values")
        return self._stack[-1]

    def _do(self, name: str, argument: Any) -> None:
        push = self._stack.append
        if name in _LITERALS:
            push(bytes(argument) if isinstance(argument, bytearray) else argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            push(self._memo[argument])
        elif name in _COLLECTING:
            push(self._collected(name))
        elif name in _ADDING:
            self._add(name)
        elif name in _MAKING:
            push(self._made(name, argument))
        elif name == "BUILD":
            self._build(self._pop())
        elif name == "BINPERSID" and self._persistent is not None:
            push(self._persistent(self._pop()))
        elif name == "POP":
            self._stack.pop()
        elif name == "POP_MARK":
            self._pop_mark()
        elif name == "DUP":
            push(self._top())
        elif name not in ("PROTO", "FRAME", "READONLY_BUFFER"):
            raise DamagedPickle(f"an instruction that no checkpoint needs ({name})")

    def _collected(self, name: str) -> Any:
        """A new tuple, list, dict or frozen set of the values on the stack."""
        if name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            return tuple([self._pop() for _ in range(int(name[-1]))][::-1])
        values = self._pop_mark()
        if name == "TUPLE":
            return tuple(values)
        if name == "LIST":
            return values
        if name == "FROZENSET":
            return frozenset(_key(v) for v in values)
        return {_key(k): v for k, v in zip(values[::2], values[1::2], strict=True)}

    def _add(self, name: str) -> None:
        """Put values on the stack into the list, set, dict or object below them."""
        if name in ("SETITEM", "SETITEMS"):
            values = [self._pop(), self._pop()][::-1] if name == "SETITEM" else self._pop_mark()
            self._set_items(list(zip(values[::2], values[1::2], strict=True)))
        else:
            self._extend([self._pop()] if name == "APPEND" else self._pop_mark())

    def _made(self, name: str, argument: Any) -> Any:
        """A class or function by its name, or what one gives for arguments on the stack."""
        if name == "GLOBAL":
            return Reference(*argument.split(" ", 1))
        if name == "STACK_GLOBAL":
            attribute, module = self._pop(), self._pop()
            if type(module) is not str or type(attribute) is not str:
                raise DamagedPickle("a name that is no text")
            return Reference(module, attribute)
        if name == "NEWOBJ_EX":
            keywords, arguments, made = self._pop(), self._pop(), self._pop()
            return self._make(made, (*arguments, keywords), called=False)
        if name == "OBJ":
            made, *rest = self._pop_mark()
            return self._make(made, tuple(rest), called=True)
        if name == "INST":
            return self._make(Reference(*argument.split(" ", 1)), tuple(self._pop_mark()), called=True)
        arguments, made = self._pop(), self._pop()
        return self._make(made, arguments, called=name == "REDUCE")

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is list:
            target.extend(values)
        elif type(target) is set:
            target.update(_key(v) for v in values)
        elif type(target) is Inert:
            target.items.extend(values)
        else:
            raise DamagedPickle(f"items for a {type(target).__name__}")

    def _set_items(self, pairs: list[tuple[Any, Any]]) -> None:
        target = self._top()
        if type(target) is dict:
            target.update((_key(k), v) for k, v in pairs)
        elif type(target) is Inert:
            target.items.extend(pairs)
        else:
            raise DamagedPickle(f"keys for a {type(target).__name__}")

    def _build(self, state: Any) -> None:
        target = self._top()
        if type(target) is Reference:
            raise UnsafePickle(target.path)  # would change the class itself
        if type(target) is Inert:
            target.state = state
        # Attributes of what has a plain value, such as the versions beside a state dict, are left out.

    def _make(self, made: Any, arguments: Any, called: bool) -> Any:
        """What a class or function gives for arguments."""
        if type(arguments) is not tuple:
            raise DamagedPickle("arguments that are no tuple")
        if type(made) is not Reference:
            parts = made.arguments if type(made) is Inert else ()
            names = [p.path if type(p) is Reference else p.maker if type(p) is Inert else p for p in parts]
            raise UnsafePickle(".".join(n[:60] for n in names if type(n) is str) or "the result of a call")
        path = made.path
        if path in ("copyreg.__newobj__", "copyreg.__newobj_ex__", "copyreg._reconstructor") and arguments:
            if type(arguments[0]) is not Reference:
                raise DamagedPickle("an object without a class")
            # _reconstructor(class, base, what the base holds)
            rest = (
                tuple(a for a in arguments[2:3] if a is not None) if path.endswith("_reconstructor") else arguments[1:]
            )
            return self._make(arguments[0], rest, called=False)
        if path in self._builders and (value := self._builders[path](*arguments)) is not NotImplemented:
            return value
        if _runs_something(made, called):
            raise UnsafePickle(path)
        return Inert(path, arguments)
