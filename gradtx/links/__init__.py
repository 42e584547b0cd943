"""Links that belong to no method: bounds, decay, rates, averages, projections, measurements."""

from gradtx.base.names import public_names as _public_names
from gradtx.links.averaging import *
from gradtx.links.caution import *
from gradtx.links.clipping import *
from gradtx.links.decay import *
from gradtx.links.factored import *
from gradtx.links.gradients import *
from gradtx.links.lmo import *
from gradtx.links.manifolds import *
from gradtx.links.momentum import *
from gradtx.links.noise import *
from gradtx.links.orthogonal import *
from gradtx.links.pairs import *
from gradtx.links.projection import *
from gradtx.links.record import *
from gradtx.links.scaling import *
from gradtx.links.width import *

# Type checkers take the names from the imports above.
__all__ = _public_names(globals())
