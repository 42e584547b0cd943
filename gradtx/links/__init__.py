"""Links that belong to no method: bounds, decay, rates, averages, projections, measurements."""
