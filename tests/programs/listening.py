"""The TCP sockets of IPv4 that listen, as the kernel lists them."""

import itertools

_LISTEN = "0A"  # TCP_LISTEN, proc(5)


def listening_rows(port: int) -> list[list[str]]:
    """The columns of /proc/net/tcp of those that listen on a port.

    Found out without a connection, which would count. The kernel lists those that listen before all others, of which
    there may be many thousands that wait for their end, and each costs it more than a microsecond.
    """
    with open("/proc/self/net/tcp") as table:
        next(table)
        listening = itertools.takewhile(lambda row: row[3] == _LISTEN, map(str.split, table))
        return [row for row in listening if int(row[1].partition(":")[2], 16) == port]
