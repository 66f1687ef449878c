"""Processes for tests, each forked from one that does nothing else.

A fork of the tests' own process would hold for ever what a thread of theirs, or of a library, held at that moment.
"""

import multiprocessing

FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["pytest", "torch", "conf.errors", "gab.distributed.launch"])
