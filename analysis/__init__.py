"""Turn runs into tables, figures and a report. Reads files only and does not need torch.

Data flows one way: `load` (runs, settings, scores) -> `statistics` (intervals, comparisons) ->
`tables` and `figures` -> `report` (the page). `tokenmaps` draws which patches reducers keep.
"""
