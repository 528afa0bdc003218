"""The data plane: what runs on nodes, one module per stage, each run by ``python -m``."""
