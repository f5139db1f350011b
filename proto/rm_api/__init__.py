"""The contract of the reward-model service: messages and services, generated from the protos beside them."""
