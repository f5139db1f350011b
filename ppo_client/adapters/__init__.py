"""The same client, as other trainers expect it."""
