"""Writing bundles: torch and onnx in, ONNX Runtime out. Never imported by service or client."""
