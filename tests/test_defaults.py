"""What calls take where they are told nothing: a change of it changes results for users."""

import importlib
import inspect

import pytest

# Of each public function, and of the methods of each public class, in these rooms.
DEFAULTS = """
stability.InterlayerCushions.intervals(confidence=0.95)
stability.Smoothness.rho(delta=0.05)
stability.activation_contraction(batch=256, device=None)
stability.activation_noise(start=0, levels=(0.001, 0.01, 0.1, 1.0), draws=10, probes=30,
    generator=0, batch=64, device=None, progress=False)
stability.block_cushions(blocks=None, kappa='spatial', method='auto', probes=30, generator=0,
    batchnorm='eval', batch=64, device=None, progress=False)
stability.compare_cushions(confidence=0.95, resamples=2000, generator=0)
stability.compression_bound(probes=10, generator=0, batch=64, device=None, progress=False)
stability.dominant_flows(loss='cross_entropy', mode='sap', statistic='mean', rule=None,
    batch=None, progress=False)
stability.feature_gradients(loss='cross_entropy', batch=256)
stability.interlayer_cushions(stop=None, kappa='spatial', method='auto', probes=30, generator=0,
    batchnorm='eval', batch=64, device=None, progress=False)
stability.interlayer_smoothness(start=0, epsilon=0.1, draws=10, generator=0, batch=64,
    device=None)
stability.layer_cushions(layers=None, norm='kernel', weight='identity_removed',
    include_bias=False, batchnorm='eval', batch=128, device=None, progress=False)
stability.subactivation_paths(rule=None)
stability.weight_noise(layers=None, levels=(0.01, 0.05, 0.1), relative=False, draws=5,
    generator=0, batch=256, device=None, progress=False)
data.Batch.call(memory_format=torch.preserve_format)
data.Batch.try_call(memory_format=torch.preserve_format)
data.Data.of(like=None, pairs=True, targets=True, sample_weight=None)
data.Data.chunks(title=None)
data.augment(pad=4, padding='zeros')
data.draw_crops(pad=4)
data.load_cifar10(split='train', samples=None, progress=True)
data.load_image_folder(size=None, shorter=None)
data.load_images(name='digits', split='train', samples=None, size=32, channels=3, progress=True)
data.load_mnist(split='train', progress=True)
data.load_whitened(components=10, samples=None, rank='error', progress=True)
data.whiten(rank='error')
training.Evaluation.error(k=1)
training.Run.column(net=0)
training.evaluate(loss='cross_entropy', top=None, batch=256, progress=False)
training.load_checkpoint(net=None)
training.resume(net=None, device='auto', test=None, stop=None, progress=True, process_group=None)
training.save_checkpoint(architecture=None, about=None)
training.train(device='auto', out=None, test=None, callbacks=(), every=None, correction=None,
    save_seconds=60.0, stop=None, progress=True, process_group=None)
"""


def functions(module):
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            parts = [part for part in vars(value) if not part.startswith("_")]
            for part in parts:
                if inspect.isfunction(getattr(value, part)):
                    yield f"{name}.{part}", getattr(value, part)


def shown(room):
    for name, function in functions(importlib.import_module(f"resid_theory.{room}")):
        parameters = inspect.signature(function).parameters.values()
        given = [f"{p.name}={p.default!r}" for p in parameters if p.default is not p.empty]
        if given:
            yield f"{room}.{name}({', '.join(given)})"


@pytest.mark.parametrize("room", ["data", "stability", "training"])
def test_defaults_are_those_that_were_published(room):
    known = DEFAULTS.replace("\n    ", " ").splitlines()
    assert sorted(shown(room)) == sorted(line for line in known if line.startswith(f"{room}."))
