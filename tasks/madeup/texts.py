"""Made-up words with frequencies as in natural text, and sentences of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WORDS = 9_000
TOPIC = 12
"""Words that the sentences about one thing share."""
_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in ("a", "e", "i", "o", "u")]


class Texts:
    """Sentences of words whose frequency falls as one over their rank (Zipf)."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)
        self.words = np.array([_spelled(rank) for rank in range(WORDS)], dtype=object)
        self.frequency = 1.0 / np.arange(1, WORDS + 1)
        self.frequency /= self.frequency.sum()

    def sentences(self, topics: Sequence[int] | np.ndarray, shortest: int, longest: int) -> list[list[str]]:
        """A sentence per topic, as words; half of them are the topic's own.

        topics: int (n,), numbers of what the sentences are about.
        """
        topic = np.asarray(topics, dtype=np.int64)
        own = self.random.choice(WORDS, (int(topic.max(initial=0)) + 1, TOPIC), p=self.frequency)
        lengths = self.random.integers(shortest, longest + 1, len(topic))
        of_word = np.repeat(topic, lengths)
        chosen = self.random.choice(WORDS, len(of_word), p=self.frequency)
        shared = self.random.random(len(of_word)) < 0.5
        chosen[shared] = own[of_word[shared], self.random.integers(0, TOPIC, int(shared.sum()))]
        words, ends = self.words[chosen].tolist(), np.cumsum(lengths).tolist()
        return [words[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]


def _spelled(rank: int) -> str:
    """A word of its own for each rank, frequent ones short."""
    syllables = []
    rank += 1
    while rank:
        rank, syllable = divmod(rank, len(_SYLLABLES))
        syllables.append(_SYLLABLES[syllable])
    return "".join(syllables)
