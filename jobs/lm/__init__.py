"""The unit language model: its initial weights, its data, its training and its launchers."""
