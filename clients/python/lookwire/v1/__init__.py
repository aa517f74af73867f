"""Generated from protos/lookwire/v1 by `make proto`."""
