"""Slow, obvious reference implementations; nothing of the library is imported here."""

import torch
from torch import Tensor


def noise(*shape, seed=0, device=None):
    """Standard normal numbers that a seed names."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def jacobian(values, parameters):
    """Derivatives of a vector, one gradient for every entry, all in one batch."""
    units = torch.eye(len(values)).to(values)
    if not values.requires_grad:
        return units.new_zeros(len(values), sum(p.numel() for p in parameters))
    rows = torch.autograd.grad(
        values, parameters, units, is_grads_batched=True,
        retain_graph=True, materialize_grads=True,
    )  # fmt: skip
    # What does not depend on a parameter at all has no batch.
    rows = [row.expand(len(values), *p.shape) for row, p in zip(rows, parameters, strict=True)]
    return torch.cat([row.reshape(len(values), -1) for row in rows], dim=1)


def hessian_by_nested_gradients(loss, parameters):
    """Hessian of a scalar, one gradient of a gradient for every parameter."""
    grads = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    return jacobian(torch.cat([g.reshape(-1) for g in grads]), parameters)


def shortcut_net(layers, biases, x, *, n, shortcut, pre, mid, post):
    """Definition 2 of "Demystifying ResNet", one matrix at a time; samples are columns inside."""
    z = x.T
    for block in range(len(layers) // n):
        branch = pre(z)
        for position in range(n):
            branch = layers[block * n + position] @ branch
            if position == 0 and biases is not None:
                branch = branch + biases[block][:, None]
            if position < n - 1:
                branch = mid(branch)
        branch = post(branch)
        z = z + branch if shortcut else branch
    return z.T


def square_loss(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared error, summed over outputs, mean over samples."""
    total = 0.0
    for one, other in zip(output, target, strict=True):
        total = total + 0.5 * ((one - other) ** 2).sum()
    return total / len(output)


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy from its definition; targets are probabilities."""
    total = 0.0
    for logits, probabilities in zip(output, target, strict=True):
        total = total - (probabilities * (logits - torch.logsumexp(logits, 0))).sum()
    return total / len(output)


def block_toeplitz(diagonal: Tensor, lower: Tensor, blocks: int) -> Tensor:
    """The matrix of equation (10), block by block."""
    rows = []
    for r in range(blocks):
        row = []
        for c in range(blocks):
            row.append(diagonal if r == c else lower if r > c else lower.T)
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows)


def identity_kernel_by_loops(shape, *, rule, taps, groups=1):
    """A one where output o reads its own input at the given tap; groups are nets of their own."""
    kernel = torch.zeros(*shape)
    outputs, inputs = shape[0] // groups, shape[1]
    for group in range(groups):
        for o in range(outputs):
            for i in range(inputs):
                if o == i or (rule == "repeat" and o % inputs == i):
                    kernel[(group * outputs + o, i, *taps)] = 1.0
    return kernel


def identity_shortcut(x, channels, stride=1, groups=1):
    """Id(x) as the residual paper draws it: every stride-th position, channels again and again."""
    for axis in range(2, x.dim()):
        keep = torch.arange(0, x.shape[axis], stride, device=x.device)
        x = x.index_select(axis, keep)
    parts = []
    for chunk in x.chunk(groups, dim=1):
        parts += [chunk] * (channels // x.shape[1])
    return torch.cat(parts, dim=1)


def residual_layer(x, kernel, bias, *, stride=1, padding=0, dilation=1, groups=1):
    """conv(x, K) + b + Id(x), three terms; a matrix where the kernel has no axes."""
    if kernel.dim() == 2:
        return x @ kernel.T + bias + torch.cat([x] * (kernel.shape[0] // x.shape[1]), dim=1)
    convolve = [torch.conv1d, torch.conv2d, torch.conv3d][kernel.dim() - 3]
    out = convolve(x, kernel, None, stride, padding, dilation, groups)
    out = out + bias.view(-1, *[1] * (kernel.dim() - 2))
    shortcut = identity_shortcut(x, kernel.shape[0], stride, groups)
    for axis in range(2, x.dim()):
        shortcut = shortcut.narrow(axis, 0, out.shape[axis])
    return out + shortcut


def simplified_residual_net(x, stem, blocks, classifier):
    """The simplified residual net, block by block; every argument a (weight, bias) or a list."""
    z = torch.relu(torch.conv2d(x, *stem, padding=1))
    for kernel, bias in blocks:
        stride = kernel.shape[0] // kernel.shape[1]
        z = torch.relu(residual_layer(z, kernel, bias, stride=stride, padding=1))
    weight, bias = classifier
    return z.mean((2, 3)) @ weight.T + bias


def dirac_weight(v, a, b):
    """Equation (5), filter by filter; equation (4) where b is None."""
    filters = []
    for o in range(v.shape[0]):
        identity = torch.zeros_like(v[o])
        if o < v.shape[1]:
            identity[(o, *[side // 2 for side in v.shape[2:]])] = 1.0
        removed = v[o] if b is None else b[o] * v[o] / (v[o] ** 2).sum().sqrt()
        filters.append(a[o] * identity + removed)
    return torch.stack(filters)


def batch_norm(x, scale, shift, mean, variance):
    """BatchNorm in eval mode from its definition."""
    columns = [t[None, :, None, None] for t in (scale, shift, mean, variance)]
    return columns[0] * (x - columns[2]) / (columns[3] + 1e-5).sqrt() + columns[1]


def diracnet(x, stem, groups, classifier, *, imagenet=False):
    """A DiracNet in eval mode: stem (kernel, norm), groups of (v, a, b, norm), (weight, bias)."""
    kernel, norm = stem
    stride = 2 if imagenet else 1
    z = batch_norm(torch.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2), *norm)
    z = torch.max_pool2d(z, 3, 2, 1) if imagenet else torch.relu(z)
    for number, group in enumerate(groups):
        if number > 0:
            z = torch.max_pool2d(z, 2)
        for v, a, b, norm in group:
            weight = v if a is None else dirac_weight(v, a, b)
            z = batch_norm(torch.conv2d(torch.relu(z), weight, padding=1), *norm)
    weight, bias = classifier
    return torch.relu(z).mean((2, 3)) @ weight.T + bias


def gauss_newton_by_jacobians(output, loss, parameters):
    """J^T C J with both factors written out; ``loss`` takes the outputs."""
    point = output.detach().clone().requires_grad_()
    inner = jacobian(output.reshape(-1), parameters)
    return inner.T @ hessian_by_nested_gradients(loss(point), [point]) @ inner


def fisher_by_samples(losses, parameters):
    """Mean of g g^T over samples' gradients, one backward pass each."""
    size = sum(p.numel() for p in parameters)
    total = torch.zeros(size, size, dtype=parameters[0].dtype)
    for loss in losses:
        parts = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        gradient = torch.cat([part.reshape(-1) for part in parts])
        total += torch.outer(gradient, gradient)
    return total / len(losses)


