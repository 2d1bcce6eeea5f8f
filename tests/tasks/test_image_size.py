from __future__ import annotations

import pytest
import torch

from elip.model.config import MeterConfig
from elip.model.meter import Meter


def test_an_image_size_that_the_patch_size_does_not_divide_is_refused_for_every_encoder() -> None:
    """Or the pixels behind the last whole patch would never be seen."""
    named = "vit_large_patch14_clip_quickgelu_224.openai"
    with torch.device("meta"), pytest.raises(ValueError, match="patch size 14; use 280 or 294"):
        Meter(MeterConfig("clip16_roberta", image_encoder=named).resolve())
    with pytest.raises(ValueError, match="not a multiple of patch_size 16"):
        MeterConfig(image_size=72, patch_size=16).resolve()
