"""People review decisions: what is offered (`queue`), in which order (`ranking`), one reviewer's session
(`session`), and how far reviewers agree (`agreement`).

Owns all of that without input or output of its own: the caller hands in a reader and a function that records.
"""
