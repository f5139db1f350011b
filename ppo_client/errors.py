"""The client's errors by the name that programs import: `from ppo_client.errors import VersionChanged`."""

from ppo_client.client.errors import *  # noqa: F403
