"""Pages for people: decisions, approvals, reviews and figures, in a process of its own (extra `http`)."""
