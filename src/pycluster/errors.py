"""The exceptions of pycluster. What the system itself refuses stays an OSError with its errno."""


class ClusterError(RuntimeError):
    """What pycluster cannot or must not do."""


class NotPrimaryError(ClusterError):
    """A function of the primary was called in a worker."""


class NotWorkerError(ClusterError):
    """A function of a worker was called in the primary."""


class ChannelClosedError(ClusterError):
    """The control channel between this worker and the primary is closed."""


class ReloadError(ClusterError):
    """A reload has stopped: a new worker did not come up, or was kept from it. The workers that ran go on."""


class ProtocolError(ClusterError):
    """The peer sent something that is no frame; its channel is closed."""
