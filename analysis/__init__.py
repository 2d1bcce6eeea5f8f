"""Turn runs into tables, figures and a report. Reads files only and does not need torch.

Data flows one way: `load` (runs, settings, scores) -> `statistics` (intervals, comparisons) ->
`tables` and `figures` -> `report` (the page). `tokenmaps` draws which patches reducers keep.

Words and layout take more code here than numbers: findings and captions in plain sentences, and
figures that fit one column of a paper without overlapping names.
"""
