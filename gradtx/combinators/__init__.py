"""Combinators: transformations around transformations."""

from gradtx.combinators.clocks import *
from gradtx.combinators.frame import *
from gradtx.combinators.graft import *
from gradtx.combinators.lookahead import *
from gradtx.combinators.restarts import *
from gradtx.combinators.schedule_free import *
from gradtx.combinators.selection import *
from gradtx.combinators.sharpness import *
from gradtx.combinators.tuners import *
