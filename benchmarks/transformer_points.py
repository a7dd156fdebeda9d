"""Zero points of tiny random models of transformers, against dense Hessians by double autograd.

python -m benchmarks.transformer_points [type ...]. Needs transformers, which this project does not,
and downloads nothing. Prints the table of docs/topics/transformer_point.md.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import resid_theory as rt
from benchmarks import transformers_nets
from benchmarks.transformers_nets import batch_of, model_of

TYPES = {
    "gpt2": "output biases, fused projection",
    "llama": "groups of heads, gated MLP",
    "qwen3": "norms of queries and keys",
    "gpt_neox": "parallel branches",
    "opt": "ReLU: a kink",
    "phi": "parallel, one norm",
    "mixtral": "routed experts",
    "gemma2": "norms behind branches",
    "bert": "post-LN",
    "t5": "encoder and decoder",
    "vit": "images",
}
KINDS = {"bert": "MASKED_LM", "vit": "IMAGE_CLASSIFICATION", "t5": "SEQ_TO_SEQ_CAUSAL_LM"}
SMALL = {
    8: "hidden_size d_model n_embd word_embed_proj_dim",
    12: "intermediate_size ffn_dim d_ff n_inner",
    2: "head_dim d_kv num_hidden_layers n_layer num_layers num_decoder_layers num_key_value_heads",
    4: "num_attention_heads n_head num_heads num_local_experts",
    16: "patch_size",
    64: "vocab_size max_position_embeddings n_positions",
}  # fmt: skip


def columns(gradient: Tensor, parameters: list[Tensor]) -> Iterator[Tensor]:
    """Rows of the Hessian, one backward pass each."""
    for entry in gradient:
        parts = torch.autograd.grad(
            entry, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        yield torch.cat([part.flatten() for part in parts])


def compared(name: str) -> list[object]:
    """A row of the table: sizes, the largest difference over the largest |λ|, and seconds."""
    import transformers

    net = model_of(transformers, KINDS.get(name, "CAUSAL_LM"), name)
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            gain = parameter.dim() == 1
            drawn = torch.rand(parameter.shape, generator=source, dtype=torch.float64)
            parameter.copy_(0.5 + drawn if gain else drawn - 0.5)
    batch = batch_of(KINDS.get(name, "CAUSAL_LM"), net)
    start = time.process_time()
    branches = [part for part, _ in net.named_parameters() if name == "mixtral"
                and ("attn.weight" in part or "experts" in part or "_proj" in part)]  # fmt: skip
    point = rt.curvature.zero_point_of_net(net, "model", [batch], branches=branches or None)
    seconds = time.process_time() - start
    kinked = any("kink" in note for note in point.notes)
    sides = [hessian(net, point, batch, side) for side in ((-1e-9, 1e-9) if kinked else (0.0,))]
    matrix = sum(sides) / len(sides)
    exact = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)
    error = (point.spectrum.eigenvalues - exact).abs().max() / exact.abs().max()
    flat = sum(sum(branch.flat.values()) for branch in point.branches)
    return [name, TYPES.get(name, ""), point.spectrum.size, point.spectrum.rank, flat,
            point.verdict, f"{point.condition_number:.4g}", f"{float(error):.1e}",
            f"{seconds:.2f}", *point.notes]  # fmt: skip


def hessian(net: nn.Module, point: rt.theory.TransformerPoint, batch, step: float) -> Tensor:
    """The Hessian in branches, a step from zero."""
    own, source = dict(net.named_parameters()), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name in point.zeroed:
            drawn = torch.randn(own[name].shape, generator=source, dtype=torch.float64)
            own[name].copy_(step * drawn)
    inside = [own[part] for part in point.parameters]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = net(**batch).loss
    slopes = torch.autograd.grad(
        loss, inside, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.stack(list(columns(torch.cat([s.flatten() for s in slopes]), inside)))


def main() -> None:
    """Print the table."""
    transformers_nets.SETTINGS.update(
        {name: size for size, names in SMALL.items() for name in names.split()}
    )
    transformers_nets.KINDS["SEQ_TO_SEQ_CAUSAL_LM"] = "AutoModelForSeq2SeqLM"
    print("| type | what is special | P | nonzero | flat | verdict | κ | error | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    found = Counter[str]()
    for name in sys.argv[1:] or TYPES:
        try:
            row = compared(name)
        except ValueError as error:
            row = [name, TYPES.get(name, ""), f"refused: {error}"]
        found[row[5] if len(row) > 3 else "refused"] += 1
        print("|", " | ".join(map(str, row)), "|", flush=True)
    print(f"\n{dict(found)}")


if __name__ == "__main__":
    main()
