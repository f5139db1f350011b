"""Our PPO trainer beside trl 1.12's: time, memory, what is learnt; and how long it waits for rewards."""
