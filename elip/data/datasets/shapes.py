"""The built-in data, which is drawn on first use."""

from elip.data.shapes import Shapes

__all__ = ["Shapes"]
