"""Training: a LoRA adapter for a model file, from cases whose right outcome is known.

`samples` renders cases as tokens with the code that the daemon uses. `lora` alone imports torch, peft and
transformers (the extra [train]); it is imported when training starts, never in the daemon. `conversion`
writes the trained weights as a GGUF file. `build` does all of it for one adapter, and `judge` decides whether
that adapter may be activated.
"""
