"""What a run of scenarios shows: figures with intervals, comparisons of two runs, baselines and their gate.

Owns `runs` (the one form in which a run is kept), `figures`, `comparing` and `baselines`.
"""
