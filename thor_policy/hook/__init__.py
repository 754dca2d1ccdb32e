"""The hook: it asks the daemon about a tool call of an AI agent, and answers in the agent's own words.

`entry` is the program that an agent starts for each call. It imports the standard library alone and starts in
a third of the time of a command. `agents` has a file for each agent. `installation` writes the settings of
agents, `trial` runs the program against every fault, `server` answers hooks over HTTP.

This package is a client of the protocol. It imports neither the daemon nor the journal.
"""
