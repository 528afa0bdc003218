"""The unit language model: initialisation, packing, token stream, training loop, checkpoints and launchers."""
