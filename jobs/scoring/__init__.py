"""What a trained unit language model is worth: perplexity, its baselines, and continuations."""
