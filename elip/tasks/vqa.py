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

    Loss: binary cross entropy of all answers against their soft scores, mean over everything,
    times A. Score: the mean soft score of the best answer, ``min(votes / 3, 1)`` in VQAv2's own
    rounding as the data has it.

    Source: Goyal et al., 2017, arXiv:1612.00837; Dou et al., 2022, arXiv:2111.02387, section 4.1.
    """

    spec = SampleSpec(kind="question")
    main_metric = "vqa_score"
    classes = 0

    def build(self, meter: Meter, num_answers: int) -> None:
        """Make the classifier of the answers that the data knows.

        Raises:
            ValueError: It knows none.
        """
        if num_answers < 1:
            raise ValueError(
                "VQA needs data that knows its answers; this data knows none. Choose a dataset of "
                "questions, or convert it again so that its list of answers is written beside it."
            )
        self.classes = num_answers
        super().build(meter, num_answers)

    def truth(self, target: Tensor) -> Tensor:
        """Return the soft scores [B,A] as they are."""
        return target

    def logits_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean binary cross entropy times the number of answers."""
        return F.binary_cross_entropy_with_logits(logits, target) * target.shape[1]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability [B,A] of each answer by itself."""
        return logits.sigmoid()

    def submission(
        self, rows: Sequence[dict[str, Any]], answers: Sequence[str], asked: Collection[int] = ()
    ) -> list[dict[str, Any]]:
        """Return what VQAv2's evaluation server takes: ``question_id`` and ``answer``.

        A question that several processes answered stands once. Where ``asked`` is given, exactly
        those questions stand there; one without a row gets the answer that was given most often.

        Raises:
            ValueError: A question has no number, or there are fewer answers than classes.
        """
        if len(answers) < self.classes:
            raise ValueError(
                f"The model knows {self.classes} answers and the data only {len(answers)}."
            )
        chosen: dict[int, str] = {}
        for row in rows:
            if not str(row["key"]).isdigit():
                raise ValueError(
                    f"Example {row['example']} has the key {row['key']!r}; the server wants a "
                    "question number."
                )
            chosen[int(row["key"])] = answers[row["label"]]
        commonest = Counter(chosen.values()).most_common(1)[0][0] if chosen else answers[0]
        return [
            {"question_id": number, "answer": chosen.get(number, commonest)}
            for number in sorted(asked or chosen)
        ]
