"""Arguments with which the tests call the factories of the library, and which of their results are determined."""

import torch

import gradtx


def _halves(x):
    return x.tensor_split(2) if x.ndim else [x]


def _rejoined(halves):
    return halves[0] if len(halves) == 1 else torch.cat(list(halves))


def _size(updates):
    return sum(leaf.square().sum() for leaf in updates.values())


def _slowing(state, norm):
    usual = 0.9 * state["scale"] + 0.1 * norm
    return 1 / (1 + usual), {"scale": usual}


def _odd(step):
    return step % 2 == 1


def _bounded(tree):
    # Each leaf alone: `accumulate` shows rules for whole trees a leaf without a gradient as zeros.
    return {name: leaf.tanh() for name, leaf in tree.items()}


# Early refreshes of the bases, and an eps far above rounding, because it divides entries that the rotation makes 0.
BASES = {"precondition_frequency": 2, "eps": 0.1}
RANKS = {"rank": 2, "update_proj_gap": 2, "eps": 0.1}
# Roots that are not due at every step, of matrices far from singular, which rounding barely changes.
ROOTS = {"preconditioning_compute_steps": 2, "matrix_eps": 0.1}
# Small blocks as well, so that a few steps on small leaves cover the whole rule; momenta that do not diverge.
BLOCKS = {"betas": (0.5, 0.9), **ROOTS, "block_size": 3, "start_preconditioning_step": 2, "graft_type": "rmsprop"}

DISTRIBUTED = {
    "betas": (0.5, 0.9),
    "eps": 0.1,
    "max_preconditioner_dim": 3,
    "target_dims": 2,
    "precondition_frequency": 2,
    "start_preconditioning_step": 3,
    "graft_beta2": 0.9,
}
# The leaves of links for pairs: of rank 3, and of 4 rows and 4 columns that two heads share.
PAIR = {"partner": (4, 3), "matrix": (3, 4)}
PAIRS = {"partner": "matrix"}

# The search for a tangent direction has 66 iterations of as many steps, and a program of the default takes seconds.
SHORT_SEARCH = {"coefs": "newton_schulz", "steps": 1, "power_steps": 2}

