"""Transformations: one module per idea."""

from gradtx.base.names import public_names as _public_names
from gradtx.transforms.adagrad import *
from gradtx.transforms.adam import *
from gradtx.transforms.adam_variants import *
from gradtx.transforms.adaptive_momentum import *
from gradtx.transforms.averaging import *
from gradtx.transforms.clipping import *
from gradtx.transforms.d_adaptation import *
from gradtx.transforms.hessian import *
from gradtx.transforms.layerwise import *
from gradtx.transforms.low_rank import *
from gradtx.transforms.memory_efficient import *
from gradtx.transforms.momentum import *
from gradtx.transforms.muon import *
from gradtx.transforms.parameter_free import *
from gradtx.transforms.projection import *
from gradtx.transforms.psgd import *
from gradtx.transforms.quasi_newton import *
from gradtx.transforms.scaling import *
from gradtx.transforms.shampoo import *
from gradtx.transforms.sign import *
from gradtx.transforms.variance_reduction import *
from gradtx.transforms.weight_decay import *

# Type checkers take the names from the imports above.
__all__ = _public_names(globals())
