"""Transformations: one module per idea."""

from gradtx._names import public_names as _public_names
from gradtx.transforms.accelerated import *
from gradtx.transforms.accumulators import *
from gradtx.transforms.acprop import *
from gradtx.transforms.adam_hat import *
from gradtx.transforms.adaptive import *
from gradtx.transforms.asgd import *
from gradtx.transforms.atan2 import *
from gradtx.transforms.averaging import *
from gradtx.transforms.bcos import *
from gradtx.transforms.betting import *
from gradtx.transforms.bounded import *
from gradtx.transforms.centralize import *
from gradtx.transforms.clipping import *
from gradtx.transforms.constraints import *
from gradtx.transforms.control import *
from gradtx.transforms.covers import *
from gradtx.transforms.dadapt import *
from gradtx.transforms.decay import *
from gradtx.transforms.delayed import *
from gradtx.transforms.distance import *
from gradtx.transforms.dual_averaging import *
from gradtx.transforms.factored import *
from gradtx.transforms.fisher import *
from gradtx.transforms.focus import *
from gradtx.transforms.gsnr import *
from gradtx.transforms.history import *
from gradtx.transforms.inertia import *
from gradtx.transforms.layer_rms import *
from gradtx.transforms.local_smoothness import *
from gradtx.transforms.majorization import *
from gradtx.transforms.model_based import *
from gradtx.transforms.model_scale import *
from gradtx.transforms.momentum import *
from gradtx.transforms.nadam import *
from gradtx.transforms.nesterov import *
from gradtx.transforms.neurons import *
from gradtx.transforms.noise import *
from gradtx.transforms.optimistic import *
from gradtx.transforms.orthogonalize import *
from gradtx.transforms.polyak import *
from gradtx.transforms.positive_negative import *
from gradtx.transforms.prodigy import *
from gradtx.transforms.projection import *
from gradtx.transforms.quasi_hyperbolic import *
from gradtx.transforms.quasi_newton import *
from gradtx.transforms.ranger21 import *
from gradtx.transforms.rectified import *
from gradtx.transforms.rprop import *
from gradtx.transforms.scale_invariant import *
from gradtx.transforms.scaling import *
from gradtx.transforms.second_order import *
from gradtx.transforms.shampoo import *
from gradtx.transforms.sign import *
from gradtx.transforms.soap import *
from gradtx.transforms.stable_decay import *
from gradtx.transforms.switching import *
from gradtx.transforms.torque import *
from gradtx.transforms.trust_ratio import *
from gradtx.transforms.variance import *

# Type checkers take the names from the imports above.
__all__ = _public_names(globals())  # pyright: ignore[reportUnsupportedDunderAll]
