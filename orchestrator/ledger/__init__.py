"""What has happened: the store, its artifacts, leases and run folders."""
