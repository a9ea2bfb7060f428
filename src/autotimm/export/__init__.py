"""Export of trained models: files for ONNX Runtime, torch and timm, compared with the run before they are kept."""
