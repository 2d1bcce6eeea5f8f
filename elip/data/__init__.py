"""From Arrow files on disk to batches: datasets, readers, transforms, tokens, samplers."""
