"""Studies: configurations, grids, and the launcher that carries them out.

- `grid`: what a grid file says, and its runs as cells
- `launch`: the command; it plans, runs, and shows the end
- `jobs`: the work of one process, and what it leaves on disk
- `local`, `slurm`: where jobs run
- `sweep`: what their processes do: parse a run, run it, score many runs in one pass
- `report`, `results`: progress, and the table of all records
"""
