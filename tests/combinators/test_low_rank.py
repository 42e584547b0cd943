@pytest.mark.parametrize("around", [lambda tx: gradtx.low_rank(tx, 1), gradtx.rotated])
def test_accumulation_inside_of_other_coordinates_is_refused_at_once(around):
    tx = around(gradtx.accumulate(gradtx.scale_by_adam(), 2))
    with pytest.raises(TypeError, match=r"accumulate' also takes leaves without a gradient.*put it outside"):
        gradtx.as_optimizer(tx, [torch.nn.Parameter(torch.ones(3, 3))])
    with pytest.raises(TypeError, match="put it outside"):
        tx.init({"w": torch.ones(3, 3)})
