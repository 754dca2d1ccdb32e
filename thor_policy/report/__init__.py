"""A run of scenarios for other programs and for people: a JUnit file, and one page of HTML.

Owns `junit` and `page`.
"""
