"""Write the weights of all-MiniLM-L6-v2 as two ONNX files: python scripts/export_embedder.py MODELS_DIR

Owns the shape of the network, which its weights do not state. Invariant: the ONNX file gets its name only
after its vectors agreed with those of torch, and the one with weights of 8 bits after its vectors were near
those. Needs the extra [train]; running the ONNX files does not.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

#: The network as its authors describe it.
CONFIG = {
    "architectures": ["BertModel"],
    "hidden_act": "gelu",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
WEIGHTS_FILE = "all-MiniLM-L6-v2.safetensors"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "last_hidden_state"
#: The largest difference of an output value that rounding explains.
MAX_DIFFERENCE = 1e-4
#: The least cosine between the vectors of a text by weights of 8 bits and of 32, and such texts.
LEAST_COSINE = 0.93
TEXTS = (
    "kim asks to deploy the service payments to production outside of working hours",
    "a refund of 420 EUR for order 7, beyond the limit of the shop",
    "read the file .env of another project",
    "developer",
)


def main(models_dir: Path) -> None:
    """Read the weights, write the ONNX file, and compare both on text lengths that the export did not use."""
    import numpy
    import onnxruntime
    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    from thor_policy.engine.embedder import MODEL_FILE, QUICK_FILE, MiniLM

    network = BertModel(BertConfig(**CONFIG, attn_implementation="eager"))
    weights = load_file(models_dir / WEIGHTS_FILE)
    weights.pop("embeddings.position_ids", None)
    network.load_state_dict(weights)

    class States(torch.nn.Module):  # returns the hidden states alone; inputs by position
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
            return self.network(input_ids=ids, attention_mask=mask, token_type_ids=types)[0]

    states = States().eval()
    partial = models_dir / f".{MODEL_FILE}.part"
    example = torch.ones(2, 7, dtype=torch.long)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns of its deprecation
        torch.onnx.export(
            states,
            (example, example, example * 0),
            str(partial),
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_axes={name: {0: "texts", 1: "tokens"} for name in (*INPUTS, OUTPUT)},
            opset_version=18,
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for tokens in (1, 5, 40, 256):
        ids = torch.randint(1000, 30000, (1, tokens), generator=generator)
        inputs = dict(zip(INPUTS, (ids, torch.ones_like(ids), torch.zeros_like(ids)), strict=True))
        with torch.no_grad():
            expected = states(*inputs.values()).numpy()
        (actual,) = session.run([OUTPUT], {name: value.numpy() for name, value in inputs.items()})
        worst = max(worst, float(numpy.abs(expected - actual).max()))
    if worst > MAX_DIFFERENCE:
        partial.unlink()
        sys.exit(
            f"export-embedder: the ONNX file differs from torch by {worst:.1e}, above {MAX_DIFFERENCE:.0e}; "
            "no file was written"
        )
    partial.replace(models_dir / MODEL_FILE)
    print(f"{models_dir / MODEL_FILE}: differs from torch by {worst:.1e} at most")
    quantise(models_dir / MODEL_FILE, models_dir / QUICK_FILE)
    exact, quick = MiniLM(models_dir), MiniLM(models_dir, QUICK_FILE)
    least = min(float(exact.embed(text) @ quick.embed(text)) for text in TEXTS)
    if least < LEAST_COSINE:
        (models_dir / QUICK_FILE).unlink()
        sys.exit(
            f"export-embedder: the vectors of {QUICK_FILE} have a cosine of {least:.3f} with the exact ones"
        )
    print(f"{models_dir / QUICK_FILE}: cosine of {least:.3f} or more with the exact vectors")


def quantise(exact: Path, quick: Path) -> None:
    """Write the network with weights of 8 bits; each row of a matrix has a scale of its own."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    partial = quick.with_name(f".{quick.name}.part")
    quantize_dynamic(exact, partial, weight_type=QuantType.QInt8, per_channel=True)
    partial.replace(quick)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
