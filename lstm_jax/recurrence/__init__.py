"""The hot loop: one contract, one list of implementations, one file or folder each."""
