"""The fault-tolerant runtime of whatever trains in steps on ranks."""
