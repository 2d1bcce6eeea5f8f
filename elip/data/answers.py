"""VQA's answers: normalisation, vocabulary and soft scores.

Source: Antol et al., 2015, arXiv:1505.00468 (the evaluation's rules), with the thresholds of ViLT
and METER.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

MIN_COUNT = 9
"""The vocabulary holds answers that are the most common one of at least this many questions."""

_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)
_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {"none": "0"} | {word: str(i) for i, word in enumerate(_NUMBERS.split())}
_ARTICLES = {"a", "an", "the"}
_MARKS = r""";/[]"{}()=+\_-><@`,?!"""
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've "
    "hasn't haven't he'd he'd've he's how'd how'll how's I'd've I'm I've isn't it'd it'd've "
    "it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't "
    "shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's "
    "someone'd someone'd've someone'll someone's something'd something'd've something'll that's "
    "there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't "
    "we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd "
    "who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've "
    "y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)


def normalise(answer: str) -> str:
    """Normalise an answer as the VQA evaluation does.

    Lower case, no punctuation or articles, digits for number words, restored apostrophes.
    """
    text = answer
    # In answers with a thousands comma, marks vanish instead of becoming spaces.
    thousands = re.search(r"\d,\d", answer) is not None
    for mark in _MARKS:
        touches_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if thousands or touches_space else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def vocabulary(common: Iterable[str]) -> list[str]:
    """Return the vocabulary, from the most common answer of each question (training first)."""
    counts = Counter(normalise(answer) for answer in common)
    return [answer for answer, count in counts.items() if count >= MIN_COUNT]


class Scored(NamedTuple):
    """An answer, its number in the vocabulary, and its soft score in [0, 1]."""

    answer: str
    number: int
    score: float


def scored(answers: Sequence[str], numbers: Mapping[str, int]) -> list[Scored]:
    """Return a question's human answers that are in the vocabulary, by first appearance.

    The answers are not normalised: the reference normalises only to build the vocabulary.

    Args:
        answers: The answers of (ten) people.
        numbers: The number of each answer in the vocabulary.
    """
    return [
        Scored(answer, numbers[answer], _SCORES[min(count, 4)])
        for answer, count in Counter(answers).items()
        if answer in numbers
    ]


def _restored() -> dict[str, str]:
    """Map contractions with missing apostrophes to the correct form."""
    table = {}
    for full in _CONTRACTIONS.split():
        places = [place for place, letter in enumerate(full) if letter == "'"]
        for count in range(1, len(places) + 1):
            for missing in combinations(places, count):
                written = "".join(c for i, c in enumerate(full) if i not in missing)
                table[written] = full
    return table


_RESTORED = _restored()
