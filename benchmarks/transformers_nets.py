"""Curvature and cushions of tiny random models of every type in transformers, each by one call.

python -m benchmarks.transformers_nets [type ...]. Needs transformers, which this project does not,
and downloads nothing. Writes docs/transformers.json after every type, goes on where it stopped
(--again checks anew what other code checked), and writes the page docs/transformers.md. What it
compares with imports nothing of ours: double autograd, and the products and convolutions that
torch's dispatcher sees.
"""

import argparse
import collections
import json
import os
import platform
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import resid_theory as rt
from benchmarks.routed_nets import Products, routed_nets

DOCS = Path(__file__).resolve().parents[1] / "docs"
WORDS, PIXELS, SAMPLES, SECONDS = 64, 32, 4, 300
SMALL = {
    32: "hidden_size d_model n_embd dim embed_dim encoder_embed_dim decoder_hidden_size image_size "
    "word_embed_proj_dim embedding_size emb_dim model_dim hidden_sizes",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers "
    "num_encoder_layers num_decoder_layers num_hidden_groups num_experts_per_tok top_k moe_topk "
    "moe_top_k num_key_value_heads n_group topk_group num_kv_heads num_block_layers eos_token_id "
    "decoder_start_token_id linear_num_key_heads linear_num_value_heads",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads num_experts "
    "decoder_attention_heads num_local_experts n_routed_experts moe_num_experts attention_window",
    48: "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim n_inner hidden_dim "
    "ffn_hidden_size",
    16: "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size "
    "mamba_chunk_size chunk_size",
    8: "head_dim d_kv kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim "
    "patch_size attention_head_size linear_key_head_dim linear_value_head_dim ssm_state_size "
    "mamba_d_state",
    WORDS: "vocab_size max_position_embeddings n_positions max_seq_len vocab_size_per_layer_input",
    0: "pad_token_id first_k_dense_replace",
    1: "bos_token_id n_shared_experts depths",
}
SETTINGS = {name: value for value, names in SMALL.items() for name in names.split()}
KINDS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "MASKED_LM": "AutoModelForMaskedLM",
    "SEQUENCE_CLASSIFICATION": "AutoModelForSequenceClassification",
    "IMAGE_CLASSIFICATION": "AutoModelForImageClassification",
}
LARGEST = 3_000_000  # parameters
TRACED = 64  # most entries of the parameter whose trace is compared
CURVATURE, SINGLE = 1e-10, 1e-5  # relative differences, also of what a model takes in float32
COVERED = 0.99


class OutOfTime(BaseException):
    """A type takes too long; no ``Exception``, which a check would take for its own."""


# -- models and batches ----------------------------------------------------------------------------


def model_of(transformers, kind: str, name: str) -> nn.Module:
    """A tiny random model in float64."""
    settings = transformers.CONFIG_MAPPING[name]()
    own = {k: _like(v, getattr(settings, k)) for k, v in SETTINGS.items() if hasattr(settings, k)}
    config = transformers.CONFIG_MAPPING[name](**own)
    config.use_cache, config._attn_implementation = False, "eager"
    config._experts_implementation = "eager"
    auto = getattr(transformers, KINDS[kind])
    with torch.device("meta"):
        size = sum(p.numel() for p in auto.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size} parameters, more than {LARGEST}")
    torch.manual_seed(0)
    return auto.from_config(config).eval().double()


def _like(value: int, given: Any) -> Any:
    """A setting for each stage or axis, where a type has several."""
    return [value] * len(given) if isinstance(given, (list, tuple)) else value


