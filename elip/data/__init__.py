"""From Arrow files on disk to batches: datasets, readers, transforms, tokens, samplers.

Larger than its budget: eleven datasets bring their own annotation formats, VQA's answer rules and
RandAugment's operations are tables, and the built-in data is drawn and described here too.
"""
