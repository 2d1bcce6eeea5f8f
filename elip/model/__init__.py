"""METER: image encoder with reduction, text encoder, co-attention fusion, heads."""
