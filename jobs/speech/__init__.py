"""From waves to units: the encoder, the codebook, and the Ray actors that run them over shards."""
