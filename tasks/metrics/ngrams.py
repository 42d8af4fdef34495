"""n-gram counts of candidate captions and references as integer arrays, shared by BLEU and CIDEr.

One sort per n-gram length does all the counting: rows are sorted by n-gram, then by sentence, and sentences are
numbered image by image with the candidate first. The rows of one n-gram in one image are thus neighbours, led by the
candidate's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np


@dataclass(frozen=True)
class Order:
    """How often the n-grams of one length occur: one row per distinct (n-gram, sentence), sorted; arrays of length m.

    sentence: int64.  count: float64.  candidate: int64, the row of the same n-gram in the candidate of the same image
    (itself, for a row of a candidate), or -1.  gram: int64 number of the n-gram, ascending.  documents: float64
    (n-grams,), of how many images some reference holds it.
    """

    sentence: np.ndarray
    count: np.ndarray
    candidate: np.ndarray
    gram: np.ndarray
    documents: np.ndarray


@dataclass(frozen=True)
class NGrams:
    """Sentences of n images: for each image its candidate, then its references.

    lengths: int64 (s,) words.  image: int64 (s,), ascending.  first: int64 (n,) the sentence that is the candidate.
    orders: one `Order` per n-gram length from 1.
    """

    lengths: np.ndarray
    image: np.ndarray
    first: np.ndarray
    orders: list[Order]

    @property
    def is_reference(self) -> np.ndarray:
        """bool (s,)."""
        flags = np.ones(len(self.lengths), bool)
        flags[self.first] = False
        return flags


def count_ngrams(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]], longest: int = 4
) -> NGrams:
    """Count n-grams up to ``longest`` words.

    Args:
        candidates: n tokenised captions.  references: for each, at least one tokenised reference.

    A token that holds white space of its own (U+00A0 in fractions and phone numbers) counts as several words, as in the
    reference implementation, which splits the joined caption again.
    """
    sentences: list[Sequence[str]] = []
    for candidate, group in zip(candidates, references, strict=True):
        sentences.append(candidate)
        sentences.extend(group)
    words = list(chain.from_iterable(sentences))
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    if any(word.split() != [word] for word in vocabulary):
        sentences = [" ".join(tokens).split() for tokens in sentences]
        words = list(chain.from_iterable(sentences))
        vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}

    sizes = np.fromiter((1 + len(group) for group in references), dtype=np.int64, count=len(candidates))
    lengths = np.fromiter(map(len, sentences), dtype=np.int64, count=len(sentences))
    tokens = np.fromiter(map(vocabulary.__getitem__, words), dtype=np.int64, count=len(words))
    image = np.repeat(np.arange(len(candidates)), sizes)
    first = np.cumsum(sizes) - sizes
    return NGrams(lengths, image, first, list(_orders(tokens, max(len(vocabulary), 1), lengths, image, first, longest)))


def _orders(tokens: np.ndarray, n_words: int, lengths: np.ndarray, image: np.ndarray, first: np.ndarray, longest: int):
    """One `Order` per length; an n-gram is coded by its first n-1 words and its last."""
    sentence = np.repeat(np.arange(len(lengths)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(tokens))  # words from here to the end of the sentence
    bits = max(len(lengths) - 1, 1).bit_length()
    is_candidate = np.zeros(len(lengths), bool)
    is_candidate[first] = True

    start, code, n_codes = np.arange(len(tokens)), tokens, n_words
    for length in range(1, longest + 1):
        if length > 1:
            inside = left[start] >= length
            start = start[inside]
            code = code[inside] * n_words + tokens[start + length - 1]
            n_codes *= n_words
        if n_codes.bit_length() + n_words.bit_length() + bits > 62:  # neither this key nor the next code may overflow
            distinct, code = np.unique(code, return_inverse=True)
            n_codes = max(len(distinct), 1)
        yield _count(code << bits | sentence[start], bits, image, is_candidate)


def _count(keys: np.ndarray, bits: int, image: np.ndarray, is_candidate: np.ndarray) -> Order:
    keys.sort()
    ends = np.flatnonzero(np.append(keys[1:] != keys[:-1], True)) if len(keys) else np.zeros(0, np.int64)
    count = np.diff(ends, prepend=-1).astype(np.float64)
    keys = keys[ends]
    sentence = keys & ((1 << bits) - 1)
    row_image = image[sentence]
    new_gram = np.diff(keys >> bits, prepend=-1) != 0
    gram = np.cumsum(new_gram) - 1
    starts = new_gram | (np.diff(row_image, prepend=-1) != 0)  # of the rows of one n-gram in one image
    leader = np.flatnonzero(starts)
    group = np.cumsum(starts) - 1
    leads = is_candidate[sentence[leader]]
    candidate = np.where(leads, leader, -1)[group]
    last = np.append(leader[1:], len(keys)) - 1 if len(leader) else leader
    referenced = ~is_candidate[
        sentence[last]
    ]  # the candidate is one row, and the first: a group of references ends with one
    documents = np.bincount(gram[last[referenced]], minlength=int(gram[-1]) + 1 if len(gram) else 0)
    return Order(sentence, count, candidate, gram, documents.astype(np.float64))
