"""Servers in a worker, each in the module of its name: what they need beyond socket.socket's methods.

Most need only one thing. An HTTP connection that has been served stays open for a next request that may never come, and
a worker that disconnects waits for its connections. So each server is told when the worker ends (`Child.when_quiet`):
it closes the connections that are idle, and the others after their response. Which ones are idle only it can know; to
the library a stream of events that has nothing to say for a while looks the same. A connection that has not been
served yet is never closed here: its request may be on its way.

The others are those that swallow the SystemExit that ends a script, or that stumble over it (`Child.ended_by`).
"""
