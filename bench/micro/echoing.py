"""The worker of test_costs.py: it sends back what it gets."""

from pycluster import process

process.on("message", lambda message, handle: process.send(message))
