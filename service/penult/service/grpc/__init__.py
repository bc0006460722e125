"""penult.v1 over gRPC: servicers, converters and the interceptor."""
