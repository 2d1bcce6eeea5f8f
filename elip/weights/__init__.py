"""Weights from elsewhere: METER checkpoints, OpenAI CLIP, timm, transformers, and our own runs."""

from elip.weights.load import LoadReport, load_image_weights, load_text_weights, load_weights

__all__ = ["LoadReport", "load_image_weights", "load_text_weights", "load_weights"]
