"""Methods that look for a permutation, what they are compared with, and figures of them."""
