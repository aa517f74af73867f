"""gRPC: one servicer a file. The only folder that imports protobuf messages of the API."""
