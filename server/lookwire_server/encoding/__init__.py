"""What an encoder is: two towers, their preprocessing and tokenizer, under one fingerprint. Knows models, not gRPC."""
