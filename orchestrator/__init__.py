"""The control plane: a recipe meets a cluster, becomes a plan, and the plan's stages are run.

Imports no torch, no ray and nothing of ``jobs``: a laptop can plan, submit, watch and report.
"""

__version__ = "0.1.0"