# By the name of the factory; for a combinator, a function of an inner transformation. Others need no arguments.
EXAMPLES = {
    "accsgd": {"lr": 0.1},
    "adago": lambda tx: {"fallback": tx},
    "aro": lambda tx: {"fallback": tx},
    "asgo": lambda tx: {"eps": 0.1, "fallback": tx},
    "cosmos": lambda tx: {"rank": 2, "eps": 0.1, "fallback": tx},
    "mano": lambda tx: {"fallback": tx},
    "namo_d": lambda tx: {"fallback": tx},
    "accumulate": lambda tx: {"tx": tx, "every": 2},
    "adai": {"lr": 0.1},
    "adamuon": lambda tx: {"fallback": tx},
    "add_decayed_weights": {"weight_decay": 0.1},
    "add_noise": {"eta": 0.25, "gamma": 0.55, "seed": 0},
    "aggmo": {"lr": 0.1},
    "amplify_slow_gradients_window": {"window_size": 2},
    "apollo": {"rebound": "belief", "warmup": 3},
    "apollo_low_rank": RANKS,
    "asam": lambda tx: {"base": tx},
    "blend_by_agreement": lambda tx: {"tx": tx, "least": -0.9},
    "apply_if": lambda tx: {"tx": tx, "condition": _odd},
    "aurora": lambda tx: {"fallback": tx},
    "blocks": lambda tx: {"tx": tx, "view": (_halves, _rejoined)},
    "bound_norm": {"p_bound": 1.5},
    "cautious_decay_after": lambda tx: {"tx": tx, "weight_decay": 0.1, "lr": 0.1},
    "clip_by_global_norm": {"max_norm": 1.0},
    "clip_by_norm": {"max_norm": 1.0},
    "clip_by_value": {"max_value": 0.5},
    "clip_spikes": {"every": 5, "clip_after": 1},
    "conda": {"update_proj_gap": 2, "eps": 0.1},
    "contra_muon": lambda tx: {"fallback": tx},
    "couple_pairs": {"pairs": PAIRS, "heads": 2, "damping": 0.1},
    "dadapt_adam": {"lr": 0.3},
    "differentially_private_aggregate": {"l2_norm_clip": 1.0, "noise_multiplier": 0.5},
    "dion": lambda tx: {"rank": 2, "fallback": tx},
    "dion2": lambda tx: {"fallback": tx},
    "distributed_shampoo": DISTRIBUTED,
    "ema": {"decay": 0.9},
    "dpsgd": {"lr": 0.1, "l2_norm_clip": 1.0, "noise_multiplier": 0.5},
    "estimate_gradient": {"scale": 0.1},
    "equilibrate": {"clip": 2.0},
    "fira": RANKS,
    "freeze": lambda tx: {"where": "*"},
    "friendly_sam": lambda tx: {"base": tx},
    "galore": RANKS,
    "graft": lambda tx: {"direction": tx, "magnitude": tx},
    "gsam": lambda tx: {"base": tx},
    "hold_until": {"t0": 3},
    "hyperball": lambda tx: {"tx": gradtx.trace_ema(0.9), "lr": 0.1},
    "kl_shampoo": {**BASES, "adam_eps": 0.1},
    "kl_soap": BASES,
    "lbfgs": {"history": 2},
    "lazy_rows": lambda tx: {"tx": tx},
    "line_search": lambda tx: {"tx": tx, "max_steps": 4, "growth": 1.5},
    "looksam": lambda tx: {"base": tx},
    "low_rank": lambda tx: {"tx": tx.replace(eps=0.1), "rank": 2, "every": 2},
    "map_after_step": {"fn": torch.tanh},
    "map_tree_after_step": {"fn": _bounded},
    "mask_if": lambda tx: {"tx": tx, "condition": _odd},
    "masked": lambda tx: {"tx": tx, "where": "*"},
    "measure": {"name": "size", "fn": _size, "decay": 0.5},
    "mezo": {"lr": 0.1, "scale": 0.1},
    "mechanize": lambda tx: {"tx": gradtx.chain(gradtx.trace(0.9), gradtx.scale_by_learning_rate(1.0))},
    "msvag": {"lr": 0.1},
    "muon": lambda tx: {"ns_dtype": None, "fallback": tx},
    "mousse": lambda tx: {"precondition_frequency": 2, "eps": 0.1, "fallback": tx},
    "mud": lambda tx: {"fallback": tx},
    "muon_eq": lambda tx: {"clip": 2.0, "fallback": tx},
    "muon_h": lambda tx: {"fallback": tx},
    "muown": lambda tx: {"fallback": tx},
    "namo": lambda tx: {"fallback": tx},
    "noisy_sgd": {"lr": 0.1},
    "normuon": lambda tx: {"fallback": tx},
    "optimistic_gradient_descent": {"lr": 0.1},
    "orthogonalize": {"view": "batch"},
    "orthogonalize_tangent": SHORT_SEARCH,
    "outer": lambda tx: {"inner": tx, "tx": gradtx.sgd(lr=0.7, momentum=0.9), "every": 2},
    "partition": lambda tx: {"transforms": {"a": tx}, "labels": {"a": "*"}},
    "pid": {"lr": 0.1},
    "pnm": {"lr": 0.1},
    "polargrad": lambda tx: {"fallback": tx},
    "precondition_inputs": {"every": 2},
    "precondition_pairs": {"pairs": PAIRS, "damping": 3.0},
    "project_l2_ball": {"max_norm": 1.0},
    "project_tangent": {"kind": "rows"},
    "qhm": {"lr": 0.1},
    "qk_clip": lambda tx: {"roles": {"*": ("layer", "query")}},
    "ranger21": {"num_iterations": 12},
    "record": {"name": "seen"},
    "regenerate_towards_init": {"rate": 0.1},
    "retract": {"kind": "polar"},
    "restart": lambda tx: {"tx": tx, "every": 2},
    "rotated": lambda tx: {"inner": tx.replace(eps=0.1), "precondition_frequency": 2},
    "sam": lambda tx: {"base": tx},
    "scalable_shampoo": BLOCKS,
    "scale": {"factor": 0.5},
    "scale_by_accsgd": {"lr": 0.1},
    "scale_by_adabound": {"lr": 1e-3},
    "scale_by_adafactor": {"lr": 0.01, "relative_step": False},
    "scale_by_apollo": {"rebound": "belief", "eps": 0.1},
    "scale_by_apollo_low_rank": RANKS,
    "scale_by_dion": {"rank": 2},
    "scale_by_distributed_shampoo": DISTRIBUTED,
    "scale_by_fadam": {"weight_decay": 0.1},
    "scale_by_fira": RANKS,
    "scale_by_gravity": {"lr": 0.1},
    "scale_by_inverse_time": {"lr_decay": 0.1},
    "scale_by_kl_shampoo": {"precondition_frequency": 2, "eps": 0.1, "adam_eps": 0.1},
    "scale_by_lars": {"lr": 0.5},
    "scale_by_lbfgs": {"history": 2},
    "scale_by_learning_rate": {"lr": 0.1},
    "scale_by_lora_rite": {"pairs": PAIRS, "eps": 0.1, "skip": 9.0},
    "scale_by_muown": {"lr": 0.1},
    "scale_by_norm_ratio": lambda tx: {"tx": tx},
    "scale_by_pid": {"momentum": 0.9, "dampening": 0.1, "derivative": 0.5},
    "scale_by_ranger21": {"lr": 0.1},
    "scale_by_rprop": {"lr": 0.15},
    "scale_by_scalable_shampoo": BLOCKS,
    "scale_by_shampoo": ROOTS,
    "scale_by_shape": {"adjust": "match_rms_adamw", "view": "batch"},
    "scale_by_soap": BASES,
    "scale_by_spam": {"every": 5, "clip_after": 1},
    "scale_by_stateful": {"step": _slowing, "start": {"scale": 0.5}},
    "scale_by_width": {"multipliers": {"*": (2.0, 4.0)}},
    "scale_by_yogi": {"initial_accumulator_value": 2**-20},
    # The losses of the tests are far from small, and decay at the square of the rate would diverge.
    "scale_by_schedule_free_plus": {"lr": 0.03},
    "schedule_free_plus": {"lr": 0.03},
    "schedule_free": lambda tx: {"base": gradtx.add_decayed_weights(0.1), "lr": 0.1, "beta": 0.9},
    "sgdp": {"lr": 0.1},
    "shampoo": ROOTS,
    "skip_nonfinite": lambda tx: {"tx": tx},
    "soap": BASES,
    "soap_laprop": BASES,
    "soap_muon": lambda tx: {"fallback": tx, "eps": 0.1, "precondition_frequency": 2},
    "splus": {"inverse_steps": 2},
    "trac": lambda tx: {"tx": gradtx.chain(gradtx.trace(0.9), gradtx.scale_by_learning_rate(1.0))},
    "trace": {"momentum": 0.9, "dampening": 0.1},
    "trace_ema": {"beta": 0.9},
    "with_lookahead": lambda tx: {"tx": tx},
    "with_state_dtype": lambda tx: {"tx": tx, "state_dtype": "int8"},
    "wsam": lambda tx: {"base": tx},
    "yogi": {"initial_accumulator_value": 2**-20},
    "spectral_sphere": lambda tx: {"fallback": tx, "ns_coefficients": "newton_schulz", "ns_steps": 1, "power_steps": 2},
}


def _full_rank(arguments):
    """Whether leaves that merge into one long dimension, whose statistics initially have rank 1, are not rotated."""
    return not (arguments["merge_dims"] or arguments["precondition_1d"])


# Functions of the arguments: whether results do not depend on a basis that rounding determines, such as the
# eigenvectors of equal eigenvalues. Where they do, tests compare neither batched runs nor difference quotients.
DETERMINED = {
    "rotated": _full_rank,
    "scale_by_soap": _full_rank,
    "scale_by_kl_shampoo": lambda arguments: not arguments["merge_dims"],
}


def example_of(factory):
    """Return the arguments for a factory."""
    declared = EXAMPLES.get(factory.__name__, {})
    return dict(declared(gradtx.adam()) if callable(declared) else declared)


def is_determined(link):
    """Whether the results of a link do not depend on choices that rounding makes."""
    is_one = DETERMINED.get(link._spec.name)
    return is_one is None or is_one(link._arguments)
