"""METER: image encoder with reduction, text encoder, co-attention fusion.

Read `interface` first. Two parts make this room larger than its layers: `interface` writes down
what a second backbone must offer, and `guard` names the method that breaks the contract.
"""
