"""The plot of a watch: what a reader can tell apart in it."""

import math

import pytest

from gradtx.watching.figures import SUMS
from gradtx.watching.plot import plot_of
from gradtx.watching.sample import Sample

pytest.importorskip("matplotlib")


def sample_of(step=1, leaves=1, links=1, ratio=1e-3, groups=None):
    """A sample in which each leaf has a weight of norm 1 and moves by `ratio`."""
    import torch

    sums = dict.fromkeys(SUMS, torch.tensor(1.0, dtype=torch.float64))
    sums["after"] = torch.tensor(ratio**2, dtype=torch.float64)
    names = [*(f"link_{i}" for i in range(links)), "step"]
    rows = {(f"leaf_{i}", name): sums for i in range(leaves) for name in names}
    return Sample(step, rows, groups or {"lr": 0.1})


def panel(figure, title):
    (axes,) = [axes for axes in figure.axes if title in axes.get_title()]
    return axes


def test_no_two_links_share_a_color_and_dashes():
    lines = panel(plot_of([sample_of(links=39)]), "each link").lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 40


def test_no_two_of_twenty_links_share_a_color():
    lines = panel(plot_of([sample_of(links=20)]), "each link").lines
    assert len({line.get_color() for line in lines}) == 21


@pytest.mark.parametrize(("ratio", "ends"), [(2e-3, (1e-4, 1e-2)), (3e-7, (1e-8, 1e-6))])
def test_colors_span_the_two_decades_around_the_data(ratio, ends):
    figure = plot_of([sample_of(ratio=ratio)])
    (mesh,) = panel(figure, "each leaf").collections
    assert mesh.get_clim() == pytest.approx(ends)


def test_all_of_eighty_leaves_are_named_and_of_more_each_kth_in_a_figure_of_limited_height():
    named = panel(plot_of([sample_of(leaves=80)]), "each leaf").get_yticklabels()
    assert len(named) == 80
    figure = plot_of([sample_of(leaves=300)])
    axes = panel(figure, "each leaf")
    assert 60 <= len(axes.get_yticklabels()) <= 92
    assert axes.get_ylabel() == "one leaf of 4 is named"
    assert figure.get_figheight() == 16


def test_groups_with_one_rate_share_a_line_that_names_them_and_its_value():
    groups = {"muon.lr": 0.02, "a.lr": 1e-3, "b.lr": 1e-3, "a.eps": 1e-8}
    axes = panel(plot_of([sample_of(groups=groups)]), "learning rate")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["muon.lr = 0.02", "a.lr, b.lr = 0.001"]
    assert axes.get_yscale() == "log"


def test_a_cosine_from_a_warmup_at_0_has_a_linear_axis_and_an_exponential_decay_has_not():
    def scale_of(rates):
        samples = [sample_of(step, groups={"lr": rate}) for step, rate in enumerate(rates)]
        return panel(plot_of(samples), "learning rate").get_yscale()

    assert scale_of([0.0, *(1 + math.cos(math.pi * i / 20) for i in range(21))]) == "linear"
    assert scale_of([0.5**i for i in range(20)]) == "log"
