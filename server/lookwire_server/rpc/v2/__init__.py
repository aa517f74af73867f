"""inference.GRPCInferenceService: the KServe V2 protocol with Triton's extensions."""
