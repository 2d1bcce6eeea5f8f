"""Visual question answering with soft answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from elip.data.batch import SampleSpec
from elip.model.meter import Meter
from elip.tasks.classification import Classification


class VQA(Classification):
    """Answer a question about an image with one of A known answers (VQAv2: 3129).

    Loss: binary cross entropy of all answers with their soft scores, averaged, times A. Score: the
    mean soft score of the best answer, ``min(votes / 3, 1)`` with VQAv2's rounding.

    Source: Goyal et al., 2017, arXiv:1612.00837; Dou et al., 2022, arXiv:2111.02387, section 4.1.
    """

    spec = SampleSpec(kind="question")
    main_metric = "vqa_score"
    classes = 0

    def build(self, meter: Meter, num_answers: int) -> None:
        """Build the classifier.

        Raises:
            ValueError: The data has no answers.
        """
        if num_answers < 1:
            raise ValueError(
                "VQA needs a dataset with answers; this one has none. Choose a question dataset, "
                "or convert it again to write its list of answers."
            )
        self.classes = num_answers
        super().build(meter, num_answers)

    def truth(self, target: Tensor) -> Tensor:
        """Return the soft scores [B,A] unchanged."""
        return target

    def logits_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean binary cross entropy times the number of answers."""
        return F.binary_cross_entropy_with_logits(logits, target) * target.shape[1]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the independent probability [B,A] of each answer."""
        return logits.sigmoid()

    def submission(
        self, rows: Sequence[dict[str, Any]], answers: Sequence[str], asked: Collection[int] = ()
    ) -> list[dict[str, Any]]:
        """Return the JSON for VQAv2's evaluation server: ``question_id`` and ``answer``.

        Each question appears once. If ``asked`` is given, exactly those questions appear, and one
        without a row gets the most frequent answer.

        Raises:
            ValueError: A key is not a question number, or there are fewer answers than classes.
        """
        if len(answers) < self.classes:
            raise ValueError(
                f"The model has {self.classes} answers, but the data only {len(answers)}."
            )
        chosen: dict[int, str] = {}
        for row in rows:
            if not str(row["key"]).isdigit():
                raise ValueError(
                    f"Example {row['example']} has the key {row['key']!r}; the server expects a "
                    "question number."
                )
            chosen[int(row["key"])] = answers[row["label"]]
        commonest = Counter(chosen.values()).most_common(1)[0][0] if chosen else answers[0]
        return [
            {"question_id": number, "answer": chosen.get(number, commonest)}
            for number in sorted(asked or chosen)
        ]