def batch_of(kind: str, net: nn.Module) -> dict[str, Tensor]:
    """Four samples with labels as a data collator gives them; some words are padding."""
    source = torch.Generator().manual_seed(1)
    classes = torch.arange(SAMPLES) % max(getattr(net.config, "num_labels", 2), 1)
    if kind == "IMAGE_CLASSIFICATION":
        channels = getattr(net.config, "num_channels", 3)
        side = getattr(net.config, "image_size", PIXELS)
        side = side if isinstance(side, int) else side[0]
        pixels = torch.randn(SAMPLES, channels, side, side, generator=source).double()
        return {"pixel_values": pixels, "labels": classes}
    mask = torch.ones(SAMPLES, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    words = min(WORDS, net.config.get_text_config().vocab_size)
    ids = torch.randint(3, words, mask.shape, generator=source) * mask
    labels = classes if kind == "SEQUENCE_CLASSIFICATION" else ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def token_cross_entropy(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of logits and labels, or those of the next token, as the model has it."""
    inputs = {name: part for name, part in batch.items() if name != "labels"}
    if getattr(net.config, "is_encoder_decoder", False):  # reads its own inputs from the labels
        inputs = batch
    logits, labels = net(**inputs).logits, batch["labels"]
    same = F.cross_entropy(logits.flatten(0, -2), labels.flatten())
    if labels.dim() == 1:
        return same
    after = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    own = net(**batch).loss
    return after if abs(after - own) < abs(same - own) else same


# -- checks of one type ----------------------------------------------------------------------------


def known_curvature(value: Tensor, net: nn.Module, vector: Tensor) -> tuple[Tensor, str, float]:
    """Product with the Hessian and the trace of one small block, by double autograd."""
    trainable = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    names, parameters = zip(*trainable, strict=True)
    gradient = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
    parts = vector.split([p.numel() for p in parameters])
    along = sum((g.reshape(-1) * v).sum() for g, v in zip(gradient, parts, strict=True)
                if g is not None and g.requires_grad)  # fmt: skip
    product = torch.autograd.grad(along, parameters, materialize_grads=True, retain_graph=True)
    small = [k for k, g in enumerate(gradient)
             if g is not None and g.numel() <= TRACED and g.requires_grad]  # fmt: skip
    whole = torch.cat([h.reshape(-1) for h in product])
    # A block that is zero but for round-off, as that of a key's bias, has no trace to compare.
    small = [k for k in small if product[k].norm() > CURVATURE * whole.norm()]
    if not small:
        return whole, "", 0.0
    chosen = min(small, key=lambda k: product[k].numel())
    rows = [torch.autograd.grad(entry, parameters[chosen], retain_graph=True)[0].reshape(-1)[i]
            for i, entry in enumerate(gradient[chosen].reshape(-1))]  # fmt: skip
    return whole, names[chosen], float(sum(rows))


def curvature_error(
    net: nn.Module, loss: str, batch: Any, value: Tensor, same: list[bool]
) -> float:
    """Largest relative difference between a product and a trace of ours and double autograd."""
    size = sum(p.numel() for p in net.parameters() if p.requires_grad)
    vector = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    product, name, trace = known_curvature(value, net, vector)
    before = state_of(net)
    operator = rt.curvature_operator(net, loss, batch)
    error = float((operator @ vector - product).norm() / product.norm())
    if name:  # column by column, as models that compute in float32 round several otherwise
        block = operator.block(name)
        columns = torch.stack(
            [block @ unit for unit in torch.eye(block.shape[0], dtype=torch.float64)]
        )
        error = max(error, abs(float(columns.trace()) - trace) / float(columns.norm()))
    same.append(is_same(before, state_of(net)))
    return error


def cushion_check(net: nn.Module, batch: dict[str, Tensor], same: list[bool]) -> dict[str, Any]:
    """Share of entries with rows, reasons for the others, numbers of values and of wrong ones."""
    before = state_of(net)
    found = rt.layer_cushions(net, batch, weight="effective")
    same.append(is_same(before, state_of(net)))
    storages = {n: p.untyped_storage().data_ptr()
                for n, p in net.named_parameters(remove_duplicate=False)}  # fmt: skip
    values = wrong = 0
    applied = set()
    decodes = getattr(net.config, "is_encoder_decoder", False)
    for sample in range(SAMPLES):
        with torch.no_grad(), Products(net) as products:
            net(**{k: v[sample : sample + 1].clone() for k, v in batch.items()
                   if k != "labels" or decodes})  # fmt: skip
        applied |= products.ratios.keys()
        for row, cushion in zip(found.layers, found.values[:, sample].tolist(), strict=True):
            base = row.partition("#")[0].partition("[")[0].removesuffix(".mT")
            where = storages.get(base, storages.get(f"{base}.weight"))
            if where not in products.ratios or cushion != cushion:
                continue  # a weight that is computed, or a sample without a value
            known = torch.tensor(products.ratios[where], dtype=torch.float64)
            values += 1
            wrong += not bool(((known - cushion).abs() < SINGLE * cushion).any())
    missing = found.not_covered
    lost = {
        n: missing.get(n) or missing.get(n.rpartition(".")[0]) for n, _ in net.named_parameters()
    }
    sizes = {n: p.numel() for n, p in net.named_parameters() if storages[n] in applied}
    lost = {n: reason for n, reason in lost.items() if reason and n in sizes}
    share = 1 - sum(sizes[n] for n in lost) / max(sum(sizes.values()), 1)
    return {"share": share, "uncovered": lost, "values": values, "wrong": wrong}


def state_of(net: nn.Module) -> list[Any]:
    """All that a net holds: its tensors, and plain attributes in words."""
    held = [t.detach().clone() for t in (*net.parameters(), *net.buffers())]
    held += [p.grad for p in net.parameters()]
    skipped = {"_parameters", "_buffers", "_modules"}
    for module in net.modules():
        plain = {k: v for k, v in vars(module).items() if k not in skipped}
        held += [v.clone() if isinstance(v, Tensor) else repr(v) for v in plain.values()]
        held.append(sorted(plain))
    return held


def is_same(one: list[Any], other: list[Any]) -> bool:
    """True if nothing has changed, to the bit."""
    return len(one) == len(other) and all(
        a.equal(b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in zip((_bits(a) for a in one), (_bits(b) for b in other), strict=True)
    )


def _bits(value: Any) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.nan_to_num() if floating else value


def check_type(transformers, kind: str, name: str) -> dict[str, Any]:
    """The result of one type; with ``unbuilt`` for one that does not build or run."""
    try:
        net = model_of(transformers, kind, name)
        batch = batch_of(kind, net)
        with torch.no_grad():
            output = net(**batch)
            assert output.get("loss") is not None, "gives no loss with labels"
    except Exception as error:
        return {"unbuilt": f"{type(error).__name__}: {error}"[:200]}
    single = output.logits.dtype == torch.float32  # of a net in float64
    result: dict[str, Any] = {"parameters": sum(p.numel() for p in net.parameters())}
    result["tolerance"] = SINGLE if single else CURVATURE
    same: list[bool] = []
    checks: dict[str, Callable[[], Any]] = {
        "model": lambda: curvature_error(net, "model", [batch], net(**batch).loss, same),
        "cross_entropy": lambda: curvature_error(
            net, "cross_entropy", [batch], token_cross_entropy(net, batch), same
        ),
        "cushions": lambda: cushion_check(net, batch, same),
    }
    for check, task in checks.items():
        try:
            result[check] = task()
        except Exception as error:
            result.setdefault("errors", {})[check] = f"{type(error).__name__}: {error}"[:300]
    result["unchanged"] = all(same)
    return result


def failures(result: dict[str, Any]) -> list[str]:
    """What a type does not pass, in words."""
    found = [f"`{check}`: {error}" for check, error in result.get("errors", {}).items()]
    for loss in ("model", "cross_entropy"):
        if loss in result and not result[loss] <= result["tolerance"]:
            found.append(f"`{loss}`: curvature differs by {result[loss]:.1e}")
    cushions = result.get("cushions")
    if cushions and cushions["wrong"]:
        found.append(f"cushions: {cushions['wrong']} of {cushions['values']} not confirmed")
    if cushions and cushions["share"] < COVERED:
        found.append(f"cushions: {cushions['share']:.3f} of the entries have rows")
    if not result.get("unchanged", True):
        found.append("the net is changed")
    return found + ([result["failed"]] if "failed" in result else [])


# -- the table -------------------------------------------------------------------------------------


def page(results: dict[str, Any]) -> str:
    """The page of the documentation."""
    built = {k: r for k, r in results["types"].items() if "unbuilt" not in r}
    failed = {k: why for k, r in built.items() if (why := failures(r))}
    measured = [r["cushions"] for r in built.values() if "cushions" in r]
    share = sum(c["share"] for c in measured) / max(len(measured), 1)
    values, wrong = (sum(c[key] for c in measured) for key in ("values", "wrong"))
    rows = []
    for kind in KINDS:
        some = {k: r for k, r in built.items() if k.startswith(f"{kind}:")}
        right = [sum(r.get(loss, 1) <= r.get("tolerance", 0) for r in some.values())
                 for loss in ("model", "cross_entropy")]  # fmt: skip
        covered = sum(r.get("cushions", {}).get("share", 0) == 1 for r in some.values())
        same = sum(r.get("unchanged", False) for r in some.values())
        passed = len(some) - sum(k in failed for k in some)
        cells = [kind.lower().replace("_", " "), len(some), *right, covered, same, passed]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    total = len(built) - len(failed)
    lines = [
        "# Models of transformers", "",
        "Written by `python -m benchmarks.transformers_nets`; not to be edited. Tiny random models "
        "of every type,", "in float64 with eager attention, each measured by one call with one "
        "batch of inputs, masks and labels:",
        '`rt.curvature_operator(model, "model", [batch])`, the same with `"cross_entropy"`, and '
        "`rt.layer_cushions(model, batch)`.", "Curvature (a product and the trace of a block) "
        f"agrees with double autograd to {CURVATURE:.0e}; cushions have rows for", "every weight "
        "that torch's dispatcher sees in a product or a convolution, and each value is one of its "
        "products';", "parameters, buffers, flags, `.grad` and plain attributes are unchanged.", "",
        "| kind | types | own loss | cross-entropy | all weights have rows | unchanged | pass |",
        "|---|---|---|---|---|---|---|", *rows, "",
        f"**{total} of {len(built)} types pass** ({100 * total / max(len(built), 1):.1f} %). Mean "
        f"share of entries with rows: {share:.4f}. Values confirmed: {values - wrong:,} of "
        f"{values:,}.", "{nets} random nets with routed experts: {values:,} values, {wrong} wrong, "
        "{refused} refused, {crashed} crashed.".format(**results["routed"]), "",
    ]  # fmt: skip
    if failed:
        lines += ["## Failures", "", "| type | what fails |", "|---|---|"]
        lines += [f"| {_named(k)} | {_cell('; '.join(why))} |" for k, why in failed.items()] + [""]
    lost = {k: r["cushions"]["uncovered"] for k, r in built.items()
            if r.get("cushions", {}).get("uncovered")}  # fmt: skip
    if lost:
        lines += ["## Weights without rows", "", "| type | weight | reason |", "|---|---|---|"]
        lines += [f"| {_named(k)} | {n} | {_cell(why)} |" for k, each in lost.items()
                  for n, why in each.items()] + [""]  # fmt: skip
    lines += ["## Passed", ""]
    for kind in KINDS:
        names = [k.partition(":")[2] for k in built if k.startswith(f"{kind}:") and k not in failed]
        lines += [f"**{kind.lower().replace('_', ' ')}:** {', '.join(names) or 'none'}.", ""]
    unbuilt = [_named(k) for k in results["types"] if k not in built]
    lines += ["## Not built", "", f"{len(unbuilt)} types do not build or run with these small "
              f"settings: {', '.join(unbuilt) or 'none'}.", ""]  # fmt: skip
    commits = collections.Counter(r.get("commit", "earlier ones") for r in built.values())
    lines.append("Types checked by commit: " + ", ".join(
        f"{count} by {commit}" for commit, count in sorted(commits.items())
    ) + f"; {results['where']}.")  # fmt: skip
    return "\n".join(lines) + "\n"


def _named(key: str) -> str:
    kind, _, name = key.partition(":")
    return f"{name} ({kind.lower().replace('_', ' ')})"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").replace("<", "‹").replace(">", "›").split())


def labels_of(modeling_auto, chosen: list[str]) -> Iterator[tuple[str, str]]:
    """Kind and name of every type, or of those chosen by either or both."""
    for kind in KINDS:
        for name in getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES"):
            if not chosen or {kind, name, f"{kind}:{name}"} & set(chosen):
                yield kind, name


def main() -> None:
    """Check types one by one, write results and page, and print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="gpt2, CAUSAL_LM or CAUSAL_LM:gpt2; all if none")
    parser.add_argument("--again", action="store_true", help="also what other code checked")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers
    from transformers.models.auto import modeling_auto

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, lambda *_: (_ for _ in ()).throw(OutOfTime()))
    file = DOCS / "transformers.json"
    results = json.loads(file.read_text()) if file.exists() else {"types": {}}
    results["where"] = (
        f"transformers {transformers.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}"
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=DOCS, text=True,
                            capture_output=True, check=True).stdout.strip()  # fmt: skip
    if given.again or "routed" not in results:
        results["routed"] = routed_nets(200)
    print("routed nets:", results["routed"], flush=True)
    for kind, name in labels_of(modeling_auto, given.types):
        key, start = f"{kind}:{name}", time.process_time()
        known = results["types"].get(key)
        if known and not (given.again and known.get("commit") != commit):
            continue
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            result = check_type(transformers, kind, name)
        except OutOfTime:
            result = {"failed": f"takes more than {SECONDS} s of a processor"}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        results["types"][key] = result | {"commit": commit}
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        said = result.get("unbuilt") or "; ".join(failures(result)) or "passes"
        print(f"{key:<46}{time.process_time() - start:6.1f} s  {said}"[:300], flush=True)
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (DOCS / "transformers.md").write_text(page(results), encoding="utf-8")
    print(page(results).partition("## Passed")[0])


if __name__ == "__main__":
    main()
