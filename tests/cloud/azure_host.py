"""Azure's side of a function app with a queue trigger: `python azure_host.py APP CONNECTION`.

It does the work of the Functions host and its Python worker: read function.json, take a message from the
input queue, call the entry point with it, put the value that it sets on the output queue, delete the message.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


class Output:
    """The object that the host passes for an output binding."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def set(self, value: str) -> None:
        self._queue.send_message(value)


def main(app: Path, connection: str) -> None:
    os.chdir(app)
    sys.path[:0] = [str(app), str(app / ".python_packages" / "lib" / "site-packages")]
    import azure.functions
    from azure.storage.queue import (
        QueueClient,
        TextBase64DecodePolicy,
        TextBase64EncodePolicy,
    )

    binding = json.loads((app / "lithops_handler" / "function.json").read_text())
    names = [one["queueName"] for one in binding["bindings"]]
    codec = {
        "message_encode_policy": TextBase64EncodePolicy(),
        "message_decode_policy": TextBase64DecodePolicy(),
    }
    source, sink = (QueueClient.from_connection_string(connection, name, **codec) for name in names)
    entry = getattr(importlib.import_module("lithops_handler"), binding["entryPoint"])
    while True:
        message = source.receive_message(visibility_timeout=600)
        if message is None:
            time.sleep(0.02)
            continue
        call = azure.functions.QueueMessage(id=message.id, body=message.content)
        entry(msgIn=call, msgOut=Output(sink))
        source.delete_message(message)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
