"""Replies of workers, encrypted: what f returned or raised, on its way through storage.

Runs on workers too: imports numpy at most.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from polarmap.worker.encryption import Encryption
from polarmap.worker.messages import Error, Reply, describe
from polarmap.worker.parts import DamagedError

ENCRYPTED = "Encrypted"  # type of an error whose message is the encrypted one


def as_sent(reply: Reply, encryption: tuple[Any, ...]) -> Reply:
    """A reply with the numbers of its result, or its error, encrypted; all else is bound to them.

    Where that fails, which is where the key is not there, a reply that says so.
    """
    try:
        ours = Encryption(*encryption)
        if reply.error is not None:
            text = json.dumps(reply.error[:3]).encode()
            sealed = base64.b64encode(ours.encrypt(_name(reply), text)).decode()
            return reply._replace(error=Error(ENCRYPTED, sealed, "", None))
        assert reply.result is not None
        data = ours.encrypt(_name(reply), reply.result.data)
        return reply._replace(result=reply.result._replace(data=data))
    except Exception as error:
        return reply._replace(result=None, stored=None, error=describe(error))


def as_meant(reply: Reply, encryption: Encryption, data: Any = None) -> Reply:
    """The inverse; DamagedError for what the worker of this attempt has not sent.

    data : of the result, if it came separately. An error that is not encrypted is one of a worker without
        the key.
    """
    if reply.error is not None:
        if reply.error.type != ENCRYPTED:
            return reply._replace(result=None, stored=None)
        text = encryption.decrypt(_name(reply), base64.b64decode(reply.error.message))
        kind, message, trace = json.loads(text)
        return reply._replace(error=Error(kind, message, trace, None))
    if reply.result is None:
        raise DamagedError("is neither a result nor an error")
    plain = encryption.decrypt(_name(reply), reply.result.data if data is None else data)
    return reply._replace(result=reply.result._replace(data=plain))


def _name(reply: Reply) -> str:
    """All of a reply that is to be as it was, besides what is encrypted."""
    result = reply.result and reply.result[:2]
    told = [reply.task, reply.attempt, reply.subtasks, result, reply.stored]
    return "reply " + json.dumps(told, default=repr)
