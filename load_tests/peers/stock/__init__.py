"""This project's server with TorchServe as it is published: without any of `serving.torchserve.patches`."""

from functools import partial

from load_tests.peers.ours.start import packaged_start
from load_tests.peers.peer import Peer

PEER = Peer(
    name="stock",
    title="ours, TorchServe unpatched",
    source="docs/architecture.md",
    tuning="as `python -m serving start --stock` runs it",
    command=partial(packaged_start, ("--stock",)),
    path="/predictions/{model}",
    ready="/ping",
)
