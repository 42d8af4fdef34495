"""Answers as a tree: against scoring one by one, and the constructed cases that tell the two families apart."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_bench.backbones.fusion.answers import AnswerTree, best_answers, rank_answers
from beit3_bench.backbones.fusion.bert import BertDecoder
from beit3_bench.backbones.fusion.config import TextConfig
from beit3_bench.backbones.strict_loading import initialise
from beit3_bench.backbones.word_cache import Cache

CONFIG = TextConfig(width=16, depth=2, heads=2, ffn=24, vocab_size=12, positions=8, first_cross=0, context_width=16)
START, END = 10, 11


def decoder(seed=0, scale=8.0):
    torch.manual_seed(seed)
    net = BertDecoder(CONFIG)
    initialise(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(scale if parameter.ndim > 1 else 1.0)
    return net.eval()


def context(net, questions=3):
    torch.manual_seed(1)
    padding = torch.zeros(questions, 5, dtype=torch.bool)
    padding[-1, 3:] = True
    return net.bert.keys_of(torch.randn(questions, 5, 16), padding=padding)


def one_by_one(net, looked, answer, smoothing):
    """Loss of an answer as the official code makes it: a sequence of its own, cross entropy of every token."""
    ids = torch.tensor([[START, *answer[:-1]]]).repeat(looked.groups, 1)
    log_p = F.log_softmax(net.logits(net.states(ids, looked)), dim=-1)
    loss = F.cross_entropy(
        log_p.flatten(0, 1),
        torch.tensor(answer).repeat(looked.groups),
        reduction="none",
        label_smoothing=smoothing,
    )
    return -loss.view(looked.groups, -1).sum(dim=1)


answers = st.lists(
    st.lists(st.integers(0, 9), min_size=1, max_size=5).map(lambda ids: [*ids, END]), min_size=1, max_size=9
)


@settings(max_examples=25, deadline=None)
@given(answers, st.sampled_from([0.0, 0.1]))
def test_a_tree_scores_as_one_sequence_each(listed, smoothing):
    net = decoder()
    looked = context(net)
    with torch.inference_mode():
        tree = AnswerTree(listed, START)
        every = torch.arange(len(listed)).repeat(looked.groups, 1)
        scores = tree.log_likelihoods(net, looked, every, smoothing)
        for place, answer in enumerate(listed):
            torch.testing.assert_close(
                scores[:, place], one_by_one(net, looked, answer, smoothing), rtol=1e-4, atol=1e-4
            )


def test_beginnings_are_decoded_once():
    tree = AnswerTree([[1, END], [1, 2, END], [1, 2, 3, END], [4, END]], START)
    assert tree.tokens.tolist() == [START, 1, 2, 3, 4]
    assert tree.depths.tolist() == [0, 1, 2, 3, 1]


@torch.inference_mode()
def test_the_first_token_once_or_twice_gives_other_answers():
    """Two answers: one begins likely and ends unlikely. Counted once the other wins, counted twice it does not."""
    net = decoder()
    looked = context(net, 1)
    for seed in range(200):
        net = decoder(seed)
        looked = context(net, 1)
        tree = AnswerTree([[a, b, END] for a in range(5) for b in range(5)], START)
        once, twice = (rank_answers(net, tree, looked, 25, 0.0, first) for first in (False, True))
        if best_answers(once) != best_answers(twice):
            first = tree.candidates(net.step(torch.tensor([[START]]), looked, Cache()), 25)
            expected = once.clone()
            expected[0, first[0][0]] += first[1][0]
            torch.testing.assert_close(expected, twice)
            return
    pytest.fail("no case found")


@torch.inference_mode()
def test_of_equal_first_tokens_the_earlier_answers_are_candidates():
    net = decoder()
    looked = context(net, 1)
    tree = AnswerTree([[7, 1, END], [7, 2, END], [], [7, 3, END], [7, 4, END]], START)
    scores = rank_answers(net, tree, looked, 3, 0.0, False)[0]
    assert [math.isfinite(score) for score in scores.tolist()] == [True, True, False, True, False]


def test_of_equal_scores_the_earlier_answer_is_given():
    scores = torch.tensor([[float("-inf"), -2.0, -1.0, -1.0], [-3.0, -3.0, -3.0, float("-inf")]])
    assert best_answers(scores) == [2, 0]


@torch.inference_mode()
def test_more_candidates_than_answers_are_all_of_them():
    net = decoder()
    tree = AnswerTree([[1, END], [2, END]], START)
    assert rank_answers(net, tree, context(net), 128, 0.1, False).isfinite().all()


@torch.inference_mode()
def test_an_answer_does_not_depend_on_the_questions_beside_it():
    net = decoder()
    looked = context(net)
    tree = AnswerTree([[a, b, END] for a in range(3) for b in range(3)] + [[5, END]], START)
    together = rank_answers(net, tree, looked, 4, 0.1, False)
    for n in range(looked.groups):
        alone = rank_answers(net, tree, looked.select(torch.tensor([n])), 4, 0.1, False)
        torch.testing.assert_close(alone[0], together[n], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_trees_of_several_questions_at_once_as_on_a_card():
    net = decoder()
    looked = context(net)
    tree = AnswerTree([[a, b, END] for a in range(3) for b in range(3)] + [[5, END], [6, 1, 2, 3, END]], START)
    chosen = torch.tensor([[0, 1, 2], [9, 10, 4], [3, 9, 8]])  # trees of several sizes
    together = tree._of_group(net, looked, chosen, 0.1)
    torch.testing.assert_close(together, tree.log_likelihoods(net, looked, chosen, 0.1), rtol=0, atol=1e-5)
