"""Kills a program just before its n-th rename: its first thread is traced, which is the one that publishes."""

import ctypes
import os
import platform
import signal

# rename, renameat, renameat2
RENAMES = {"x86_64": {82, 264, 316}, "aarch64": {38, 276}}.get(platform.machine(), set())
TRACEME, SYSCALL, SETOPTIONS, GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
SYSGOOD, EXITKILL = 0x1, 0x100000
ENTRY = 1


class SyscallInfo(ctypes.Structure):
    _fields_ = [("op", ctypes.c_uint8), ("arch", ctypes.c_uint32), ("at", ctypes.c_uint64), ("stack", ctypes.c_uint64),
                ("number", ctypes.c_uint64), ("rest", ctypes.c_uint64 * 8)]


libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request, pid, address=0, data=0):
    if libc.ptrace(request, pid, address, data) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def start(words, cwd, env):
    pid = os.fork()
    if pid:
        return pid
    try:
        if cwd:
            os.chdir(cwd)
        for descriptor in (0, 1, 2):
            os.dup2(os.open("/dev/null", os.O_RDWR), descriptor)
        ptrace(TRACEME, 0)
        os.execve(words[0], words, env)
    finally:
        os._exit(127)


def killed_before_rename(n, *words, cwd=None, env=None):
    """Whether there were so many; else the program has ended with 0."""
    assert RENAMES, f"which system calls rename on {platform.machine()}?"
    pid = start([str(word) for word in words], cwd, env or dict(os.environ))
    _, status = os.waitpid(pid, 0)
    assert os.WIFSTOPPED(status), f"it cannot be traced here, or {words[0]} does not start"
    ptrace(SETOPTIONS, pid, 0, SYSGOOD | EXITKILL)
    renames, signal_number = 0, 0
    while True:
        ptrace(SYSCALL, pid, 0, signal_number)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        signal_number = os.WSTOPSIG(status)
        if signal_number != signal.SIGTRAP | 0x80:
            continue  # which it is to get
        signal_number = 0
        info = SyscallInfo()
        ptrace(GET_SYSCALL_INFO, pid, ctypes.sizeof(info), ctypes.addressof(info))
        renames += info.op == ENTRY and info.number in RENAMES
        if renames == n:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return True
