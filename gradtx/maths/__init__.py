"""The maths that algorithms and combinators share: of entries, of matrices, and polynomials of matrices."""
