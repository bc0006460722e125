"""Convert the trained network to ONNX, verify it and lower its precision."""
