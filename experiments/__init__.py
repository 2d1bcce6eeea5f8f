"""Studies: configurations, grids, and the launcher that carries them out."""
