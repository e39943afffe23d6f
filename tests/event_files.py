"""TensorBoard's event files, read by nothing but their format."""

from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def events(workdir: Path) -> list[Event]:
    """What is in the event files of a run directory; a record is length (8 bytes), checksum (4), event, checksum (4)."""
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def scalars(workdir: Path) -> list[tuple[int, str, float]]:
    """Step, name and value of every number that was logged."""
    return [(event.step, value.tag, value.simple_value) for event in events(workdir) for value in event.summary.value]
