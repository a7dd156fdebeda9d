"""Linear maps of tiny random models of every type in transformers: coverage, and values.

python -m benchmarks.transformers_maps [type ...]. Needs transformers, which this project does not,
and downloads nothing. What has to be covered are parameters that torch's dispatcher sees in a
product or a convolution, and values are compared with those products, one sample at a time.
"""

import argparse
import collections
import signal
import sys
import warnings

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import resid_theory as rt
from benchmarks.timing import line

WORDS, PIXELS = 64, 32
SMALL = {
    32: "hidden_size d_model n_embd dim embed_dim encoder_embed_dim decoder_hidden_size image_size "
    "word_embed_proj_dim embedding_size emb_dim model_dim",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers "
    "num_encoder_layers num_decoder_layers num_hidden_groups num_experts_per_tok top_k moe_topk "
    "moe_top_k num_key_value_heads n_group topk_group num_kv_heads num_block_layers eos_token_id "
    "decoder_start_token_id",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads num_experts "
    "decoder_attention_heads num_local_experts n_routed_experts moe_num_experts",
    48: "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim n_inner hidden_dim "
    "ffn_hidden_size",
    16: "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size",
    8: "head_dim d_kv kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim "
    "patch_size attention_head_size",
    WORDS: "vocab_size max_position_embeddings n_positions max_seq_len vocab_size_per_layer_input",
    0: "pad_token_id first_k_dense_replace",
    1: "bos_token_id n_shared_experts",
}
SETTINGS = {name: value for value, names in SMALL.items() for name in names.split()}
KINDS = ("CAUSAL_LM", "MASKED_LM", "SEQUENCE_CLASSIFICATION", "IMAGE_CLASSIFICATION")
LARGEST = 3_000_000  # parameters


