"""What users do: whole scripts ported from torch, rules of their own, and mistakes."""
