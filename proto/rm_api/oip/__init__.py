"""The Open Inference Protocol. Only the server imports it: a process holds these messages at most once."""
