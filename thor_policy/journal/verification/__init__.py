"""Whether the journal is what was committed: chain, tables, archives and checkpoints."""
