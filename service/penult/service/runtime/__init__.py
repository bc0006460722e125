"""Run ONNX models with onnxruntime, and tune threads and memory layout."""
