"""From a trained network to one that is used."""
