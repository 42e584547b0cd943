"""Algorithms: a module for each family; the links first, then the optimizers made of them."""

from gradtx.base.names import public_names as _public_names
from gradtx.algorithms.sgd import *
from gradtx.algorithms.momentum import *
from gradtx.algorithms.sign import *
from gradtx.algorithms.adam import *
from gradtx.algorithms.radam import *
from gradtx.algorithms.adam_variants import *
from gradtx.algorithms.adam_rates import *
from gradtx.algorithms.adam_momentum import *
from gradtx.algorithms.adam_stable import *
from gradtx.algorithms.adam_delayed import *
from gradtx.algorithms.adagrad import *
from gradtx.algorithms.layerwise import *
from gradtx.algorithms.memory_efficient import *
from gradtx.algorithms.low_rank import *
from gradtx.algorithms.muon import *
from gradtx.algorithms.muon_variants import *
from gradtx.algorithms.scion import *
from gradtx.algorithms.manifolds import *
from gradtx.algorithms.shampoo import *
from gradtx.algorithms.soap import *
from gradtx.algorithms.psgd import *
from gradtx.algorithms.pairs import *
from gradtx.algorithms.quasi_newton import *
from gradtx.algorithms.d_adaptation import *
from gradtx.algorithms.parameter_free import *
from gradtx.algorithms.polyak import *
from gradtx.algorithms.averaging import *
from gradtx.algorithms.schedule_free import *
from gradtx.algorithms.variance_reduction import *
from gradtx.algorithms.clipping import *
from gradtx.algorithms.weight_decay import *
from gradtx.algorithms.width import *
from gradtx.algorithms.projection import *
from gradtx.algorithms.scaling import *

# Type checkers take the names from the imports above.
__all__ = _public_names(globals())
