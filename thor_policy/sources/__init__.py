"""Where attributes of subjects and resources come from.

Owns the four kinds of sources and what they have in common. Invariant: nothing here runs on the main or the
engine thread, and nothing waits past the deadline of its look-up, as far as the system lets it.
"""
