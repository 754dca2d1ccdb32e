"""The data that adapters are trained on and measured by: generated situations, written ones, and the split.

`situations` owns what all domains share, `domains` holds a generator for each pack, `cases` decides which
case serves for training and which is held back, `forms` writes situations as JSON lines or as a suite, and
`figures` measures an adapter. What the data contains and what it cannot teach is in
docs/explanation/training-data.md.

Invariant: everything here is a function of its arguments and seeds; the same seed gives the same bytes.
"""
