"""The report page of a run: a pure reader of the ledger."""
