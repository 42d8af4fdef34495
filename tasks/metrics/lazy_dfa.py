"""Longest-match scanning: regular expressions -> one automaton, made deterministic while it runs.

Python's ``re`` takes the first alternative that matches; a lexer wants the longest match over all rules, the earlier
rule on a tie. Here all rules are compiled into one non-deterministic automaton (Thompson's construction) and its
deterministic states are built the first time a character asks for them, so that start-up is cheap, the few states
that real text visits are cached, and scanning costs one dictionary look-up per character.

Expression syntax (`parse`): ``|``, ``()``, ``*``, ``+``, ``?``, ``{m,n}``, ``[...]`` and ``[^...]`` with ranges,
``{name}`` for a named expression or character set, ``\\`` before a character that stands for itself. A letter outside
of brackets matches both cases; inside of brackets, only itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

CharSet = Callable[[str], bool]
Node = tuple
"""("set", CharSet, key) | ("cat", [nodes]) | ("alt", [nodes]) | ("repeat", node, low, high or None)"""

_REPEAT = re.compile(r"\{(\d+)(?:,(\d+))?\}")
_NAME = re.compile(r"\{([a-z_0-9]+)\}")

# Letters whose lower or upper form is an ASCII letter: caseless matching takes them too.
_FOLDS = {"k": "\u212a", "s": "\u017f", "i": "\u0130\u0131"}


class Expressions:
    """Named expressions and character sets, parsed on demand.

    sets: name -> predicate on one character.  texts: name -> expression, which may refer to other names.
    """

    def __init__(self, sets: Mapping[str, CharSet], texts: Mapping[str, str]):
        self.sets = dict(sets)
        self.texts = dict(texts)
        self._parsed: dict[str, Node] = {}

    def parse(self, text: str) -> Node:
        """Parse an expression.

        Raises:
            ValueError: a syntax error or an unknown name.
        """
        node, end = self._alternatives(text, 0)
        if end != len(text):
            raise ValueError(f"unbalanced ')' at {end} in {text!r}")
        return node

    def _named(self, name: str) -> Node:
        if name in self.sets:
            return ("set", self.sets[name], name)
        if name not in self._parsed:
            if name not in self.texts:
                raise ValueError(f"unknown expression {{{name}}}")
            self._parsed[name] = self.parse(self.texts[name])
        return self._parsed[name]

    def _alternatives(self, text: str, at: int) -> tuple[Node, int]:
        branches: list[Node] = []
        items: list[Node] = []
        while at < len(text) and text[at] != ")":
            if text[at] == "|":
                branches.append(("cat", items))
                items = []
                at += 1
                continue
            item, at = self._atom(text, at)
            item, at = self._repeats(text, at, item)
            items.append(item)
        branches.append(("cat", items))
        return (branches[0] if len(branches) == 1 else ("alt", branches)), at

    def _repeats(self, text: str, at: int, item: Node) -> tuple[Node, int]:
        while at < len(text):
            if text[at] in "*+?":
                low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[text[at]]
                item, at = ("repeat", item, low, high), at + 1
            elif match := _REPEAT.match(text, at):
                low = int(match[1])
                item, at = ("repeat", item, low, int(match[2] or low)), match.end()
            else:
                break
        return item, at

    def _atom(self, text: str, at: int) -> tuple[Node, int]:
        character = text[at]
        if character == "(":
            node, end = self._alternatives(text, at + 1)
            if end >= len(text):
                raise ValueError(f"missing ')' in {text!r}")
            return node, end + 1
        if character == "[":
            return self._brackets(text, at + 1)
        if character == "{":
            match = _NAME.match(text, at)
            if not match:
                raise ValueError(f"lone '{{' at {at} in {text!r}")
            return self._named(match[1]), match.end()
        if character == "\\":
            character, at = text[at + 1], at + 1
        if character.isascii() and character.isalpha():
            low = character.lower()
            return _one_of(low + low.upper() + _FOLDS.get(low, "")), at + 1
        return _one_of(character), at + 1

    def _brackets(self, text: str, at: int) -> tuple[Node, int]:
        negated = text[at] == "^"
        at += negated
        members: list[str] = []
        spans: list[tuple[str, str]] = []
        while text[at] != "]":
            if text[at] == "\\":
                at += 1
            first = text[at]
            at += 1
            if text[at] == "-" and text[at + 1] != "]":
                spans.append((first, text[at + 1]))
                at += 2
            else:
                members.append(first)
        one = frozenset(members).union(*(map(chr, range(ord(a), ord(b) + 1)) for a, b in spans))
        if negated:
            return ("set", lambda c: c not in one, ("not", one)), at + 1
        return ("set", one.__contains__, one), at + 1


def _one_of(characters: str) -> Node:
    members = frozenset(characters)
    return ("set", members.__contains__, members)


Hopeless = set[tuple[int, int]]
"""Positions, and the state before them (its ``id``), from where no further match is reached."""
_NEAR = 64
"""Characters of a scan that are not looked up among the hopeless places: nearly every token ends sooner."""


@dataclass
class _Graph:
    """A non-deterministic automaton: per node its empty moves, at most one character move, the rule that it ends."""

    empty: list[list[int]] = field(default_factory=list)
    move: list[tuple[int, int] | None] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    sets: list[CharSet] = field(default_factory=list)
    keys: dict[object, int] = field(default_factory=dict)

    def node(self) -> int:
        self.empty.append([])
        self.move.append(None)
        self.ends.append(-1)
        return len(self.empty) - 1

    def add(self, expression: Node, start: int) -> int:
        """Append the expression's nodes behind ``start``; returns the node where it has matched."""
        kind = expression[0]
        if kind == "set":
            _, accepts, key = expression
            if key not in self.keys:
                self.keys[key] = len(self.sets)
                self.sets.append(accepts)
            end, here = self.node(), start
            if self.move[here] is not None:
                here = self.node()
                self.empty[start].append(here)
            self.move[here] = (self.keys[key], end)
            return end
        if kind == "cat":
            for item in expression[1]:
                start = self.add(item, start)
            return start
        if kind == "alt":
            end = self.node()
            for branch in expression[1]:
                entry = self.node()
                self.empty[start].append(entry)
                self.empty[self.add(branch, entry)].append(end)
            return end
        _, item, low, high = expression
        for _ in range(low):
            start = self.add(item, start)
        if high is None:
            loop, end = self.node(), self.node()
            self.empty[start].append(loop)
            self.empty[loop].append(end)
            self.empty[self.add(item, loop)].append(loop)
            return end
        end = self.node()
        self.empty[start].append(end)
        for _ in range(high - low):
            entry = self.node()
            self.empty[start].append(entry)
            start = self.add(item, entry)
            self.empty[start].append(end)
        return end


