"""The agents, a file for each: what its events look like, what it accepts as an answer, and its settings.

Each file has `NAME`, `PROGRAM`, `LEAST_VERSION`, `CONTRACT`, the functions `read` and `answer`, and what
`installation` needs: `GATES`, `SETTINGS`, `entry`. `read` and `answer` are pure.
"""
