"""Names from papers and training records that are chains here; errors and docs/other-names.md read this table."""

from __future__ import annotations

from typing import NamedTuple


class OtherName(NamedTuple):
    """A method that is a composition of links.

    Attributes:
        title: Its name in the paper.
        chain: What to write, with the names of `gradtx`; `lr` stands for a learning rate.
        note: What it does, and where it differs from the paper.
        source: Author, year and arXiv number.
        spellings: How else it may be typed, if that is more than another case, dashes or underscores.
        equal: Whether a test compares it with a plain loop of the paper's rule; others only run.
    """

    title: str
    chain: str
    note: str
    source: str
    spellings: tuple[str, ...] = ()
    equal: bool = False


_MUON_TAIL = "add_decayed_weights(0.1), scale_by_learning_rate(lr)"
_NESTEROV = "trace_ema(0.95, nesterov=True)"

# For matrices; other leaves need another branch of a `partition`.
MATRICES = (
    OtherName(
        "MARS-M",
        f'chain(correct_variance(0.025, 0.95), trace_ema(0.95), orthogonalize(), scale_by_shape("match_rms_adamw"), '
        f"{_MUON_TAIL})",
        "Muon on the gradients that MARS corrects",
        "Liu et al. 2025, arXiv:2510.21800",
        ("MarsMuon",),
        equal=True,
    ),
    OtherName(
        "RMNP",
        'chain(trace(0.95, nesterov=True), lmo("row", normalized=False, eps=1e-12), scale_by_shape("original"), '
        f"{_MUON_TAIL})",
        "Rows of the momentum to norm 1, where Muon orthogonalizes",
        "Deng et al. 2026, arXiv:2603.20527",
        equal=True,
    ),
    OtherName(
        "Muon+",
        'chain(trace(0.95, nesterov=True), orthogonalize(), lmo("column", eps=1e-12), '
        'lmo("row", normalized=False, eps=1e-12), scale_by_shape("spectral"), scale_by_learning_rate(lr))',
        "Columns, then rows of Muon's direction to norm 1; the authors add an eps of 1e-7 to the squares",
        "MaeChd/muon-eq, with arXiv:2603.28254",
        ("MuonPlus",),
        equal=True,
    ),
    OtherName(
        "MuonBP",
        "chain(trace_ema(0.95), apply_if(chain(orthogonalize(), scale(2.0)), lambda step: step % 5 == 0), "
        "apply_if(blocks(orthogonalize(), heads=2), lambda step: step % 5 != 0), scale_by_learning_rate(lr))",
        "Whole matrices every 5 steps, at twice the rate, and their blocks in between; `heads` is the number of blocks",
        "Khaled et al. 2025, arXiv:2510.16981",
        ("BlockPeriodicMuon",),
        equal=True,
    ),
    OtherName(
        "Turbo-Muon",
        f'chain({_NESTEROV}, orthogonalize(steps=4, start="aol"), scale_by_shape(), {_MUON_TAIL})',
        "Muon with a better start of the iteration, which saves one of five steps",
        "Boissin et al. 2025, arXiv:2512.04632",
        equal=True,
    ),
    OtherName(
        "Muon^2",
        f"chain(scale_by_adam((0.95, 0.95)), orthogonalize(), scale_by_shape(), {_MUON_TAIL})",
        "Adam's direction, orthogonalized; [track 3's version](howto/records.md)",
        "Liu et al. 2026, arXiv:2604.09967",
        ("Muon2", "MuonSquared", "MuonSq"),
        equal=True,
    ),
    OtherName(
        "MOSO",
        'chain(trace_ema(0.95), rotated(scale_by_rms(0.95), sides="short", beta=0.95, order="before", '
        'precondition_frequency=1, refresh="eigh"), add_decayed_weights(0.1), scale_by_learning_rate(lr))',
        "RMSprop on the momentum, in the eigenbasis of the shorter side",
        "NVIDIA Emerging-Optimizers",
        equal=True,
    ),
    OtherName(
        "SF-NorMuon",
        "schedule_free(chain(trace_ema(0.95), orthogonalize(), normalize_neurons(0.95, rms=0.2)), lr, 0.9)",
        "NorMuon with Schedule-Free in place of a schedule; decay of the paper acts on z, that of "
        "`add_decayed_weights` in the chain on y",
        "Apte et al. 2026, arXiv:2605.23061",
        ("ScheduleFreeNorMuon", "NorMuonScheduleFree"),
        equal=True,
    ),
    OtherName(
        "SCALE",
        'chain(partition({"head": trace_ema(0.9), "rest": chain()}, {"head": "head*", "rest": "*"}), '
        'lmo("row", normalized=False, eps=1e-12), scale_by_learning_rate(lr))',
        "Gradients with rows of norm 1, and a momentum for the last layer alone; torch stores weights as (out, in), so "
        "the paper's columns are rows here",
        "Glentis et al. 2025, arXiv:2506.16659",
    ),
    OtherName(
        "SOAP with Schedule-Free",
        "schedule_free(scale_by_soap(), lr, 0.9)",
        "SOAP in place of AdamW in `schedule_free_adamw`",
        "Defazio et al. 2024, arXiv:2405.15682, with arXiv:2409.11321",
        ("SF-SOAP", "ScheduleFreeSOAP", "SOAPScheduleFree"),
    ),
    OtherName(
        "MGUP-Muon",
        f"chain({_NESTEROV}, orthogonalize(), scale_by_agreement_rank(), scale_by_shape(), {_MUON_TAIL})",
        "Muon with longer steps where they agree with the gradient",
        "Chang and Yuan 2025, arXiv:2606.17526",
    ),
    OtherName(
        "REKLS",
        'chain(rotated(scale_by_adam_hat((0.9, 0.95)), beta=0.95, order="before", precondition_frequency=1, '
        'refresh="eigh"), scale_by_learning_rate(lr))',
        "SOAP in the eigenbasis of the present gradient; first eigenvalues differ",
        "NVIDIA Emerging-Optimizers",
    ),
    OtherName(
        "MuLoCo",
        "outer(muon(lr), sgd(0.9, momentum=0.8, nesterov=True), every=30)",
        "DiLoCo around Muon; pass `process_group` to share [a message every 30 steps](howto/outer.md)",
        "Thérien et al. 2025, arXiv:2505.23725",
    ),
)

