from . import (
    curvature as curvature,
    data as data,
    descent as descent,
    eigen as eigen,
    equivalence as equivalence,
    exchange as exchange,
    identity as identity,
    losses as losses,
    networks as networks,
    plots as plots,
    runtime as runtime,
    stability as stability,
    sweep as sweep,
    theory as theory,
    training as training,
)
from .curvature import (
    curvature_callback as curvature_callback,
    curvature_operator as curvature_operator,
    hessian as hessian,
    hessian_spectrum as hessian_spectrum,
    spectrum as spectrum,
)
from .data import (
    Data as Data,
    Images as Images,
    Moments as Moments,
    Regression as Regression,
    load_image_folder as load_image_folder,
    load_images as load_images,
    load_whitened as load_whitened,
)
from .descent import gradient_descent as gradient_descent
from .eigen import (
    Spectrum as Spectrum,
    eigenpairs as eigenpairs,
    frobenius_norm as frobenius_norm,
    spectral_density as spectral_density,
    trace as trace,
)
from .equivalence import (
    absorb as absorb,
    check_equivalence as check_equivalence,
    conversion as conversion,
    fold as fold,
    shortcuts as shortcuts,
    to_plain as to_plain,
    to_residual as to_residual,
)
from .exchange import (
    load_dirac_file as load_dirac_file,
    save_dirac_file as save_dirac_file,
)
from .identity import (
    IdDecay as IdDecay,
    id_mask as id_mask,
)
from .losses import Loss as Loss
from .networks import (
    ShortcutNet as ShortcutNet,
    diracnet as diracnet,
    diracnet_imagenet as diracnet_imagenet,
    full_net as full_net,
    initialize as initialize,
    preresnet as preresnet,
    resnet_imagenet as resnet_imagenet,
    simplified_net as simplified_net,
)
from .runtime.result import load_result as load_result
from .stability import (
    compare_cushions as compare_cushions,
    dominant_flows as dominant_flows,
    interlayer_cushions as interlayer_cushions,
    layer_cushions as layer_cushions,
)
from .sweep import run_sweep as run_sweep
from .training import (
    Recipe as Recipe,
    evaluate as evaluate,
    load_checkpoint as load_checkpoint,
    resume as resume,
    save_checkpoint as save_checkpoint,
    train as train,
)

__version__: str
