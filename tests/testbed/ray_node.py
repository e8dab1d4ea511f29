"""python -m testbed.ray_node start ...: the command `ray` for nodes that may take long to start.

By default, Ray gives up a node that has not started within 30 seconds, which is too short on a busy machine.
"""

from __future__ import annotations

import time
from typing import Any

from ray._private import services
from ray.scripts.scripts import main

START_SECONDS = 60.0  # Seconds that a node may take to start.
_get_node = services.get_node


def wait_for_node(*arguments: Any) -> Any:
    """Return Ray's record of the node that is starting, as soon as it exists."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return _get_node(*arguments)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    services.get_node = wait_for_node
    main()
