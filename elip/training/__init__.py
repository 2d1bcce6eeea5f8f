"""Training and evaluation: the Lightning module, the optimiser, the run directory, the command line."""
