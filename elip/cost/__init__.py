"""What a model costs: multiply-adds, time, memory.

Convention, here and wherever a number is shown: one multiply-add = 1, as in fvcore and in the
literature on token reduction. Matrix products, convolutions and attention are counted;
element-wise work, normalisation, reductions, sorting and moving are not.
"""

from elip.cost.count import CostError, count_forward, measure_cost, measure_training_cost
from elip.cost.timing import Timing, peak_memory, time_interleaved
from elip.old_record import Cost

__all__ = [
    "Cost",
    "CostError",
    "Timing",
    "count_forward",
    "measure_cost",
    "measure_training_cost",
    "peak_memory",
    "time_interleaved",
]
