"""Drives a VM through hysn-firecracker-python: hysn.py FIRECRACKER FOLDER KERNEL BOOT_ARGS DISK.

It says `configured`, and then does what each line of its input says. Its class MicroVM is left out: that asks public
servers for the host's address and changes the host's firewall. What it calls for the machine itself is called here.
"""

import os
import signal
import sys

from firecracker.api import Api
from firecracker.process import ProcessManager


def main(firecracker, folder, kernel, boot_args, disk):
    os.makedirs(os.path.join(folder, "vm"))
    # A path is the host of a URL to this library, and so must be lower-case, which a temporary folder's is not.
    os.chdir(folder)
    socket = "vm/firecracker.socket"
    processes = ProcessManager()
    processes._config.binary_path = firecracker
    processes._config.data_path = "."
    # The two arguments that MicroVM gives beside the socket.
    log = "vm/vm.log"
    open(log, "w").close()
    processes.start("vm", ["--api-sock", socket, "--id", "vm", "--log-path", log])
    assert processes.is_running("vm")
    # The library takes a child that nobody has reaped for one that does not heed SIGTERM.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    api = Api(socket)
    assert api.describe.get().json()["id"] == "vm"
    assert api.version.get().json()["firecracker_version"]
    api.boot.put(kernel_image_path=kernel, boot_args=boot_args)
    api.drive.put(drive_id="rootfs", path_on_host=disk, is_root_device=True, is_read_only=True)
    api.machine_config.put(vcpu_count=1, mem_size_mib=64)
    assert api.machine_config.get().json()["mem_size_mib"] == 64
    assert api.vm_config.get().json()["boot-source"]["kernel_image_path"] == kernel
    say("configured")
    orders = {
        "start": lambda: api.actions.put(action_type="InstanceStart"),
        "pause": lambda: api.vm.patch(state="Paused"),
        "resume": lambda: api.vm.patch(state="Resumed"),
        "ctrl-alt-del": lambda: api.actions.put(action_type="SendCtrlAltDel"),
        "end": lambda: processes.stop("vm"),
    }
    for line in sys.stdin:
        orders[line.strip()]()
        say(f"did {line.strip()}")


def say(text):
    print(text, flush=True)


main(*sys.argv[1:])
