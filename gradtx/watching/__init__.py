"""See what training does: measurements of every link, findings in plain words, and rates, noise and curvature."""
