"""Engines: what judges a question that fixed rules cannot settle.

`llama` runs a GGUF in process; it is the only module that imports llama_cpp. `chat` and `writing` are the
parts of it that need no model. The seam itself is `thor_policy.core.engine.Engine`.
"""
