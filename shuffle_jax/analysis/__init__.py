"""Looking at networks and runs: counts and figures."""
