"""The same client, as other trainers expect it: `trl`, `openrlhf`, `verl`. None of them imports its trainer."""
