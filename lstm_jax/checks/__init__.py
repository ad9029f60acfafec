"""Every contract, in words: on options, and on shapes and dtypes."""
