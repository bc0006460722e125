"""The Open Inference Protocol v2, with Triton's extensions: vendored, with its stubs. Regenerate with make proto."""
