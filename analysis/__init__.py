"""From runs to tables, figures and a report; reads files only and needs no torch.

Data flows one way: `load` (runs, settings, scores) -> `statistics` (intervals, comparisons) ->
`tables` and `figures` -> `report` (the page). `tokenmaps` draws what reducers keep of an image.
"""
