"""Runs one untrusted program in this process, which first gives up every right that the program does not need.

`nca_plugin.tasks.sandbox` starts this file with an interpreter that finds only the standard library. It uses what the
kernel offers to any user, also inside a container: Landlock (only the standard library and shared libraries can be
read, and nothing can be written), a seccomp filter (only system calls that compute and read; none that starts a process
or thread, opens a socket, sends a signal, or changes a file's owner, mode or times) and resource limits. Even a program
that took over the interpreter could only compute until its time is up.

Standard input is a JSON object with `program`, `nonce`, `cpu_seconds` and `memory_bytes`. Standard output is a JSON
object with `refused` (what the machine lacks), or with `nonce` and `error`, null if the program ran to its end.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)

# From the kernel's headers: linux/prctl.h, linux/seccomp.h, linux/audit.h, linux/landlock.h.
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
BPF_LOAD, BPF_JUMP_IF_EQUAL, BPF_JUMP_IF_AT_LEAST, BPF_RETURN = 0x20, 0x15, 0x35, 0x06
#: Offsets in struct seccomp_data.
NUMBER, ARCHITECTURE, SECOND_ARGUMENT = 0, 4, 24
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
#: Numbers from here on belong to x32, the other ABI of x86_64.
X32 = 0x40000000
EPERM = 1
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_CREATE_RULESET_VERSION, LANDLOCK_RULE_PATH_BENEATH = 1, 1
READ_FILE, READ_DIR = 1 << 2, 1 << 3
#: Access rights to files by version of Landlock. Before version 3, Landlock does not prevent truncating a file.
FIRST_VERSION = 3
FILE_RIGHTS, FILE_RIGHTS_OF_5 = (1 << 15) - 1, (1 << 16) - 1
NETWORK_RIGHTS, SCOPES = 0b11, 0b11

SHARED_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")

#: The system calls that an interpreter makes, with their numbers on x86_64 and aarch64.
CALLS = {
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "close": (3, 57),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "stat": (4, None),
    "lstat": (6, None),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "openat": (257, 56),
    "lseek": (8, 62),
    "dup": (32, 23),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getrusage": (98, 165),
    "getrandom": (318, 278),
    "uname": (63, 160),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
FCNTL = (72, 25)
#: F_GETFD, F_SETFD, F_GETFL. Other commands can name a process that gets a signal when a pipe is read.
FCNTL_COMMANDS = (1, 2, 3)


class NoJailError(Exception):
    """This machine cannot confine a program."""


def main() -> None:
    task = json.load(sys.stdin)
    answer = os.dup(1)
    try:
        lock(task["cpu_seconds"], task["memory_bytes"])
    # E.g. lower limits are set already. A program that did not run must not count as one that failed.
    except (NoJailError, OSError, ValueError) as reason:
        os.write(answer, json.dumps({"refused": str(reason)}).encode())
        return
    error = run(task["program"])
    os.write(answer, json.dumps({"nonce": task["nonce"], "error": error}).encode())
    # Exits at once, so that nothing that the program left behind runs.
    os._exit(0)


def run(program: str) -> str | None:
    """Run a program. Return why it failed, None if it ran to its end."""
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    # A program that leaves early, also by SystemExit, has not run to its end.
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:200]
    return None


def lock(cpu_seconds: int, memory_bytes: int) -> None:
    """Give up every right but computing. Raises `NoJailError` if the kernel cannot enforce that."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in AUDIT_ARCH:
        raise NoJailError(f"needs Linux on {' or '.join(AUDIT_ARCH)}, this is {sys.platform} on {machine}")
    control("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
    control("prctl", PR_SET_DUMPABLE, 0)
    control("prctl", PR_SET_NO_NEW_PRIVS, 1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    restrict_files()
    for kind, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(kind, (most, most))
    # SIGXCPU at the first limit says why the program ends. At the second one, a program that ignores it is killed.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    restrict_calls(list(AUDIT_ARCH).index(machine), AUDIT_ARCH[machine])


def control(name: str, *arguments: int | ctypes.Array[ctypes.c_char]) -> int:
    """Call the C library's `prctl` or `syscall`. Raises `NoJailError` if the call fails."""
    values = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    if name == "prctl":
        values += [ctypes.c_ulong(0)] * (5 - len(values))
    result: int = LIBC[name](*values)
    if result < 0:
        raise NoJailError(f"the kernel refuses {name} {arguments[0]}: {os.strerror(ctypes.get_errno())}")
    return result


def restrict_files() -> None:
    """Deny all access to files except reading the standard library and shared libraries."""
    version = LIBC.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_ulong(0), LANDLOCK_CREATE_RULESET_VERSION)
    if version < FIRST_VERSION:
        raise NoJailError(
            "needs Landlock as of Linux 6.2, "
            + ("which is missing or switched off" if version < 0 else f"has version {version} of it")
        )
    attributes = struct.pack("<Q", FILE_RIGHTS if version < 5 else FILE_RIGHTS_OF_5)
    if version >= 4:
        attributes += struct.pack("<Q", NETWORK_RIGHTS)
    if version >= 6:
        attributes += struct.pack("<Q", SCOPES)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    rules = control("syscall", LANDLOCK_CREATE_RULESET, buffer, len(attributes), 0)
    paths = {Path(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib")}
    paths |= {Path(sys.base_prefix, "lib"), *map(Path, SHARED_LIBRARIES)}
    for path in sorted(paths):
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        rights = READ_FILE | READ_DIR if path.is_dir() else READ_FILE
        rule = ctypes.create_string_buffer(struct.pack("<Qi", rights, descriptor), 12)
        control("syscall", LANDLOCK_ADD_RULE, rules, LANDLOCK_RULE_PATH_BENEATH, rule, 0)
        os.close(descriptor)
    control("syscall", LANDLOCK_RESTRICT_SELF, rules, 0)
    os.close(rules)


def restrict_calls(column: int, architecture: int) -> None:
    """Make every system call outside CALLS fail with EPERM."""
    numbers = [number for call in CALLS.values() if (number := call[column]) is not None]
    # Operation, operand, and where to jump if the condition holds or not; None means the next instruction.
    program: list[tuple[int, int, str | None, str | None]] = [
        (BPF_LOAD, ARCHITECTURE, None, None),
        (BPF_JUMP_IF_EQUAL, architecture, None, "kill"),
        (BPF_LOAD, NUMBER, None, None),
        (BPF_JUMP_IF_AT_LEAST, X32, "kill", None),
        *((BPF_JUMP_IF_EQUAL, number, "allow", None) for number in numbers),
        (BPF_JUMP_IF_EQUAL, FCNTL[column], None, "deny"),
        (BPF_LOAD, SECOND_ARGUMENT, None, None),
        *((BPF_JUMP_IF_EQUAL, command, "allow", None) for command in FCNTL_COMMANDS),
    ]
    ways_out = {"deny": SECCOMP_RET_ERRNO | EPERM, "allow": SECCOMP_RET_ALLOW, "kill": SECCOMP_RET_KILL_PROCESS}
    places = {name: len(program) + number for number, name in enumerate(ways_out)}
    code = b""
    for position, (operation, operand, if_true, if_false) in enumerate(program):
        # A jump counts the instructions that it skips.
        skips = (0 if name is None else places[name] - position - 1 for name in (if_true, if_false))
        code += struct.pack("<HBBI", operation, *skips, operand)
    code += b"".join(struct.pack("<HBBI", BPF_RETURN, 0, 0, value) for value in ways_out.values())
    instructions = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(instructions))
    control("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header, len(header)))


if __name__ == "__main__":
    main()
