"""Comparisons over seeds: what is to be run, what runs say, and their tables and figures."""
