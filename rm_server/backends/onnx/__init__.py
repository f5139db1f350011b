"""The same classifiers as ONNX files, in ONNX Runtime."""
