"""The Python clients: `Client` blocks, `AsyncClient` is for asyncio."""

from typing import TYPE_CHECKING, Any

from thor_policy.client.blocking import Client

if TYPE_CHECKING:
    from thor_policy.client.aio import AsyncClient

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    """`AsyncClient`, imported when it is first needed: asyncio is a twentieth of the start of a command."""
    if name == "AsyncClient":
        from thor_policy.client.aio import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
