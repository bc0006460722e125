"""The CNNs that penult can fine-tune, and the weights that they start from."""
