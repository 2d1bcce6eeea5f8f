"""The built-in dataset: generated images of a few small objects, with full annotations."""

from __future__ import annotations

from elip.data.shapes.scene import Scene, Thing, random_scene
from elip.data.shapes.write import Options, write_shapes

__all__ = ["Options", "Scene", "Thing", "random_scene", "write_shapes"]
