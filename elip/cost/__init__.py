"""What a model costs: multiply-adds, time, memory.

One multiply-add = 1 everywhere, as in fvcore and in the literature on token reduction. Read `count`
first (multiply-adds by part), then `timing`, `cached` (what a run records) and `budget` (equal
GFLOPs for every method). ``python -m elip.cost`` uses `measure` and `show`.
"""

from elip.cost.cached import COSTS_NAME, RunCost, cached_cost
from elip.cost.count import CostError, check_count, count_forward, count_training_step
from elip.cost.timing import Timing, inference, peak_memory, time_interleaved

__all__ = [
    "COSTS_NAME",
    "CostError",
    "RunCost",
    "Timing",
    "cached_cost",
    "check_count",
    "count_forward",
    "count_training_step",
    "inference",
    "peak_memory",
    "time_interleaved",
]
