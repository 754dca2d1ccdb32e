"""The journal: every event in one hash chain, in one SQLite file, written by one thread.

`schema` is the file's shape, `chain` the hash chain, `events` turns values into stored bodies and bodies
into rows of the tables people query, `writer` is the one connection that writes, `reader` everything that
only reads. SQL lives here and nowhere else.
"""