class Products(TorchDispatchMode):
    """Ratios ‖W x‖ / (‖W‖ ‖x‖) of all products with a parameter, by the parameter's storage."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.storages = {p.untyped_storage().data_ptr(): p for p in net.parameters()}
        self.copies: dict[int, tuple[int, Tensor]] = {}  # in other precisions or layouts
        self.ratios: dict[int, list[float]] = collections.defaultdict(list)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: D105
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        pair = {"mm": args[:2], "bmm": args[:2], "addmm": args[1:3], "baddbmm": args[1:3],
                "mv": args[:2]}.get(name, ())  # fmt: skip
        for at, factor in enumerate(pair):
            if where := self.place(factor):
                self.add(where, factor, pair[1 - at], pair[0] @ pair[1])
        if name == "convolution" and (where := self.place(args[1])):
            self.add(where, args[1], args[0], func(*args[:2], None, *args[3:]))
        result = func(*args, **kwargs)
        if name in ("_to_copy", "clone") and (where := self.place(args[0])):
            self.copies[result.untyped_storage().data_ptr()] = where, result
        return result

    def place(self, tensor: Tensor) -> int:
        """Address of the parameter that a tensor is, is a part of or is a copy of; or 0."""
        address = tensor.untyped_storage().data_ptr()
        return address if address in self.storages else self.copies.get(address, (0,))[0]

    def add(self, where: int, weight: Tensor, x: Tensor, y: Tensor) -> None:
        """Note a product, and one for each matrix of a stack."""
        stacked = weight.dim() == x.dim() == 3 and len(weight) == len(x)
        stacks = zip(weight, x, y, strict=True) if stacked else ()
        for w, z, out in ((weight, x, y), *stacks):
            self.ratios[where].append(float(out.norm() / (w.norm() * z.norm())))


def model_of(transformers, kind: str, name: str) -> nn.Module:
    """A tiny random model."""
    settings = transformers.CONFIG_MAPPING[name]()
    own = {k: v for k, v in SETTINGS.items() if hasattr(settings, k)}
    config = transformers.CONFIG_MAPPING[name](**own)
    config.use_cache, config._attn_implementation = False, "eager"
    config._experts_implementation = "eager"
    auto = getattr(transformers, {
        "CAUSAL_LM": "AutoModelForCausalLM", "MASKED_LM": "AutoModelForMaskedLM",
        "SEQUENCE_CLASSIFICATION": "AutoModelForSequenceClassification",
        "IMAGE_CLASSIFICATION": "AutoModelForImageClassification",
    }[kind])  # fmt: skip
    with torch.device("meta"):
        size = sum(p.numel() for p in auto.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size} parameters")
    torch.manual_seed(0)
    return auto.from_config(config).eval()


def batch_of(kind: str, config) -> dict[str, Tensor]:
    """Four samples as the model takes them; some words are padding."""
    source = torch.Generator().manual_seed(1)
    if kind == "IMAGE_CLASSIFICATION":
        channels = getattr(config, "num_channels", 3)
        side = getattr(config, "image_size", PIXELS)
        side = side if isinstance(side, int) else side[0]
        return {"pixel_values": torch.randn(4, channels, side, side, generator=source)}
    mask = torch.ones(4, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    ids = torch.randint(
        3, min(WORDS, config.get_text_config().vocab_size), (4, 9), generator=source
    )
    return {"input_ids": ids * mask, "attention_mask": mask}


def check(net: nn.Module, batch: dict[str, Tensor]) -> tuple[float, dict[str, str], int, int]:
    """Share of entries with rows, reasons for the others, numbers of values and of wrong ones."""
    found = rt.layer_cushions(net, batch, weight="effective")
    storages = {n: p.untyped_storage().data_ptr()
                for n, p in net.named_parameters(remove_duplicate=False)}  # fmt: skip
    values = wrong = 0
    applied = set()
    for sample in range(4):
        with torch.no_grad(), Products(net) as products:
            net(**{k: v[sample : sample + 1].clone() for k, v in batch.items()})
        applied |= products.ratios.keys()
        for row, cushion in zip(found.layers, found.values[:, sample].tolist(), strict=True):
            base = row.partition("#")[0].partition("[")[0].removesuffix(".mT")
            where = storages.get(base, storages.get(f"{base}.weight"))
            if where not in products.ratios or cushion != cushion:
                continue  # a weight that is computed, or a sample without a value
            known = torch.tensor(products.ratios[where], dtype=torch.float64)
            values += 1
            wrong += not bool(((known - cushion).abs() < 1e-5 * cushion).any())
    missing = found.not_covered
    lost = {
        n: missing.get(n) or missing.get(n.rpartition(".")[0]) for n, _ in net.named_parameters()
    }
    sizes = {n: p.numel() for n, p in net.named_parameters() if storages[n] in applied}
    lost = {n: reason for n, reason in lost.items() if reason and n in sizes}
    share = 1 - sum(sizes[n] for n in lost) / max(sum(sizes.values()), 1)
    return share, lost, values, wrong


def main() -> None:
    """Print a line for each type, then the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*")
    chosen = parser.parse_args().types
    import transformers
    from transformers.models.auto import modeling_auto

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    shares, whole, values, wrong, failed, unbuilt = [], 0, 0, 0, {}, 0
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("180 s")))
    for kind in KINDS:
        for name in getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES"):
            label = f"{kind}:{name}"
            if chosen and label not in chosen and name not in chosen:
                continue
            signal.alarm(180)
            try:
                net = model_of(transformers, kind, name)
                batch = batch_of(kind, net.config)
                net = net.double()
                with torch.no_grad():
                    net(**{k: v.double() if v.is_floating_point() else v for k, v in batch.items()})
            except (Exception, TimeoutError) as error:
                unbuilt += 1
                if chosen:
                    print(label, "does not build:", repr(error)[:300])
                continue
            try:
                share, reasons, count, bad = check(net, {
                    k: v.double() if v.is_floating_point() else v for k, v in batch.items()
                })  # fmt: skip
            except (Exception, TimeoutError) as error:
                failed[label] = f"{type(error).__name__}: {error}"[:200]
                print(f"{label:<50} {failed[label]}", flush=True)
                continue
            finally:
                signal.alarm(0)
            shares.append(share)
            whole += not reasons
            values, wrong = values + count, wrong + bad
            print(f"{label:<50} {share:.4f} {count:6d} values, {bad} wrong", flush=True)
            for parameter, reason in list(reasons.items())[: 99 if chosen else 2]:
                print(f"    {parameter}: {reason}", flush=True)
    line("types that build, with our settings", str(len(shares) + len(failed)), ">= 100")
    line("    measured by one call", str(len(shares)), "")
    line("    every matrix has a row", str(whole), "")
    line("    mean share of entries", f"{sum(shares) / max(len(shares), 1):.4f}", ">= .99")
    line("    values that recomputation confirms", f"{values - wrong} of {values}", "all")
    for label, why in failed.items():
        print("failed:", label, why)
    print(f"{unbuilt} types do not build with these settings", file=sys.stderr)


if __name__ == "__main__":
    main()
