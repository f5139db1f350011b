"""A reward-model service: hosts trained reward models behind a batched gRPC scoring endpoint."""
