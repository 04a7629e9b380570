"""An LLM server: takes one request after the other and answers it."""

from __future__ import annotations

from collections.abc import Mapping

from lamorel_ext.llm.handlers import Host, RequestHandler, Updater
from lamorel_ext.rpc.groups import LockstepGroup
from lamorel_ext.rpc.link import Peer
from lamorel_ext.rpc.tcp_listener import Listener
from lamorel_ext.types import ServerGroup

_VERDICT_S = 1.0


class Server:
    """One LLM server. The constructor stores; ``serve`` runs.

    Args:
        host: The language model.
        updaters: By name.
        listener: Where requests come from.
        group: The LLM servers among themselves.
        me: Global rank and role of this process.
    """

    def __init__(
        self,
        host: Host,
        updaters: Mapping[str, Updater],
        listener: Listener,
        group: ServerGroup,
        me: Peer,
    ) -> None:
        self._listener, self._group = listener, LockstepGroup(group)
        self._desk = RequestHandler(host, dict(updaters), self._group, me.rank, me.role)

    def serve(self) -> None:
        """Answer requests until every client has said that it is done.

        A request that raises is answered with a ``Failure``; the server goes on.

        Raises:
            RpcError: A client or another server is gone.
            Exception: The servers cannot talk to each other any more.
        """
        self._desk.open()
        while (call := self._listener.get()) is not None:
            call.answer(self._desk.handle(call.request))
            if self._group.broken is not None:
                # The group tells that something broke, the connections tell which rank it was.
                raise self._listener.loss(_VERDICT_S) or self._group.broken
