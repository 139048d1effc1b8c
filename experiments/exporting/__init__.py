"""What experiments.export needs for the layout of the hub: the numbers, the command and the text of a card."""
