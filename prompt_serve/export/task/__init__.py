"""Export a task: image encoder, class features and scoring in one ONNX file."""
