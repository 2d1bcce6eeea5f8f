"""Training and evaluation: Lightning module, optimiser, run directory, command line."""
