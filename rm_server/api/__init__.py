"""How requests come in: the only place that speaks gRPC or HTTP."""
