"""The console: pages in a browser on the loopback address, beside a running server or on bundles alone."""
