"""Deciding: what to start, what an end means, what to tell the user."""
