"""People review decisions: which come first (`order`), one reviewer at work (`session`), how far reviewers
agree (`agreement`). Values in, values out: what they read and where verdicts go is the caller's affair.
"""
