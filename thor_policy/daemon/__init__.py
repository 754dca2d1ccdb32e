"""The daemon: every thread of the process, how they start and stop, and the sockets they serve.

`service` starts and stops the parts; `server` is the main thread; `engine_thread`, `maintenance_thread`
and `pack_manager` are the others (the journal brings its own).
"""
