"""The journal: every event in one hash chain, in one SQLite file, written by one thread.

`schema` is the file's shape, `storage` the file and the disk under it, `chain` the hash chain, `events` turns
values into stored bodies, `projections` bodies into rows of the tables people query, `batch` gives both
their place, `writer` is the one connection that writes, `reader` and `statistics` everything that only
reads, `verification` checks, `checkpoints` signs, `maintenance` looks after what has grown old. SQL lives
here and nowhere else.
"""
