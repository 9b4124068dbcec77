"""A trained model for other runtimes: ``onnx`` and ``coreml``, each with the functions ``write`` and ``prove``."""
