"""Engines: models that answer the questions which rules leave open.

`llama` runs a GGUF in this process; `native` alone imports llama_cpp. `remote` asks a model on a server, with
`backends` and `http`. `chat` and `explanations` need no model. `embedder` compares texts. The interface is
`thor_policy.core.engine.Engine`.
"""
