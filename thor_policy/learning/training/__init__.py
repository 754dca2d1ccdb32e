"""The training room: a LoRA adapter for a model file, from situations whose outcome is known.

`samples` makes tokens of situations with the code that makes them at run time; `lora` is the only module
that imports torch, peft and transformers (the extra [train]), and only when it is called, so nothing of
it is in the daemon; `convert` writes what was trained as a GGUF file.
"""
