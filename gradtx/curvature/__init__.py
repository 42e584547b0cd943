"""The curvature of a model: residuals or outputs at the parameters, their Jacobian, and the systems it makes."""
