"""Functions of expressions that read the structure of a text: each is total, pure and bounded."""
