"""Measurement: ours beside the bare floor and beside what people use instead, in one run, in turn.

`runs` measures engine and daemon, `peers` the alternatives; `children` owns the processes, `figures` the
statistics.
"""
