"""Folders that all machines of a run must have in common: what one writes, the others read."""

import os
import platform
import time
import uuid
from contextlib import suppress
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from dpo.core.refusal import Refusal

WAIT = 10.0  # seconds that a network file system may take to show a new file


def shows(path: Path) -> bool:
    """Whether a file is there, or comes to be. Its folder is listed, which makes a network file
    system look anew."""
    until = time.monotonic() + WAIT
    while True:
        with suppress(OSError):
            os.listdir(path.parent.parent)
            if path.name in os.listdir(path.parent):
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.2)


def check_shared(folders: list[Path], machine: str) -> None:
    """See that every machine finds in each of its folders what the first one writes there.

    Called by all processes, each with what it takes for the folders of the run, and with the number
    of its `machine`, for the message.

    Raises:
        Refusal: on all of them, where one does not.
    """
    state = PartialState()
    if state.num_processes == 1:
        return
    # A new name: a file system may remember for a while that a name was not there.
    name, written = f".shared-{uuid.uuid4().hex}", []
    if state.is_main_process:
        for folder in folders:
            with suppress(OSError):  # a cache may be there to be read only
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
                written.append(folder)
    said = [name, [folder in written for folder in folders]]
    broadcast_object_list(said)
    looked = zip(folders, said[1], strict=True)
    apart = [folder for folder, here in looked if here and not shows(folder / said[0])]
    who = f"machine {machine} ({platform.node()})"
    found = gather_object([(str(apart[0]), who) if apart else None])
    for folder in written:
        (folder / name).unlink(missing_ok=True)
    if refused := next(filter(None, found), None):
        raise Refusal(
            f"{refused[0]} is not shared between the machines: {refused[1]} does not find in it "
            "what the first has written. Put --output_dir and --reference_cache on a file system "
            "that all of them have"
        )
