"""Identity, permission and signatures: CURVE keys, roles, Ed25519 signatures, safe files."""
