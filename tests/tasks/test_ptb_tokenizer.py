"""The PTB tokenizer against the Java program: golden captions, own strings, and live where Java is installed."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import time
from functools import lru_cache
from importlib.util import find_spec
from unittest import mock

import pytest
from goldens import metrics_golden
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics import ptb_tokenizer
from beit3_bench.tasks.metrics.java_programs import program_folder
from beit3_bench.tasks.metrics.lazy_dfa import Automaton, Expressions
from beit3_bench.tasks.metrics.ptb_tokenizer import PUNCTUATION, tokenize, tokenize_lines

# What the Java program prints for a file of this one line.
LINES = [
    ("A man's dog isn't on the boats' deck.", "a man 's dog is n't on the boats ' deck ."),
    ('"Stop!" says the sign, twice.', "`` stop ! '' says the sign , twice ."),
    ("She'll say 'hello' to Mr. Smith at 5 p.m.", "she 'll say ` hello ' to mr. smith at 5 p.m."),
    ("cannot gonna GOTTA lemme gimme wanna 'tis 'twas", "can not gon na got ta lem me gim me wan na 't is 't was"),
    ("a 3-year-old, left-handed boy (in red)", "a 3-year-old , left-handed boy -lrb- in red -rrb-"),
    ("the U.S. The end", "the u.s. . the end"),
    ("I. The end", "i . the end"),
    ("Main St. and 2nd Ave. in Washington D.C.", "main st. and 2nd ave. in washington d.c."),
    ("Acme Corp. The end", "acme corp. . the end"),
    ("Acme Corp. the end", "acme corp. the end"),
    ("see fig. 3 and No. 7", "see fig. 3 and no. 7"),
    ("2 1/2 cups, \xbd pizza, 1\u20442", "2\xa01/2 cups , 1/2 pizza , 1\u20442"),
    ("12/25/2014 at 10:30 for $1,000.50", "12/25/2014 at 10:30 for $ 1,000.50"),
    ("call (555) 123-4567 or 555-123-4567", "call -lrb-555-rrb-\xa0123-4567 or 555-123-4567"),
    (
        "write to a.b@c.org or see www.cats.com, http://x.com/y?z=1",
        "write to a.b@c.org or see www.cats.com , http://x.com/y?z=1",
    ),
    ("photo.jpg, #sunset by @someone", "photo.jpg , #sunset by @someone"),
    ("AT&T and AT&amp;T &lt;3", "at&t and at&t < 3"),
    ('<b>bold</b> <a href="x y">', '<b> bold </b> <a\xa0href="x\xa0y">'),
    (":) ;-) ^_^ (-_-) <3", ":-rrb- ;--rrb- ^_^ -lrb--_--rrb- < 3"),
    ("... . . . -- --- - \u2014 \u2026", "... ... -- -- - -- ..."),
    ("\u201ccurly\u201d \u2018quotes\u2019 it\u2019s", "`` curly '' ` quotes ' it 's"),
    ("\xa35 \u20ac10 50\xa2 20\xb0", "# 5 $ 10 50 cents 20 \xb0"),
    ("na\xefve caf\xe9 \u72ac \u2603 \U0001f642 x", "na\xefve caf\xe9 \u72ac \u2603 x"),
    ("soft\xadhyphen", "softhyphen"),
    ("either/or and/or w/o", "either/or and/or w/o"),
    ("C++ C# rock 'n' roll o'clock", "c++ c# rock 'n' roll o'clock"),
    ("[sic] {x}", "-lsb- sic -rsb- -lcb- x -rcb-"),
    ("y'all c'mon ma'am", "y' all c'mon ma'am"),
    ("e.g. this, i.e. that, etc.", "e.g. this , i.e. that , etc. ."),
    ("A 747-400 @ gate C-3", "a 747-400 @ gate c-3"),
    ("tab\tand  two   spaces", "tab and two spaces"),
    ("??? !!! ?!", "??? !!! ?!"),
]

_FRAGMENTS = """
U.S. The I. Mr. St. etc. Inc. No. 3 12 2 1/2 10-12-2014 (555) 555-1234 $5 #tag @bob a@b.com http://x.com/y
www.ab.co ab.com file.txt 'tis cannot gonna n't isn't he's I'll y'all o'clock O'Brien 'n' '90s " ' `` &amp; &lt;
AT&T pro- -- ---- - . ... . . ? ! , ; : :) ;-P ^_^ | / * # _ = + % < > [ ] ( ) and/or co-worker a.k.a. Ph.D.
\u00bd \u00a35 \u20ac10 caf\u00e9 \u201cso\u201d \u2019s \u00ad \u72ac \u2026 \u2014 \U0001f642 dog Cat BIRD
"""
FRAGMENTS = _FRAGMENTS.split()

# Golden strings that are tokenised differently on purpose.
DIFFERENT = {
    246: "U+2029 inside: Java prints two lines, the wrapper keeps the first and loses the rest of the caption",
    248: "vertical tab inside: the same",
    262: "form feed inside: the same",
}


@lru_cache(maxsize=1)
def golden() -> tuple[dict, list[str], list[str]]:
    folder = metrics_golden("ptb_tokenizer")

    def column(name: str, key: str) -> list[str]:
        return [json.loads(line)[key] for line in (folder / name).read_text().splitlines()]

    return (
        json.loads((folder / "expected.json").read_text()),
        column("captions.jsonl", "caption"),
        column("nasty.jsonl", "text"),
    )


def joined(lines: list[list[str]]) -> list[str]:
    return [" ".join(tokens) for tokens in lines]


def test_every_golden_caption_is_tokenised_as_by_java():
    expected, captions, _ = golden()
    assert joined(tokenize(captions)) == expected["captions"]["pycocoevalcap_batch"]
    assert joined(tokenize_lines(captions)) == expected["captions"]["java_line_batch"]


def test_golden_captions_alone_differ_exactly_where_java_does():
    expected, captions, _ = golden()
    wanted = list(expected["captions"]["pycocoevalcap_batch"])
    wanted_lines = list(expected["captions"]["java_line_batch"])
    for index, result in expected["captions"]["isolated_differs"].items():
        wanted[int(index)], wanted_lines[int(index)] = result["pycocoevalcap"], result["java_line"]
    assert joined(tokenize(captions, isolated=True)) == wanted
    assert joined(tokenize_lines(captions, isolated=True)) == wanted_lines


def test_nasty_strings_differ_only_where_listed():
    expected, _, nasty = golden()
    got, got_lines = joined(tokenize(nasty, isolated=True)), joined(tokenize_lines(nasty, isolated=True))
    different = {i for i in range(len(nasty)) if got[i] != expected["nasty"]["pycocoevalcap"][i]}
    assert different == set(DIFFERENT)
    printed = [text.rstrip("\n") for text in expected["nasty"]["java_output"]]
    lines_different = {i for i in range(len(nasty)) if got_lines[i] != printed[i]}
    assert lines_different == set(DIFFERENT)
    for index in DIFFERENT:  # nothing is lost, only the line end is gone
        assert got_lines[index] == expected["nasty"]["java_output"][index].rstrip("\n").replace("\n", " ")


def test_nasty_strings_in_one_file_are_all_equal():
    expected, _, nasty = golden()
    batch = [nasty[i] for i in expected["nasty_batch"]["ids"]]
    assert joined(tokenize(batch)) == expected["nasty_batch"]["pycocoevalcap"]
    assert joined(tokenize_lines(batch)) == expected["nasty_batch"]["java_line"]


@pytest.mark.parametrize(("text", "line"), LINES)
def test_line_is_what_java_prints(text, line):
    assert " ".join(tokenize_lines([text])[0]) == line
    assert tokenize([text])[0] == [token for token in line.split(" ") if token not in PUNCTUATION]


@pytest.mark.parametrize(
    ("following", "ends"),
    [("A dog", ["corp.", "."]), ("a dog", ["at", "corp."]), ("", ["corp.", "."]), (None, ["corp.", "."])],
)
def test_next_line_decides_whether_an_abbreviation_ends_the_sentence(following, ends):
    texts = ["meet at Corp."] if following is None else ["meet at Corp.", following, "x"]
    assert tokenize_lines(texts)[0][-2:] == ends
    assert tokenize_lines(texts, isolated=True)[0][-2:] == ["corp.", "."]


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\u2028", "\u2029"])
def test_line_separator_in_a_caption_is_white_space_and_shifts_nothing(separator):
    captions = ["a cat", f"two{separator}dogs", "a bird", ""]
    assert tokenize(captions) == [["a", "cat"], ["two", "dogs"], ["a", "bird"], []]
    assert tokenize(captions, isolated=True) == tokenize(captions)


@pytest.mark.parametrize(
    ("opening", "closing"),
    [('a tag <a b="one', 'two" > here'), ("a tag <a b='one", "two' > here"), ("a face x.[^x= one", "two <>] here")],
)
def test_token_never_reaches_into_the_next_caption(opening, closing):
    whole = tokenize([f"{opening} {closing}"])[0]
    assert any("one" in token and "two" in token for token in whole)  # one token, where it is one caption
    first, second, third = tokenize([opening, closing, "three"])
    assert first == tokenize([opening])[0]
    assert first[-1] == "one"
    assert second == tokenize([closing])[0]
    assert third == ["three"]


def test_result_does_not_depend_on_the_order_when_isolated():
    captions = [text for text, _ in LINES]
    shuffled = random.Random(3).sample(range(len(captions)), len(captions))
    assert tokenize([captions[i] for i in shuffled], isolated=True) == [
        tokenize(captions, isolated=True)[i] for i in shuffled
    ]


@pytest.mark.parametrize("wrong", [None, 3, b"a cat", ["a cat"]])
def test_caption_that_is_no_text_is_refused_with_its_number(wrong):
    with pytest.raises(BenchError, match="caption 1"):
        tokenize(["a cat", wrong])


def test_no_captions_give_no_lines():
    assert tokenize([]) == []
    assert tokenize(["", " ", "\u00a0"]) == [[], [], []]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(), max_size=5))
def test_any_text_gives_one_line_of_printable_tokens_each(texts):
    lines = tokenize(texts)
    assert len(lines) == len(texts)
    for line in lines:
        assert all(token and " " not in token and "\n" not in token and token not in PUNCTUATION for token in line)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*FRAGMENTS, "\u2009", "\u00a0", "K\u212a", "cannot"]), min_size=1, max_size=12))
def test_short_cut_for_plain_words_changes_nothing(words):
    texts = [" ".join(words), "  ".join(words), "x " + "".join(words)]
    quick = tokenize_lines(texts)
    with mock.patch.object(ptb_tokenizer, "_PLAIN_WORDS", re.compile("(?!)")):
        assert tokenize_lines(texts) == quick


def test_twenty_five_thousand_captions_take_seconds():
    captions = [f"A man number {i} riding a wave on top of a surfboard, near St. John's." for i in range(25_000)]
    start = time.process_time()
    lines = tokenize(captions)
    assert time.process_time() - start < 8  # about 0.4 s on a free core
    assert len(lines) == 25_000
    assert lines[7][:5] == ["a", "man", "number", "7", "riding"]


@pytest.mark.parametrize("part", ["&", "a'", "\U0001f600", "1;2", "<!--", "cannot ", "a man rides ", "a", "<a href='"])
def test_the_time_of_a_long_caption_grows_with_its_length_alone(part):
    start = time.process_time()
    tokens = tokenize_lines([part * (40_000 // len(part))])
    assert time.process_time() - start < 8  # at most 1.2 s on a free core; the square of the length took minutes
    assert len(tokens) == 1


def test_captions_that_begin_a_tag_and_never_end_it_do_not_read_each_other_again_and_again():
    start = time.process_time()
    lines = tokenize_lines(["a dog <a href='x"] * 5_000)
    assert time.process_time() - start < 8
    assert lines[0] == lines[4_999]


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
@pytest.mark.skipif(find_spec("pycocoevalcap") is None, reason="needs pycocoevalcap")
def test_random_lines_are_tokenised_as_by_the_java_program(tmp_path):
    chance = random.Random(20240601)
    captions = [
        "".join(chance.choice(FRAGMENTS) + chance.choice(["", " ", " "]) for _ in range(chance.randrange(1, 12)))
        for _ in range(3000)
    ]
    name = "stanford-corenlp-3.4.1.jar"
    jar = program_folder("tokenizer", name) / name
    source = tmp_path / "captions.txt"
    source.write_text("\n".join(captions), encoding="utf-8")
    command = ["java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-cp", str(jar)]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", str(source)]
    printed = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode("utf-8").split("\n")
    got = joined(tokenize_lines(captions))
    assert [x for x in zip(captions, got, printed, strict=False) if x[1] != x[2]] == []
    assert len(printed) >= len(captions)


# ---- the automaton ----------------------------------------------------------------------------------------------------


def automaton(*rules: str) -> Automaton:
    expressions = Expressions({"vowel": lambda c: c in "aeiou"}, {"pair": "ab|ba"})
    return Automaton([expressions.parse(rule) for rule in rules])


@pytest.mark.parametrize(
    ("rules", "text", "expected"),
    [
        (["a|ab", "abc?"], "abd", (0, 2)),  # a tie goes to the earlier rule
        (["a|ab", "abc?"], "abc", (1, 3)),  # the longest match wins, whatever the order of alternatives
        (["(ab){2,3}"], "abababab", (0, 6)),
        (["(ab){2}"], "ab", (-1, 0)),
        (["x{pair}+y"], "xabbay", (0, 6)),
        (["{vowel}*[^a-c]"], "eiz", (0, 3)),
        (["k"], "\u212a", (0, 1)),
        (["[k]"], "K", (-1, 0)),
        (["a\\+|\\]"], "]", (0, 1)),
        (["[\\]\\-x]+"], "-]xq", (0, 3)),
    ],
)
def test_automaton_takes_the_longest_match_of_the_earliest_rule(rules, text, expected):
    assert automaton(*rules).longest(text, 0, len(text)) == expected


@settings(max_examples=50, deadline=None)
@given(st.text("ab<>", max_size=400), st.text("ab<>", min_size=1, max_size=4), st.integers(0, 100))
def test_what_is_known_to_be_hopeless_changes_no_match(text, part, times):
    text += part * times
    scanner = automaton("a+b|<[ab<]*>", "b(ab)*b", "<(<a)*b")
    hopeless = set()
    for begin in range(len(text)):
        alone = scanner.longest(text, begin, len(text))
        assert scanner.longest(text, begin, len(text), hopeless) == alone


def test_automaton_lists_every_end_of_a_match():
    assert automaton("a(ba)*").ends("ababa", 0, 5) == [1, 3, 5]


@pytest.mark.parametrize("broken", ["(a", "a)", "{nothing}", "a{", "{,2}"])
def test_broken_expression_is_refused(broken):
    with pytest.raises(ValueError):
        automaton(broken)
