from . import (
    curvature as curvature,
)
from . import (
    data as data,
)
from . import (
    descent as descent,
)
from . import (
    eigen as eigen,
)
from . import (
    equivalence as equivalence,
)
from . import (
    exchange as exchange,
)
from . import (
    identity as identity,
)
from . import (
    losses as losses,
)
from . import (
    networks as networks,
)
from . import (
    plots as plots,
)
from . import (
    runtime as runtime,
)
from . import (
    stability as stability,
)
from . import (
    sweep as sweep,
)
from . import (
    theory as theory,
)
from . import (
    training as training,
)
from .curvature import (
    curvature_callback as curvature_callback,
)
from .curvature import (
    curvature_operator as curvature_operator,
)
from .curvature import (
    hessian as hessian,
)
from .curvature import (
    hessian_spectrum as hessian_spectrum,
)
from .curvature import (
    spectrum as spectrum,
)
from .data import (
    Data as Data,
)
from .data import (
    Images as Images,
)
from .data import (
    Moments as Moments,
)
from .data import (
    Regression as Regression,
)
from .data import (
    load_image_folder as load_image_folder,
)
from .data import (
    load_images as load_images,
)
from .data import (
    load_whitened as load_whitened,
)
from .descent import (
    gradient_descent as gradient_descent,
)
from .eigen import (
    Spectrum as Spectrum,
)
from .eigen import (
    eigenpairs as eigenpairs,
)
from .eigen import (
    frobenius_norm as frobenius_norm,
)
from .eigen import (
    spectral_density as spectral_density,
)
from .eigen import (
    trace as trace,
)
from .equivalence import (
    absorb as absorb,
)
from .equivalence import (
    check_equivalence as check_equivalence,
)
from .equivalence import (
    conversion as conversion,
)
from .equivalence import (
    fold as fold,
)
from .equivalence import (
    shortcuts as shortcuts,
)
from .equivalence import (
    to_plain as to_plain,
)
from .equivalence import (
    to_residual as to_residual,
)
from .exchange import (
    load_dirac_file as load_dirac_file,
)
from .exchange import (
    save_dirac_file as save_dirac_file,
)
from .identity import (
    IdDecay as IdDecay,
)
from .identity import (
    id_mask as id_mask,
)
from .losses import (
    Loss as Loss,
)
from .networks import (
    ShortcutNet as ShortcutNet,
)
from .networks import (
    diracnet as diracnet,
)
from .networks import (
    diracnet_imagenet as diracnet_imagenet,
)
from .networks import (
    full_net as full_net,
)
from .networks import (
    initialize as initialize,
)
from .networks import (
    preresnet as preresnet,
)
from .networks import (
    resnet_imagenet as resnet_imagenet,
)
from .networks import (
    simplified_net as simplified_net,
)
from .runtime.result import (
    load_result as load_result,
)
from .stability import (
    compare_cushions as compare_cushions,
)
from .stability import (
    dominant_flows as dominant_flows,
)
from .stability import (
    interlayer_cushions as interlayer_cushions,
)
from .stability import (
    layer_cushions as layer_cushions,
)
from .sweep import (
    run_sweep as run_sweep,
)
from .training import (
    Recipe as Recipe,
)
from .training import (
    evaluate as evaluate,
)
from .training import (
    load_checkpoint as load_checkpoint,
)
from .training import (
    resume as resume,
)
from .training import (
    save_checkpoint as save_checkpoint,
)
from .training import (
    train as train,
)

__version__: str
