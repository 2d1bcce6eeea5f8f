"""The tasks, one file each: heads, losses and metrics on top of METER.

A new file in this folder that defines a `Task` joins the command line, the grids and the contract
tests by itself.
"""
