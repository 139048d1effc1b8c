"""The benchmark: tables of operations and networks, each candidate measured in turn, torch beside them."""
