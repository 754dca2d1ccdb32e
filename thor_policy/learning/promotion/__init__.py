"""Promotion: whether a pack may replace the active pack, and its activation.

Owns the gate, its report, and the activation of a candidate. Invariant: the gate fails closed (a pack passes
only if every check was made and none has a reason against it), and the pack that is activated has the digest
that was checked. `report` has the types, `gate` makes the checks, `promote` records and activates, `improve`
makes the next pack from corrections. Main thread of a command, which also owns the engine.
"""
