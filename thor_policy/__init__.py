"""thor-policy: a policy-decision daemon that runs on the device it protects.

`thor_policy.client.Client` asks a running daemon; `daemon.service.open_service` runs one in process.
"""

__version__ = "0.1.0"