# For leaves of all shapes.
ALL_LEAVES = (
    OtherName(
        "DiLoCo",
        "outer(adamw(lr), sgd(0.7, momentum=0.9, nesterov=True), every=500)",
        "An outer momentum between processes: pass `process_group`; [how to](howto/outer.md)",
        "Douillard et al. 2023, arXiv:2311.08105",
    ),
    OtherName(
        "Streaming DiLoCo",
        'outer(adamw(lr), sgd(0.4, momentum=0.9, nesterov=True), every=100, fragments=("w*", "*"), delay=5, mix=0.5)',
        "DiLoCo in fragments, whose messages come later",
        "Douillard et al. 2025, arXiv:2501.18512",
        ("StreamingDiLoCo",),
    ),
    OtherName(
        "SparseLoCo",
        "outer(adamw(lr), sgd(1.0), every=30, compress=TopK(k=64, chunk=4096, decay=0.95))",
        "DiLoCo whose ranks send the largest entries of each chunk, and keep the others as errors for later; means "
        "divide by the number of ranks as in the paper, not by that of those that sent an entry, and chunks are not "
        "square: pass `process_group`; [how to](howto/outer.md#compression-the-largest-entries-alone)",
        "Sarfi et al. 2025, arXiv:2508.15706",
        ("CCLoco",),
    ),
    OtherName(
        "SNOO",
        "outer(adamw(lr), sgd(0.68, momentum=0.37, nesterov=True), every=28)",
        "A Nesterov momentum of slow weights, in one process; synchronizes at steps 28, 56, ..., not 1, 29, ...",
        "Kallusky et al. 2025, arXiv:2510.15830",
        equal=True,
    ),
    OtherName(
        "ADANA",
        "adamw(lr, betas=(Schedule(lambda step: 1 - 8 / (9 + step)), Schedule(lambda step: 1 - 8 / (9 + step))))",
        "AdamW whose averages lengthen with time; the paper's damped gradient term, and its schedule of the decay, are "
        "not in it",
        "Ferbach et al. 2026, arXiv:2602.05298",
        ("LogTimeAdamW",),
    ),
    OtherName(
        "SMMF",
        "chain(scale_by_adam((Schedule(lambda step: 0.9 * 0.999**step), Schedule(lambda step: 1 - (step + 1) ** -0.5)),"
        ' correct_bias=False, state_dtype="factored"), add_decayed_weights(0.01), scale_by_learning_rate(lr))',
        "Adam whose averages are rank-one factors and a bit per sign, with the authors' decays; leaves of fewer than "
        "4096 entries are not factored; [any rule's state](howto/less-memory.md#factors-and-a-bit-per-sign) may be",
        "Park and Lee 2024, arXiv:2412.08894",
    ),
    OtherName(
        "SODA",
        "chain(scale_by_adam(), regenerate_towards_init(Schedule(lambda step: 1 / (lr * (step + 2)))), "
        "scale_by_learning_rate(lr))",
        "A pull of 1/(t + 1) toward the initial weights in place of weight decay, around any direction; the paper's "
        "optimistic averages are links of their own (`nadam`, `ademamix`, `lion`)",
        "Pethick et al. 2026, arXiv:2605.11172",
        ("CenteredDecay", "CenteredWeightDecay"),
    ),
    OtherName(
        "AdamHD",
        "chain(adamw(lr, weight_decay=0.0), map_after_step(lambda p: p - 1e-4 * p.clamp(-0.1, 0.1)))",
        "AdamW whose decay is bounded for weights beyond 0.1; 1e-4 is the product of rate and decay, which acts after "
        "the step",
        "Guo and Fan 2025, arXiv:2511.14721",
        ("AdaHD", "AdamHuberDecay", "HuberDecay"),
        equal=True,
    ),
    OtherName(
        "MGUP-AdamW",
        "chain(scale_by_adam_hat(), scale_by_agreement_rank(), add_decayed_weights(0.01), scale_by_learning_rate(lr))",
        "AdamW with longer steps where they agree with the gradient",
        "Chang and Yuan 2025, arXiv:2606.17526",
        ("MGUP",),
    ),
    OtherName(
        "MGUP-Lion",
        "chain(scale_by_lion(), scale_by_agreement_rank(), add_decayed_weights(0.1), scale_by_learning_rate(lr))",
        "Lion with longer steps where they agree with the gradient",
        "Chang and Yuan 2025, arXiv:2606.17526",
    ),
    OtherName(
        "AdamPower",
        "chain(power_entries(1.2), adamw(lr))",
        "AdamW on powers of the gradient's entries",
        "Wang et al. 2025, arXiv:2505.24275",
        ("GradPower", "AdamWPower"),
    ),
    OtherName(
        "PowerStep",
        "chain(trace(0.9), power_entries(0.2), add_decayed_weights(0.1), scale_by_learning_rate(lr))",
        "Roots of the momentum's entries, which make them more alike, as Adam does with twice the state",
        "Lu et al. 2026, arXiv:2605.10335",
        equal=True,
    ),
    OtherName(
        "Refined Schedule-Free",
        "schedule_free_adamw(lr, decoupling_c=50.0)",
        "Schedule-Free AdamW whose average has a length of its own",
        "Song et al. 2025, arXiv:2507.09846",
        ("RefinedSFAdamW", "RefinedScheduleFreeAdamW", "SFAdamC"),
    ),
    OtherName(
        "Cautious weight decay",
        "adamw(lr, cautious_decay=True)",
        "Decay only where the step shrinks a weight, too",
        "Chen et al. 2025, arXiv:2510.12402",
        ("CWD", "CautiousWeightDecay", "AdamWCWD"),
    ),
    OtherName(
        "C-AdamW",
        "chain(scale_by_adam(), scale_by_caution(), add_decayed_weights(0.01), scale_by_learning_rate(lr))",
        "AdamW without the entries that point against the gradient",
        "Liang et al. 2024, arXiv:2411.16085",
        ("CautiousAdamW", "CautiousAdam"),
    ),
)

OTHER_NAMES = (*MATRICES, *ALL_LEAVES)
