"""The sockets: every request in, every reply out, on the main thread.

`loop` reads, admits and sends; `inflight` knows what each request still waits for, without a socket;
`endpoint` is what both stand on.
"""

from thor_policy.server.endpoint import Mailbox, endpoint_lock
from thor_policy.server.loop import Part, Server

__all__ = ["Mailbox", "Part", "Server", "endpoint_lock"]
