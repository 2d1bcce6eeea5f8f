"""What a model costs: multiply-adds (`count`), time and memory (`timing`).

One multiply-add = 1, as in fvcore and in the literature on token reduction. `cached` is what a run
records, `budget` finds equal GFLOPs for every method, and ``python -m elip.cost`` compares methods.
Two independent counters and a cache that several processes share take most of the room.
"""
