"""Long work on the journal: archive, erase, rebuild."""
