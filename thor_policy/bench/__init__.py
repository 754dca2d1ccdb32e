"""Benchmarks: thor-policy beside the bare decode and beside its alternatives, interleaved within one run.

`runs` measures the engine and the daemon, `peers` the alternatives, `journal` the journal, and `determinism`
whether answers repeat. `children` owns the processes, `figures` the statistics.
"""
