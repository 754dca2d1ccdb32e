"""The sockets: every request in, every reply out, on the main thread.

`loop` reads, admits and sends; `inflight` knows what each request still waits for, without a socket;
`gate` lets holders of a key in over tcp; `endpoint` is what all of them stand on.
"""

from thor_policy.server.endpoint import Mailbox, endpoint_lock
from thor_policy.server.gate import check_identity
from thor_policy.server.loop import Part, Server

__all__ = ["Mailbox", "Part", "Server", "check_identity", "endpoint_lock"]
