"""The wire protocol: messages, decoding of request frames, encoding of replies."""
