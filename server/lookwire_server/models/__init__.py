"""Triton-style model serving: repository, configuration, dynamic batcher. Knows neither encoders nor collections."""
