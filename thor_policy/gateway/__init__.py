"""The front door over HTTP: a client of the daemon's protocol in a process of its own (extra `http`)."""
