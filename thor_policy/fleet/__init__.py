"""Shipping the journal to other places, and the store of a fleet: what the extra `fleet` brings."""
