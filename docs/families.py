"""The families of methods, by which the documentation groups files of `gradtx/algorithms`: one table, no code."""

# Page -> title, and the files in the order of the pages.
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "sgd": (
        "SGD",
        (
            "sgd",
            "asgd",
            "dpsgd",
            "gravity",
            "noisy_sgd",
            "rose",
            "sgd_sai",
            "zero_order",
        ),
    ),
    "momentum": ("Momentum", ("qhm", "accsgd", "aggmo", "pid", "pnm", "tam")),
    "sign": (
        "Signs of gradients",
        ("lion", "signsgd", "ano", "focus", "grams", "rprop"),
    ),
    "adam": (
        "Adam and its closest relatives",
        ("adam", "sparse_adam", "rmsprop", "nadam", "adamc", "adamp"),
    ),
    "radam": ("Rectified Adam", ("radam", "adabelief", "ranger", "ranger21")),
    "adam_variants": (
        "Adam with another denominator or numerator",
        ("ademamix", "adopt", "adam_atan2", "laprop"),
    ),
    "adam_rates": (
        "Adam with rates that are bounded, averaged, smoothed or normalized",
        ("adabound", "adamod", "diffgrad", "fadam", "padam", "swats"),
    ),
    "adam_momentum": ("Adam with another momentum", ("adan", "adai", "adatam")),
    "adam_stable": (
        "Adam with steadier steps",
        (
            "stable_adamw",
            "yogi",
            "adagc",
            "adams",
            "adanorm",
            "kourkoutas",
            "sadam",
            "spam",
        ),
    ),
    "adam_delayed": (
        "Denominators from earlier gradients",
        ("avagrad", "acprop", "adashift", "bcos"),
    ),
    "adagrad": (
        "AdaGrad and other sums and maxima of squares",
        ("adagrad", "adadelta", "adamax", "adasmooth", "ftrl", "kate", "sm3"),
    ),
    "layerwise": (
        "One rate for each layer",
        ("lamb", "lars", "amos", "fromage", "nero", "novograd"),
    ),
    "memory_efficient": (
        "Factored and blockwise second moments",
        ("adafactor", "adam_mini", "came"),
    ),
    "low_rank": ("Low rank", ("galore", "apollo_low_rank", "conda", "dion", "fira")),
    "muon": ("Muon", ("muon", "polargrad")),
    "muon_variants": (
        "Variants of Muon",
        (
            "normuon",
            "adamuon",
            "aurora",
            "contra_muon",
            "muon_adam_atan2",
            "muon_eq",
            "mousse",
            "mud",
            "mano",
            "adago",
            "namo",
        ),
    ),
    "scion": ("Steps of fixed norm", ("scion", "hyperball", "muown", "sinkgd", "aro")),
    "manifolds": ("Weights that stay on a manifold", ("spectral_sphere",)),
    "shampoo": (
        "Shampoo, as in the paper, as scaled up by Google and by Meta; SPlus, ASGO",
        ("shampoo", "distributed_shampoo", "scalable_shampoo", "splus", "asgo"),
    ),
    "soap": (
        "Adam and others in the eigenbases of Shampoo",
        ("soap", "kl_shampoo", "cosmos"),
    ),
    "psgd": ("PSGD", ("psgd",)),
    "quasi_newton": ("Curvature", ("lbfgs", "sophia", "adahessian", "apollo")),
    "least_squares": (
        "Least squares, and curvature of the model",
        (
            "gauss_newton",
            "levenberg_marquardt",
            "dogleg",
            "natural_gradient",
            "spring",
            "hessian_free",
        ),
    ),
    "d_adaptation": ("D-Adaptation", ("dadapt",)),
    "parameter_free": (
        "Without a learning rate",
        ("prodigy", "prodigy_schedule_free", "dog", "cocob"),
    ),
    "polyak": (
        "Rates from the loss or from measured smoothness",
        ("momo", "adaptive_gd", "alig"),
    ),
    "averaging": ("Averages of weights", ("madgrad", "srmm")),
    "schedule_free": (
        "Schedule-Free methods and GPA",
        ("schedule_free", "schedule_free_plus", "gpa_adamw"),
    ),
    "variance_reduction": (
        "Corrected gradients",
        ("mars", "a2grad", "grokfast_adamw", "msvag", "optimistic"),
    ),
}
