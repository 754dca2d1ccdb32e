"""The catalog: known models, the sources of their files, and the check that a file is the known one.

Owns models/catalog.toml, the model files in the models directory, and the record of their digests. `files`
resolves a name or path to a checked file, verifies and lists; `adapters` reads the metadata of an adapter's
file; `fetching` downloads.

`fetching` must be imported by its own name: it brings httpx, which the daemon never needs, and only
`models pull` downloads. Called from the main thread and from commands; never from the engine thread.
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
