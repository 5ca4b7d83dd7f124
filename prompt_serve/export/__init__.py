"""Export a PyTorch backbone to an ONNX bundle, checked against PyTorch."""
