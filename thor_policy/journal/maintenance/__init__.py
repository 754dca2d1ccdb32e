"""Long work on the journal: archive, erase and rebuild, and `dispatch`, which starts it."""
