"""Verbs on trained nets, by checkpoint or authors' file: fold, evaluate, and the shipped ones."""

from pathlib import Path
from typing import Annotated

import typer

from resid_theory.cli.output import (
    Json,
    Overwrite,
    check_new,
    emit,
    number,
    print_json,
    say_table,
    shows_progress,
    whole_numbers,
)
from resid_theory.cli.sources import (
    AUTHORS,
    Channels,
    Data,
    Device,
    Model,
    Size,
    StateDict,
    checkpoint_net,
    images,
    named_net,
    one_net,
    renamed,
)

_CHECKPOINT = typer.Option(
    help="Name or path of a checkpoint, or a file of the DiracNet authors (.pt7, .pth)."
)


def fold(
    checkpoint: Annotated[str, _CHECKPOINT],
    out: Annotated[
        Path, typer.Option(help="Checkpoint to write (.json), or an authors' file (.pt7, .pth).")
    ],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fold identities and BatchNorm into the kernels, and write the folded net."""
    import resid_theory as rt

    if out.suffix not in (".json", *AUTHORS):
        raise ValueError(f"--out: got {str(out)!r}, needs a name ending in .json, .pt7 or .pth")
    check_new("--out", out, overwrite=overwrite)
    net = checkpoint_net(checkpoint)
    folded = rt.fold(net)
    if out.suffix == ".json":
        about = {"folded_from": checkpoint, "data": _trained_on(checkpoint)}
        rt.save_checkpoint(out, folded, about=about)
    else:
        with renamed(net="--checkpoint"):
            rt.save_dirac_file(out, folded)
    before, after = (sum(p.numel() for p in n.parameters()) for n in (net, folded))
    norms = sum(name.endswith("running_var") for name, _ in net.named_buffers())
    done = rt.conversion(folded)
    content = {
        "out": str(out), "norms": norms, "parameters": [before, after],
        "converted": {name: list(words) for name, words in done.converted.items()},
        "left": dict(done.left),
    }  # fmt: skip
    words = f"{norms} BatchNorms folded, {before:,} parameters became {after:,}; {out} written."
    words = f"{words}\n{done!r}"
    emit(content, words, as_json)


def evaluate(
    data: Data,
    checkpoint: Annotated[str | None, _CHECKPOINT] = None,
    model: Model = None,
    state_dict: StateDict = None,
    split: Annotated[str, typer.Option(help="test or train; of a named set.")] = "test",
    samples: Annotated[
        int | None, typer.Option(help="Images: the first of a set; of a folder, drawn.")
    ] = None,
    size: Size = None,
    shorter: Annotated[
        int | None,
        typer.Option(help="Of a folder: shorter side before the crop; 8/7 of --size by default."),
    ] = None,
    channels: Channels = 3,
    constants: Annotated[
        str, typer.Option(help="Normalization of a folder's images: own or imagenet.")
    ] = "own",
    top: Annotated[
        str | None,
        typer.Option(help="Values of k of the top-k errors; 1 and, of 5 classes, 5 by default."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 256,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure loss and top-k errors of a net; single crops, nothing is trained."""
    import resid_theory as rt
    from resid_theory.runtime.resources import check_device

    flag = one_net(checkpoint, model)
    orders = None if top is None else whole_numbers("top", top, 1)
    place = check_device("device", device)
    net = named_net(checkpoint, model, 0, state_dict).to(place)
    found = images(
        data, split=split, samples=samples, size=size, shorter=shorter, constants=constants,
        channels=channels, progress=not as_json,
    )  # fmt: skip
    shows = shows_progress(as_json)
    with renamed(net=flag):
        scores = rt.evaluate(net, found, top=orders, batch=batch, progress=shows)
    errors = {f"top_{k}_error": scores.error(k) for k in scores.wrong}
    known = _trained_on(checkpoint) if checkpoint else None
    content = {"checkpoint": checkpoint, "model": model, "trained_on": known, "data": data,
               "samples": scores.samples}  # fmt: skip
    words = ", ".join(f"top-{k} error {100 * scores.error(k):.2f} %" for k in scores.wrong)
    said = f"{words}, loss {scores.loss:.4f} nats; {scores.samples:,} images, one crop each."
    if known not in (None, data):
        said += f"\n{checkpoint} was trained on {known}, not on {data}."
    emit({**content, "loss": scores.loss, **errors}, said, as_json)


def _trained_on(checkpoint: str) -> str | None:
    """Name of the data that a checkpoint's net was trained on; None if its file does not say."""
    from resid_theory.runtime import store
    from resid_theory.training.saved_nets import find_checkpoint

    if Path(checkpoint).suffix in AUTHORS:
        return None
    about = store.read_checkpoint(find_checkpoint(checkpoint))[1].get("about", {})
    settings = about.get("settings", about)
    name = settings.get("data") if isinstance(settings, dict) else None
    return name if isinstance(name, str) else None


def checkpoints(as_json: Json = False) -> None:
    """List the trained nets that ship with the checkout, with data, recipe and test error."""
    import resid_theory as rt

    nets = rt.training.list_checkpoints()
    if as_json:
        print_json(nets)
        return
    rows = [["name", "data", "epochs", "test error", "test loss", "net"]]
    for name, found in nets.items():
        about, net = found["about"], found["architecture"]
        settings, last = about.get("settings", about), about.get("last", about)  # part, or net
        arguments = ", ".join(f"{k}={v}" for k, v in net["arguments"].items() if k != "generator")
        epochs = rt.Recipe(**settings["recipe"]).epochs if "recipe" in settings else None
        error = last.get("test_error")
        percent = "" if error is None else f"{100 * error:.1f} %"
        numbers = number(epochs), percent, number(last.get("test_loss"))
        rows.append([name, settings.get("data", ""), *numbers, f"{net['builder']}({arguments})"])
    say_table("<<>>><", rows)
