"""Problems whose unknown is a permutation, for use without a network: instances, their files, random ones, solvers."""
