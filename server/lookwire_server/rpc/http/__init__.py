"""The KServe V2 protocol over HTTP/1.1 with Triton's extensions: JSON in front of the servicer that gRPC calls too."""