class State(dict):
    """A deterministic state: character -> next state.  rule: what ends here, or -1.  dead: nothing can follow."""

    __slots__ = ("_automaton", "_nodes", "dead", "rule")

    def __init__(self, automaton: Automaton, nodes: frozenset[int]):
        super().__init__()
        self._automaton = automaton
        self._nodes = nodes
        ends = [automaton.graph.ends[n] for n in nodes if automaton.graph.ends[n] >= 0]
        self.rule = min(ends, default=-1)
        self.dead = not any(automaton.graph.move[n] for n in nodes)

    def __missing__(self, character: str) -> State:
        following = self[character] = self._automaton.step(self._nodes, character)
        return following


class Automaton:
    """All rules in one: ``start`` is the first state; `longest` scans."""

    def __init__(self, rules: Iterable[Node]):
        self.graph = _Graph()
        root = self.graph.node()
        for index, expression in enumerate(rules):
            entry = self.graph.node()
            self.graph.empty[root].append(entry)
            self.graph.ends[self.graph.add(expression, entry)] = index
        self._closures: dict[int, frozenset[int]] = {}
        self._members: dict[str, int] = {}
        self._states: dict[frozenset[int], State] = {}
        self.start = self._state(self._closure(root))

    def longest(self, text: str, begin: int, end: int, hopeless: Hopeless | None = None) -> tuple[int, int]:
        """The longest match from ``begin`` in ``text[begin:end]``: (rule, end), or (-1, begin) where there is none.

        Args:
            hopeless: shared by all scans of one text up to the same ``end``; they then take linear time together (Reps
                1998, "Maximal-munch tokenization in linear time"): an expression that stays alive to the end of the text
                and never matches is followed there once, not from every character.
        """
        state = self.start
        rule, stop = -1, begin
        near = min(end, begin + _NEAR)
        for at in range(begin, near):
            state = state[text[at]]
            if state.rule >= 0:
                rule, stop = state.rule, at + 1
            if state.dead:
                return rule, stop
        visited: list[tuple[int, int]] = []
        for at in range(near, end):
            here = (at, id(state))
            if hopeless is not None and here in hopeless:
                break
            visited.append(here)
            state = state[text[at]]
            if state.rule >= 0:
                rule, stop = state.rule, at + 1
                visited.clear()
            if state.dead:
                break
        if hopeless is not None:
            hopeless.update(visited)
        return rule, stop

    def ends(self, text: str, begin: int, end: int) -> list[int]:
        """Every position up to ``end`` where a match from ``begin`` may stop, ascending."""
        state = self.start
        positions = [begin] if state.rule >= 0 else []
        for at in range(begin, end):
            state = state[text[at]]
            if state.rule >= 0:
                positions.append(at + 1)
            if state.dead:
                break
        return positions

    def step(self, nodes: frozenset[int], character: str) -> State:
        """The state after ``character``; called once per state and character."""
        mask = self._members.get(character)
        if mask is None:
            mask = sum(1 << i for i, accepts in enumerate(self.graph.sets) if accepts(character))
            self._members[character] = mask
        reached: set[int] = set()
        for node in nodes:
            move = self.graph.move[node]
            if move is not None and mask >> move[0] & 1:
                reached |= self._closure(move[1])
        return self._state(frozenset(reached))

    def _state(self, nodes: frozenset[int]) -> State:
        if nodes not in self._states:
            self._states[nodes] = State(self, nodes)
        return self._states[nodes]

    def _closure(self, node: int) -> frozenset[int]:
        """Nodes reachable by empty moves that end a rule or consume a character."""
        known = self._closures.get(node)
        if known is None:
            graph, stack, seen = self.graph, [node], {node}
            while stack:
                for following in graph.empty[stack.pop()]:
                    if following not in seen:
                        seen.add(following)
                        stack.append(following)
            known = frozenset(n for n in seen if graph.move[n] is not None or graph.ends[n] >= 0)
            self._closures[node] = known
        return known
