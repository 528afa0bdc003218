"""From files of any format to utterances: adapters, decoding, resampling, windows."""
