"""penult.v1: the messages and stubs of penult.proto. Regenerate with make proto."""
