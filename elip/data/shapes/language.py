"""Captions, questions, statements and hypotheses about a scene, and their vocabulary.

A thing is "left of" another if its box ends before the other's box begins; "right of", "above" and
"below" are defined likewise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import permutations, product
from typing import TypeVar

import numpy as np

from elip.data.shapes.scene import COLORS, SHAPES, SIZES, Scene, Thing

ANSWERS = (*COLORS, *SHAPES, *SIZES, "0", "1", "2", "3", "4", "yes", "no")
"""The answers to all questions, by number."""

_PLAIN = (
    "a above and are below both color has have how image images in is left many of one only right "
    "shape size the there thing things what . ?"
)
WORDS = (*_PLAIN.split(), *COLORS, *SHAPES, *SIZES)
"""The words and marks of all texts."""

CONTRADICTION, NEUTRAL, ENTAILMENT = 0, 1, 2
"""SNLI-VE's class numbers."""

_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_LOOKS = [f"a {color} {shape}" for color, shape in product(COLORS, SHAPES)]

Item = TypeVar("Item")
Generator = np.random.Generator


def captions(scene: Scene, rng: Generator) -> list[str]:
    """Return five different true captions.

    One names a thing, two give the relation of two things, and two name two things. Each names the
    size, color and shape of its things, so nearly every word depends on the image.
    """
    pairs = _shuffled(permutations(scene.things, 2), rng)
    relations = [f"{_terse(a)} {_relation(a, b, rng)} {_terse(b)}" for a, b in pairs[:2]]
    joined = [f"{_terse(a)} and {_terse(b)}" for a, b in pairs[-2:]]
    return [_terse(_pick(scene.things, rng)), *relations, *joined]


def questions(scene: Scene, rng: Generator) -> list[tuple[str, str]]:
    """Return one to seven questions with their answers.

    They are about the color or shape of a unique thing (at most three), its size, the number of
    things (all, or of one color), and whether a certain thing is there. The kinds are balanced so
    that no answer is much more frequent than the others.
    """
    colors = Counter(thing.color for thing in scene.things)
    shapes = Counter(thing.shape for thing in scene.things)
    looks, sizes = [], []
    for thing in scene.things:
        if shapes[thing.shape] == 1:
            looks.append((f"what color is the {thing.shape} ?", thing.color))
            sizes.append((f"what size is the {thing.shape} ?", thing.size))
        if colors[thing.color] == 1:
            looks.append((f"what shape is the {thing.color} thing ?", thing.shape))
    asked = _shuffled(looks, rng)[:3]
    if rng.random() < 0.6:
        asked += _shuffled(sizes, rng)[:1]
    if rng.random() < 0.5:
        asked.append(("how many things are there ?", str(len(scene.things))))
    else:
        color = _pick(list(COLORS), rng)
        asked.append((f"how many {color} things are there ?", str(colors[color])))
    if rng.random() < 0.3:
        asked.append((f"is there {_pick(_looks(scene), rng)} ?", "yes"))
    if rng.random() < 0.3:
        asked.append((f"is there {_pick(_absent(scene), rng)} ?", "no"))
    return asked


def statements(scene: Scene, rng: Generator) -> list[tuple[str, bool]]:
    """Return four statements, half of them true: two name a thing, two a relation.

    A false relation is the opposite of a true one.
    """
    pairs = list(permutations(scene.things, 2))
    (a, b), (c, d) = _pick(pairs, rng), _pick(pairs, rng)
    return [
        (f"there is {_pick(_looks(scene), rng)} .", True),
        (f"there is {_pick(_absent(scene), rng)} .", False),
        (f"{_look(a)} is {_relation(a, b, rng)} {_look(b)} .", True),
        (f"{_look(c)} is {_OPPOSITE[_relation(c, d, rng)]} {_look(d)} .", False),
    ]


def pair_statements(left: Scene, right: Scene, rng: Generator) -> list[tuple[str, bool]]:
    """Return two or four statements about two images, half of them true.

    Two say that a thing is in the left or in the right image; half of the false ones name a thing
    in the other image. Two say that a color is in both images, or in only one.
    """
    said = []
    for truth in (True, False):
        side, here, there = _pick([("left", left, right), ("right", right, left)], rng)
        if truth:
            choices = _looks(here)
        else:
            choices = _absent(here)
            if rng.random() < 0.5:
                choices = [look for look in _looks(there) if look in choices] or choices
        said.append((f"there is {_pick(choices, rng)} in the {side} image .", truth))
    colors, others = ({thing.color for thing in scene.things} for scene in (left, right))
    kinds = [
        ("both images have {} things .", colors & others),
        ("only one image has {} things .", colors ^ others),
    ]
    sentence, fits = _pick(kinds, rng)
    true = [color for color in COLORS if color in fits]
    false = [color for color in COLORS if color not in fits]
    if true and false:
        said.append((sentence.format(_pick(true, rng)), True))
        said.append((sentence.format(_pick(false, rng)), False))
    return said


def hypotheses(scene: Scene, rng: Generator) -> list[tuple[str, int]]:
    """Return three hypotheses that a thing is there, with their classes.

    One names a visible thing (entailment). Two name things that are not visible: if there is a card
    they may be under it (neutral), otherwise they contradict the image. So the sentence alone does
    not reveal the class.
    """
    unseen = NEUTRAL if scene.card else CONTRADICTION
    missing = _shuffled(_absent(scene), rng)[:2]
    looks = [(_pick(_looks(scene), rng), ENTAILMENT), *((look, unseen) for look in missing)]
    return [(f"there is {look} .", label) for look, label in looks]


def _terse(thing: Thing) -> str:
    return f"{thing.size} {thing.color} {thing.shape}"


def _look(thing: Thing) -> str:
    return f"a {thing.color} {thing.shape}"


def _looks(scene: Scene) -> list[str]:
    return [_look(thing) for thing in scene.things]


def _absent(scene: Scene) -> list[str]:
    return [look for look in _LOOKS if look not in _looks(scene)]


def _relation(a: Thing, b: Thing, rng: Generator) -> str:
    """Return one of the true relations of ``a`` to ``b``; there is always one."""
    holds = {
        "left of": a.box[2] <= b.box[0],
        "right of": b.box[2] <= a.box[0],
        "above": a.box[3] <= b.box[1],
        "below": b.box[3] <= a.box[1],
    }
    return _pick([relation for relation, true in holds.items() if true], rng)


def _pick(choices: Sequence[Item], rng: Generator) -> Item:
    return choices[int(rng.integers(len(choices)))]


def _shuffled(items: Iterable[Item], rng: Generator) -> list[Item]:
    choices = list(items)
    return [choices[int(i)] for i in rng.permutation(len(choices))]
