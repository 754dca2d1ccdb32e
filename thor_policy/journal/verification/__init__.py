"""The check of a journal: chain, tables, archives and checkpoints."""
