"""Requests that are right reach further than the check of their names: they name what is there."""

import schemathesis

# The devices of the machine that runs, and the file and tap that there are.
DISK, NET, FILE, TAP = "data", "eth0", "disk", "tap0"


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.meta is None or not case.meta.generation.mode.is_positive or not isinstance(case.body, dict):
        return
    for argument, name in (("drive_id", DISK), ("iface_id", NET)):
        if argument in (case.path_parameters or {}) and argument in case.body:
            if case.method == "PATCH":
                case.path_parameters[argument] = name
            case.body[argument] = case.path_parameters[argument]
    if case.path.startswith("/husk/v1/devices/"):
        case.path_parameters["id"] = NET if "link" in case.body else DISK
    if "path_on_host" in case.body:
        case.body["path_on_host"] = FILE
    if "host_dev_name" in case.body:
        case.body["host_dev_name"] = TAP