def lanczos_quadrature(matrix, start, steps):
    """Nodes and weights of the Gauss quadrature of one probe: textbook Lanczos, twice reorthogonal.

    Golub & Meurant 2010, "Matrices, Moments and Quadrature with Applications", Chapter 4.
    """
    basis, alphas, betas = [start / start.norm()], [], []
    for _ in range(steps):
        w = matrix @ basis[-1]
        alphas.append(torch.dot(basis[-1], w))
        for _ in range(2):
            for q in basis:
                w = w - torch.dot(q, w) * q
        betas.append(w.norm())
        basis.append(w / w.norm())
    tridiagonal = torch.diag(torch.stack(alphas))
    for i, beta in enumerate(betas[:-1]):
        tridiagonal[i, i + 1] = tridiagonal[i + 1, i] = beta
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    return nodes, vectors[0] ** 2


def dirac_params(layers, *, width=1, classes=10, imagenet=False, generator=None, dtype=None):
    """A flat dict under the names of the DiracNet authors, random numbers inside."""
    channels = [64, 128, 256, 512] if imagenet else [16 * width, 32 * width, 64 * width]
    side = 7 if imagenet else 3

    def normal(*shape):
        scale = (2 / (shape[1] * shape[-1] ** 2)) ** 0.5 if len(shape) == 4 else 0.1
        return scale * torch.randn(*shape, generator=generator, dtype=dtype)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=dtype)

    def norm(base, count):
        return {
            f"{base}.weight": uniform(0.5, 1.5, count),
            f"{base}.bias": normal(count),
            f"{base}.running_mean": normal(count),
            f"{base}.running_var": uniform(0.5, 2, count),
        }

    params = {"conv": normal(channels[0], 3, side, side), **norm("bn", channels[0])}
    inputs = channels[0]
    for number, (outputs, count) in enumerate(zip(channels, layers, strict=True)):
        for position in range(count):
            base = f"group{number}.block{position}"
            params[f"{base}.conv"] = normal(outputs, inputs, 3, 3)
            params[f"{base}.alpha"] = uniform(0.5, 1.5, outputs)
            params[f"{base}.beta"] = uniform(0.05, 0.5, outputs)
            params |= norm(f"{base}.bn", outputs)
            eye = torch.zeros(outputs, inputs, 3, 3, dtype=dtype)
            eye[:, :, 1, 1].fill_diagonal_(1.0)
            params[f"eye{outputs}_{inputs}_3_3"] = eye
            inputs = outputs
    params["fc.weight"] = normal(classes, inputs)
    params["fc.bias"] = normal(classes)
    return params


