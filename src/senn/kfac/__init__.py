"""Second moments of linear maps: the Kronecker factors that every score is made of."""
