"""Zero points of tiny random models of transformers, against dense Hessians by double autograd.

python -m benchmarks.transformer_points [type ...] [--shortcuts]. Needs transformers, which this
project does not, and downloads nothing. Prints the table of docs/topics/transformer_point.md, or
what rt.shortcuts says of the same models and a vision transformer, without and with a sample.
"""

import argparse
import time
from collections.abc import Iterator

import torch
from torch import Tensor

import resid_theory as rt
from benchmarks import transformers_nets
from benchmarks.transformers_nets import batch_of, model_of

TYPES = {
    "gpt2": "output biases, fused projection",
    "llama": "groups of heads, gated MLP",
    "qwen3": "norms of queries and keys",
    "gpt_neox": "parallel branches",
    "phi": "parallel branches behind one norm",
    "gemma2": "norms behind branches",
    "bert": "post-LN",
}
SMALL = {
    8: "hidden_size n_embd",
    12: "intermediate_size n_inner",
    2: "head_dim num_hidden_layers n_layer num_key_value_heads",
    4: "num_attention_heads n_head",
    64: "vocab_size max_position_embeddings n_positions",
}  # fmt: skip


def columns(gradient: Tensor, parameters: list[Tensor]) -> Iterator[Tensor]:
    """Rows of the Hessian, one backward pass each."""
    for entry in gradient:
        parts = torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
        yield torch.cat([part.flatten() for part in parts])


def compared(name: str) -> list[object]:
    """A row of the table: sizes, the largest difference over the largest |λ|, and seconds."""
    import transformers

    kind = "MASKED_LM" if name == "bert" else "CAUSAL_LM"
    net = model_of(transformers, kind, name)
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            gain = parameter.dim() == 1
            drawn = torch.rand(parameter.shape, generator=source, dtype=torch.float64)
            parameter.copy_(0.5 + drawn if gain else drawn - 0.5)
    batch = batch_of(kind, net)
    start = time.process_time()
    point = rt.curvature.zero_point_of_net(net, "model", [batch])
    seconds = time.process_time() - start
    own = dict(net.named_parameters())
    with torch.no_grad():
        for part in point.zeroed:
            own[part].zero_()
    inside = [own[part] for part in point.parameters]
    slopes = torch.autograd.grad(
        net(**batch).loss, inside, create_graph=True, materialize_grads=True
    )
    matrix = torch.stack(list(columns(torch.cat([s.flatten() for s in slopes]), inside)))
    exact = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)
    error = (point.spectrum.eigenvalues - exact).abs().max() / exact.abs().max()
    return [name, TYPES.get(name, ""), point.spectrum.size, point.spectrum.rank, point.verdict,
            f"{point.condition_number:.4g}", f"{float(error):.1e}", f"{seconds:.2f}"]  # fmt: skip


def listed(name: str) -> Iterator[list[object]]:
    """Rows of the table of shortcuts, without and with a sample."""
    import transformers

    kind = {"bert": "MASKED_LM", "vit": "IMAGE_CLASSIFICATION"}.get(name, "CAUSAL_LM")
    net = model_of(transformers, kind, name)
    net.config.use_cache = True
    batch = batch_of(kind, net)
    for sample in (None, batch.get("pixel_values", batch.get("input_ids"))):
        start = time.process_time()
        found = rt.shortcuts(net, sample)
        seconds = time.process_time() - start
        told = "; ".join(f"{word}: {found.how[found.answers.index(word)]}"
                         for word in dict.fromkeys(found.answers))  # fmt: skip
        yield [name, "no" if sample is None else "yes", found.title,
               told or found.untraced.get("", ""), f"{seconds:.1f}"]  # fmt: skip


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="of models; those of the page if none")
    parser.add_argument("--shortcuts", action="store_true", help="list shortcuts instead")
    given = parser.parse_args()
    transformers_nets.SETTINGS.update(
        {name: size for size, names in SMALL.items() for name in names.split()}
    )
    if given.shortcuts:
        print("| type | sample | shortcuts | first of each, or why not | seconds |")
        print("|---|---|---|---|---|")
        for name in given.types or [*TYPES, "vit"]:
            for row in listed(name):
                print("|", " | ".join(map(str, row)), "|", flush=True)
        return
    print("| type | what is special | P | nonzero | verdict | κ | error | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for name in given.types or TYPES:
        print("|", " | ".join(map(str, compared(name))), "|", flush=True)


if __name__ == "__main__":
    main()
