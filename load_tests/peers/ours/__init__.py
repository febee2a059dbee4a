"""This project's server, as `python -m serving start` runs it."""

from functools import partial

from load_tests.peers.ours.start import packaged_start
from load_tests.peers.peer import Peer

PEER = Peer(
    name="ours",
    title="ours",
    source="docs/architecture.md",
    tuning="as it comes",
    command=partial(packaged_start, ()),
    path="/predictions/{model}",
    ready="/ping",
)
