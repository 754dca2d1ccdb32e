"""The Python clients: `Client` blocks, `AsyncClient` is for asyncio."""

from thor_policy.client.aio import AsyncClient
from thor_policy.client.blocking import Client

__all__ = ["AsyncClient", "Client"]
