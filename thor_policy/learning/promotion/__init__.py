"""Promotion: whether a pack may take the place of the one that decides, and the taking.

Owns the gate, its report, and the way from a candidate to the pack that decides. Invariant: the gate fails
closed - a pack passes if every check was made and none has a reason against it - and the pack that is
activated is, to the digest, the one that was checked. `report` has the nouns, `gate` makes the checks,
`promote` records and activates, `improve` makes the next pack from corrections. Main thread of a command,
which also owns the engine.
"""
