"""The Lookwire server: models, encoders and collections behind gRPC."""

__version__ = "0.1.0"
