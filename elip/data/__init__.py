"""From Arrow files on disk to batches: sources, readers, transforms, tokens, samplers."""
