"""Training and evaluation: command line, Lightning module, optimiser, callbacks, run directory.

The room holds three promises that Lightning does not make: a run that is killed at any moment
resumes bit for bit, a run directory is a function of the stated options, and a wrong option is one
message.
"""
