"""What calls take where they are told nothing: a change of it changes results for users."""

import importlib
import inspect

import pytest

# Of each public function, class and method in these rooms.
DEFAULTS = """
curvature.batch_spectra(batch=None, matrix='hessian', parameters=None, batchnorm='eval',
    tolerance=0.001, generator=0)
curvature.curvature_callback(k=1, index=False, matrix='hessian', parameters=None,
    batchnorm='eval', dense=1000, tolerance=0.001, probes=10, steps=100, seed=0, prefix='')
curvature.curvature_operator(matrix='hessian', parameters=None, wrt='parameters',
    batchnorm='eval', weight_decay=0.0, chunk=None, accumulate='float64', engine='auto',
    memory_limit=None, process_group=None, generator=0, draws=1, progress=False)
curvature.CurvatureBlock(whole=None)
curvature.CurvatureBlock.block(columns=None)
curvature.filter_directions(count=1, generator=0)
curvature.hessian(method='auto', batchnorm='eval', weight_decay=0.0, memory_limit=None,
    folder=None, progress=False)
curvature.hessian_cost(method='auto', batchnorm='eval')
curvature.hessian_spectrum(method='auto', batchnorm='eval', weight_decay=0.0, memory_limit=None,
    folder=None, progress=False)
curvature.kfac(matrix='fisher', weight_sharing='expand', parameters=None, chunk=64, generator=0,
    draws=1)
curvature.KroneckerOperator.block(columns=None)
curvature.KroneckerOperator.diagonal(budget=256, generator=0)
curvature.KroneckerOperator.solve(damping=0.0, tolerance=1e-06, max_products=1000)
curvature.layer_table(probes=16, tolerance=0.001, generator=0)
curvature.spectrum(loss=None, data=None, matrix=None, weight_decay=0.0, k=5, density=False,
    method='auto', percentile=10.0, tolerance=0.001, missed=0.001, probes=10, steps=100,
    generator=0, folder=None, progress=False)
curvature.zero_point_of_net(branches=None)
data.augment(pad=4, padding='zeros')
data.Batch(first=0, is_pair=True, sample_weight=None, place=<factory>)
data.Batch.call(memory_format=torch.preserve_format)
data.Batch.try_call(memory_format=torch.preserve_format)
data.Data(sample_weight=None)
data.Data.chunks(title=None)
data.Data.of(like=None, pairs=True, targets=True, sample_weight=None)
data.draw_crops(pad=4)
data.Images(mean=(0.0,), std=(1.0,), brightest=255.0, classes=())
data.load_cifar10(split='train', samples=None, progress=True)
data.load_image_folder(size=None, shorter=None)
data.load_images(name='digits', split='train', samples=None, size=32, channels=3, progress=True)
data.load_mnist(split='train', progress=True)
data.load_whitened(components=10, samples=None, rank='error', progress=True)
data.whiten(rank='error')
descent.at_loss(logarithmic=True)
descent.gradient_descent(record_every=1, keep=(), limit=None)
descent.hessian_trajectory(row=())
eigen.as_operator(argument='A')
eigen.Density.quantile(magnitude=False)
eigen.Density.smoothed(grid=None, width=None)
eigen.Eigenpairs(accepted_miss=0.001)
eigen.eigenpairs(k=5, which='largest', block=None, tolerance=0.001, generator=0,
    max_products=None, capacity=None, verify=True, missed=0.001, folder=None, progress=False)
eigen.Estimate.exact(bound=0.0)
eigen.frobenius_norm(budget=60, generator=0, folder=None, progress=False)
eigen.Identity(dtype=torch.float64, device='cpu')
eigen.LinearOperator(row_shapes=None, column_shapes=None)
eigen.LinearOperator.block(columns=None)
eigen.LinearOperator.diagonal(budget=256, generator=0)
eigen.LinearOperator.solve(damping=0.0, tolerance=1e-06, max_products=1000)
eigen.OperatorSum.block(columns=None)
eigen.spectral_density(probes=10, steps=100, deflate=None, generator=0, folder=None,
    progress=False)
eigen.spectral_estimates(k=5, density=True, percentile=10.0, tolerance=0.001, missed=0.001,
    probes=10, steps=100, generator=0, matrix='operator', samples=None, reason='asked for',
    folder=None, progress=False)
eigen.SpectralStatistics.percentile_condition_number(percent=10.0)
eigen.Spectrum(resolution=None)
eigen.Spectrum.distinct(tolerance=1e-09)
eigen.Spectrum.of(multiplicities=None, resolution=None, error=0.0)
eigen.SpectrumReport(notes=())
eigen.SpectrumReport.of(k=5, percentile=10.0, matrix='hessian', samples=None, reason='all
    eigenvalues are known', pairs=None, error=None)
eigen.trace(budget=60, generator=0, folder=None, progress=False)
equivalence.absorb(sample=None, blocks=None)
equivalence.check_equivalence(loss='square', steps=0, optimizer=None, correct=True)
equivalence.Gap(by_output=<factory>, by_parameter=<factory>, notes=())
equivalence.shortcuts(sample=None, blocks=None)
equivalence.to_residual(layers=None, rule=None, explicit=False)
identity.AddIdentity(rule='repeat')
identity.DiracWeight(normalize=True)
identity.DominantWeight(dense=0)
identity.id_entries(rule='repeat', padding='same', dilation=1, groups=1)
identity.IdDecay(decoupled=None)
identity.identity_kernel(rule='repeat', padding='same', dilation=1, groups=1, dtype=None,
    device=None)
identity.identity_map(stride=1, rule='repeat')
identity.identity_of(rule='repeat')
identity.initialize_layer(generator=0, std=1.0)
identity.trained_weight(name='')
identity.with_identity(rule='repeat', normalize=True, dense=0)
losses.Bernoulli(total=False)
losses.Categorical(logits=True, ignored=-100, axis=1, total=False)
losses.check_scalar(gradient=True)
losses.Gaussian(precision=1.0, total=False)
losses.Loss(of='output', name=None, targets='any', weights=None, sums=False, identity=False,
    null_direction=False, likelihood=None)
networks.Block(shortcut=None, before=None, after=None)
networks.diracnet(width=1, identity='dirac', classes=10, normalize=True, init='kaiming',
    bn_init='ones', generator=0)
networks.diracnet_imagenet(identity='dirac', classes=1000, normalize=True, init='kaiming',
    bn_init='ones', generator=0)
networks.draw_weights(generator=0, scale=0.01, dtype=torch.float64)
networks.full_net(shortcut=True, doubling='pad', classes=10, generator=0)
networks.initialize(generator=0, scale=0.01)
networks.LayoutNet(pre=None, mid=None, post=None, norm=None, norm_at='branch', bias=False,
    last_bias=False, hidden=None, dtype=torch.float64)
networks.preresnet(width=1, shortcut_depth=2, identity='plain', classes=10, std=0.01, generator=0)
networks.resnet_imagenet(classes=1000, generator=0)
networks.ShortcutNet(shortcut=True, pre=None, mid=None, post=None, hidden=None, bias=False,
    dtype=torch.float64, device=None)
networks.simplified_net(identity='plain', classes=10, init=None, generator=0)
plots.by_depth(predicted=None, ax=None)
plots.curve(column=None, ax=None)
plots.cushion_histogram(bins=40, ax=None)
plots.cushion_violins(ax=None)
plots.figure(rows=1, columns=1, panel=(4.8, 3.9))
plots.flow_curve(errors=None, predicted=None, xlabel='layer', ax=None)
plots.folded_filters(limit=None, ax=None, title=None)
plots.hessian_pattern(block=None, ax=None, title=None)
plots.interpolation_path(ax=None, title=None)
plots.png(dpi=150)
plots.spectral_density(exact=None, scale='linear', width=None, unit='loss / weight²', ax=None)
plots.spectrum(predicted=None, label=None, color=None, unit='loss / weight²', ax=None)
plots.zero_point(drawing=None)
stability.activation_contraction(batch=256, device=None)
stability.activation_noise(start=0, levels=(0.001, 0.01, 0.1, 1.0), draws=10, probes=30,
    generator=0, batch=64, device=None, progress=False)
stability.block_cushions(blocks=None, kappa='spatial', method='auto', probes=30, generator=0,
    batchnorm='eval', batch=64, device=None, progress=False)
stability.compare_cushions(confidence=0.95, resamples=2000, generator=0)
stability.compression_bound(probes=10, generator=0, batch=64, device=None, progress=False)
stability.CompressionBound(notes=())
stability.Cushions(notes=())
stability.dominant_flows(loss='cross_entropy', mode='sap', statistic='mean', rule=None,
    batch=None, progress=False)
stability.feature_gradients(loss='cross_entropy', batch=256)
stability.Flows(notes=())
stability.interlayer_cushions(stop=None, kappa='spatial', method='auto', probes=30, generator=0,
    batchnorm='eval', batch=64, device=None, progress=False)
stability.interlayer_smoothness(start=0, epsilon=0.1, draws=10, generator=0, batch=64,
    device=None)
stability.InterlayerCushions(notes=())
stability.InterlayerCushions.intervals(confidence=0.95)
stability.layer_cushions(layers=None, norm='kernel', weight='identity_removed',
    include_bias=False, batchnorm='eval', batch=128, device=None, progress=False)
stability.NoiseCurves(notes=())
stability.Smoothness.rho(delta=0.05)
stability.subactivation_paths(rule=None)
stability.weight_noise(layers=None, levels=(0.01, 0.05, 0.1), relative=False, draws=5,
    generator=0, batch=256, device=None, progress=False)
sweep.load_results(arrays=False)
sweep.run_sweep(executor='process', workers=None, shard=None, retries=3, device='cpu', gpus=0.0,
    progress=True, on_report=None)
sweep.Task(seed=0)
theory.BlockToeplitz.predicted_condition_number(percent=10.0)
theory.Branch(eps=None)
theory.Branch.attention(kv_heads=None, head_width=None, attended=None, causal=False, bias=False,
    name='attention')
theory.Branch.mlp(slope=1.0, gated=False, bias=False, name='mlp')
theory.effective_variance(weight_variance=1.0, signal=1.0)
theory.exceedance(correlation=0.0)
theory.interpolate(mode='exact', allocation='greedy', braces=True, tolerance=None, noise=None,
    draws=32, generator=0)
theory.Layout(branch=1, name='layout')
theory.Layout.averaged(branch=2)
theory.Layout.dense(branch=2, name='dense')
theory.Layout.hyper_connections(start=None, readout='mean', branch=2, name='hyper-connections')
theory.Layout.path(seeing=None, moved=Layout.<lambda>)
theory.Layout.plain(branch=1)
theory.Layout.scaled(skip=1.0, scale=1.0, branch=2, name='scaled')
theory.Layout.shortcut(branch=2)
theory.least_norm(tolerance=0.0)
theory.logistic(exponent='minimax')
theory.lyapunov_exponents(init='xavier', scale=0.01)
theory.move_column(direction='column')
theory.output_growth(shortcut=True, mid=None, scale=0.01)
theory.path_around(short_of=0.0)
theory.transformer_zero_point(shift=None, biases=0, gradient=0.0)
theory.TransformerPoint(shifts=None, gradient=0.0, parameters=(), zeroed=(), notes=())
theory.TrivialFlow(signal=1.0, identity=True, persistent=False)
theory.TrivialFlow.simulate(generator=0)
theory.Unit(shortcut=None)
theory.zero_point(blocks=None, shortcut_depth=None, layout=None, loss='square', pre=None,
    mid=None, post=None, hidden=None, bias=False, last_bias=False, norm=None, norm_at='branch',
    input_map=None, output_map=None, kink='line', exact=False)
theory.ZeroPoint(notes=())
theory.ZeroPoint.percentile_condition_number(percent=10.0)
training.evaluate(loss='cross_entropy', top=None, batch=256, progress=False)
training.Evaluation(notes=())
training.Evaluation.error(k=1)
training.load_checkpoint(net=None)
training.resume(net=None, device='auto', test=None, stop=None, progress=True, process_group=None)
training.Run.column(net=0)
training.save_checkpoint(architecture=None, about=None)
training.train(device='auto', out=None, test=None, callbacks=(), every=None, correction=None,
    save_seconds=60.0, stop=None, progress=True, process_group=None)
"""


def functions(module):
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) and issubclass(value, Exception) or not callable(value):
            continue
        yield name, value
        for part in vars(value) if inspect.isclass(value) else ():
            if not part.startswith("_") and callable(getattr(value, part)):
                yield f"{name}.{part}", getattr(value, part)


def shown(room):
    for name, function in functions(importlib.import_module(f"resid_theory.{room}")):
        parameters = inspect.signature(function).parameters.values()
        given = [
            f"{p.name}={getattr(p.default, '__qualname__', repr(p.default))}"
            for p in parameters if p.default is not p.empty
        ]  # fmt: skip
        if given:
            yield f"{room}.{name}({', '.join(given)})"


KNOWN = DEFAULTS.replace("\n    ", " ").strip().splitlines()


@pytest.mark.parametrize("room", dict.fromkeys(line.partition(".")[0] for line in KNOWN))
def test_defaults_are_those_that_were_published(room):
    assert sorted(shown(room)) == sorted(line for line in KNOWN if line.startswith(f"{room}."))
