"""Servers for the length of a script: they end with it, however it ends.

An assertion that fails and SIGTERM run what `atexit` holds; a kill, which runs nothing, has the system end them.
"""
import atexit
import ctypes
import signal
import subprocess
import sys


def serve(command):
    """Starts a server that says its address in its first line; the process and the address."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=_end_with_parent)
    atexit.register(end, server)
    return server, server.stdout.readline().strip()


def end(server):
    server.kill()
    server.wait()


def _end_with_parent():
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
