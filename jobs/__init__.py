"""The data plane: what runs on nodes. One module per stage, each an entry point for ``python -m``."""
