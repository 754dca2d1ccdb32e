"""The ground: the words every part speaks, and the seams between the parts.

Owns requests, decisions, records, results between threads, ids and errors. Imports nothing of ours.
"""
