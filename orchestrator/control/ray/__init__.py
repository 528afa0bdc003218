"""Runs on a Ray cluster that is there: their supervisor is a Ray job on its head."""
