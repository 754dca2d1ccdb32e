"""Who asks, what they may do, and what is signed: CURVE keys, roles, Ed25519 signatures, safe files."""