def dirac_function(x, params):
    """The authors' function of such a dict, from the paper: one line a layer, eq. (5) inside."""

    def normed(z, base):
        parts = ("weight", "bias", "running_mean", "running_var")
        return batch_norm(z, *(params[f"{base}.{part}"] for part in parts))

    imagenet = params["conv"].shape[-1] == 7
    z = torch.conv2d(x, params["conv"], None, 2 if imagenet else 1, 3 if imagenet else 1)
    z = normed(z, "bn")
    z = torch.max_pool2d(z, 3, 2, 1) if imagenet else torch.relu(z)
    group = 0
    while f"group{group}.block0.conv" in params:
        z = z if group == 0 else torch.max_pool2d(z, 2)
        block = 0
        while f"group{group}.block{block}.conv" in params:
            base = f"group{group}.block{block}"
            v = params[f"{base}.conv"]
            a, b = (params[f"{base}.{name}"][:, None, None, None] for name in ("alpha", "beta"))
            length = (v**2).sum((1, 2, 3), keepdim=True).sqrt()
            eye = params["eye" + "_".join(str(side) for side in v.shape)]
            weight = a * eye + b * v / length
            z = normed(torch.conv2d(torch.relu(z), weight, padding=1), f"{base}.bn")
            block += 1
        group += 1
    return torch.relu(z).mean((2, 3)) @ params["fc.weight"].T + params["fc.bias"]


def folded_dirac_function(x, tensors):
    """The authors' folded net from its file: convolutions with bias, ReLU before each but one."""

    def convolve(z, base, **geometry):
        base = f"features.{base}conv"
        return torch.conv2d(z, tensors[f"{base}.weight"], tensors[f"{base}.bias"], **geometry)

    imagenet = tensors["features.conv.weight"].shape[-1] == 7
    z = convolve(x, "", stride=2, padding=3) if imagenet else convolve(x, "", padding=1)
    z = torch.max_pool2d(z, 3, 2, 1) if imagenet else z
    group = 0
    while f"features.group{group}.block0.conv.weight" in tensors:
        z = z if group == 0 else torch.max_pool2d(z, 2)
        block = 0
        while f"features.group{group}.block{block}.conv.weight" in tensors:
            z = convolve(torch.relu(z), f"group{group}.block{block}.", padding=1)
            block += 1
        group += 1
    return torch.relu(z).mean((2, 3)) @ tensors["fc.weight"].T + tensors["fc.bias"]
