"""The journal: every event in one hash chain, in one SQLite file, written by one thread.

- `schema`: the DDL as migrations. `storage`: the file, its lock, and the disk under it.
- `chain`: the hash chain. `events`: the stored form of each event. `rewrites`: what an erasure does to it.
- `projections`: the rows of the tables that people query.
- `batch`: the events of one transaction. `writer`: the one connection that writes.
- `reader`, `statistics`, `review_queries`, `past_requests`: everything that only reads.
- `checkpoints` and `signing_rule`: signed checkpoints. `verification`: the check of the whole journal.
- `leases`: who reviews a decision. `idempotency`: what was recorded for a key.
- `segments`: archive files. `maintenance`: archive, erase, rebuild.

SQL is in this package and nowhere else.
"""
