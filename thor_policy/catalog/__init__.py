"""The catalog: which models there are, where their files come from, and whether a file is the one we know.

The room owns models/catalog.toml, the model files in the models directory, and the record of their digests.
`files` reads: it resolves a name or path to a checked file, verifies and lists; `adapters` reads what an
adapter's file says. `fetching` downloads, for
the `models pull` command alone, and is imported by that name: httpx must not come with this package,
because the daemon imports it at start and never downloads.

Called from the main thread and from commands; never from the engine thread.
"""

from thor_policy.catalog.files import (
    Catalog,
    CatalogModel,
    Listed,
    ModelFile,
    Verdict,
    companion_of,
    listing,
    resolve,
    resolve_adapter,
    verify,
)

__all__ = [
    "Catalog",
    "CatalogModel",
    "Listed",
    "ModelFile",
    "Verdict",
    "companion_of",
    "listing",
    "resolve",
    "resolve_adapter",
    "verify",
]
