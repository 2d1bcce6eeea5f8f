"""Masked language modelling: which tokens are hidden and by what they are replaced.

Of the words (or tokens), 15% are chosen; a chosen one becomes [MASK] with probability 0.8, a
random token with 0.1, and stays with 0.1.

Source: Devlin et al., BERT, 2018, arXiv:1810.04805.
Differs: METER's whole-word masking counts padding among the candidates, so that it hides 14 to 18%
    of the tokens; here every word is chosen with probability 0.15.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
"""Label of a place where nothing is to be predicted."""


@dataclass(frozen=True)
class Masking:
    """The rule of masking for one vocabulary.

    Attributes:
        mask_id: Id of the mask token.
        vocab_size: Number of ids that a random token is drawn from.
        whole_words: Whether all tokens of a word are chosen together.
        share: Probability that a word (or token) is chosen, in [0, 1].
    """

    mask_id: int
    vocab_size: int
    whole_words: bool
    share: float = 0.15

    def __call__(
        self, ids: NDArray[np.int64], words: NDArray[np.int64], rng: random.Random
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Mask one text.

        Args:
            ids: [L] token ids.
            words: [L] number of the word of each token, -1 where nothing may be masked.
            rng: Source of all choices.

        Returns:
            [L] ids with masks, and [L] labels: the true id where one was chosen, else `IGNORED`.
        """
        masked, labels = ids.copy(), np.full_like(ids, IGNORED)
        chosen: dict[int, bool] = {}
        for place in np.flatnonzero(words >= 0).tolist():
            unit = int(words[place]) if self.whole_words else place
            if unit not in chosen:
                chosen[unit] = rng.random() < self.share
            if not chosen[unit]:
                continue
            labels[place] = ids[place]
            fate = rng.random()
            if fate < 0.8:
                masked[place] = self.mask_id
            elif fate < 0.9:
                masked[place] = rng.randrange(self.vocab_size)
        return masked, labels
