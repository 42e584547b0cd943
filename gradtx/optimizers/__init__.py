"""Named optimizers, each of them a chain: one module per family, in the order of the documentation."""

from gradtx.base.names import public_names as _public_names
from gradtx.optimizers.sgd import *
from gradtx.optimizers.noisy import *
from gradtx.optimizers.optimistic import *
from gradtx.optimizers.momentum import *
from gradtx.optimizers.inertia import *
from gradtx.optimizers.positive_negative import *
from gradtx.optimizers.directed import *
from gradtx.optimizers.adam import *
from gradtx.optimizers.adam_relatives import *
from gradtx.optimizers.classic import *
from gradtx.optimizers.adaptive import *
from gradtx.optimizers.variance import *
from gradtx.optimizers.diagonal import *
from gradtx.optimizers.averaging import *
from gradtx.optimizers.layerwise import *
from gradtx.optimizers.adafactor import *
from gradtx.optimizers.matrix import *
from gradtx.optimizers.muon_relatives import *
from gradtx.optimizers.eigenbasis import *
from gradtx.optimizers.low_rank import *
from gradtx.optimizers.psgd import *
from gradtx.optimizers.second_order import *
from gradtx.optimizers.quasi_newton import *
from gradtx.optimizers.learning_rate_free import *
from gradtx.optimizers.parameter_free import *
from gradtx.optimizers.schedule_free import *
from gradtx.optimizers.ranger import *
from gradtx.optimizers.slow_average import *
from gradtx.optimizers.mars import *
from gradtx.optimizers.modern import *
from gradtx.optimizers.sign import *
from gradtx.optimizers.spam import *

# Type checkers resolve the names through the imports above.
__all__ = _public_names(globals())
