"""Options that torch's optimizers of the same names take too."""

SHARED = {
    "Adagrad": [
        {},
        {"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.2, "eps": 0.01},
        {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.3},
    ],
    "Adadelta": [{}, {"lr": 0.7, "rho": 0.6, "eps": 1e-3, "weight_decay": 0.2}, {"lr": 3.0, "rho": 0.0}],
    "RMSprop": [
        {},
        {"lr": 0.02, "alpha": 0.8, "eps": 1e-3, "weight_decay": 0.2},
        {"momentum": 0.7, "centered": True, "alpha": 0.9, "eps": 0.01},
        {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.2},
    ],
    "Rprop": [{}, {"lr": 0.1, "etas": (0.3, 1.5), "step_sizes": (0.02, 0.2)}],
    "Adamax": [
        {},
        {"lr": 0.02, "betas": (0.7, 0.8), "eps": 0.05, "weight_decay": 0.2},
        {"lr": 0.02, "betas": (0.0, 0.5)},
    ],
    "NAdam": [
        {},
        {"lr": 0.02, "betas": (0.7, 0.8), "eps": 0.05, "weight_decay": 0.2},
        {"lr": 0.02, "momentum_decay": 0.5, "betas": (0.0, 0.9)},
        {"lr": 0.02, "weight_decay": 0.2, "decoupled_weight_decay": True},
    ],
}
