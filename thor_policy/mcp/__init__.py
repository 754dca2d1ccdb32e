"""Faces of the daemon for the Model Context Protocol.

A proxy before any stdio server, and a server of our own.

Both are clients of the daemon's protocol: they import no daemon and no journal.
"""
