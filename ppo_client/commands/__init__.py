"""The commands of `ppo-client`: each module adds its parsers and says what they run. Heavy imports happen when run."""
