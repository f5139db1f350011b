"""The client of the reward service: deadlines, safe retries, several servers, checked replies, typed errors."""
